"""Many cases in several processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import onnxruntime

from tests.conformance.cases import Case
from tests.conformance.judging import judge
from tests.conformance.verdicts import Verdict

CASES_AT_A_TIME = 8


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """The options of a session without threads of its own, which cost more than small models take to run."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


def judge_all(
    cases: Sequence[Case], *, jobs: int = 1, erase_shapes: bool = False, time_limit: float = 30.0
) -> Iterator[Verdict]:
    """The verdicts on `cases`, in that order, from `jobs` processes."""
    one = functools.partial(judge, erase_shapes=erase_shapes, time_limit=time_limit)
    with _processes(jobs) as pool:
        yield from map(one, cases) if pool is None else pool.map(one, cases, chunksize=CASES_AT_A_TIME)


def judge_with_and_without_shapes(
    cases: Sequence[Case], *, jobs: int, time_limit: float = 30.0
) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts on `cases` as they are, and with all shapes taken from them, from the same processes."""
    both = [(case, erase) for case in cases for erase in (False, True)]
    one = functools.partial(_judge, time_limit=time_limit)
    with _processes(jobs) as pool:
        verdicts = list(map(one, both) if pool is None else pool.map(one, both, chunksize=CASES_AT_A_TIME))
    return verdicts[::2], verdicts[1::2]


def available_cores() -> int:
    """How many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _judge(case_and_erase: tuple[Case, bool], time_limit: float) -> Verdict:
    case, erase = case_and_erase
    return judge(case, erase_shapes=erase, time_limit=time_limit)


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool, or nothing where this process does it all; either way, no session has threads of its own."""
    if jobs == 1:
        with mock.patch.object(onnxruntime, "SessionOptions", OneThread):
            yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_without_threads) as pool:
        yield pool


def _without_threads() -> None:
    onnxruntime.SessionOptions = OneThread
