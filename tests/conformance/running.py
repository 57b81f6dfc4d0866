"""Many cases in several processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import onnxruntime

from tests.conformance.cases import Case
from tests.conformance.judging import judge
from tests.conformance.verdicts import Verdict
from tests.one_thread import OneThread

CASES_AT_A_TIME = 8


def judge_all(
    cases: Sequence[Case], *, jobs: int = 1, erase_shapes: bool = False, time_limit: float = 30.0
) -> Iterator[Verdict]:
    """The verdicts on `cases`, in that order, from `jobs` processes."""
    one = functools.partial(judge, erase_shapes=erase_shapes, time_limit=time_limit)
    with _processes(jobs) as pool:
        yield from map(one, cases) if pool is None else pool.map(one, cases, chunksize=CASES_AT_A_TIME)


def judge_in_one_form(
    cases: Sequence[Case], *, jobs: int, time_limit: float = 30.0, as_they_are: Iterable[Verdict] = ()
) -> list[Verdict]:
    """The verdicts on `cases`, about half of them as they are, the others with all shapes taken from them.

    The name decides, so that a case is always judged in the same form. Verdicts that there are on some cases
    `as_they_are` are taken over where that is the form.
    """
    one = functools.partial(_judge, time_limit=time_limit)
    judged = {verdict.case: verdict for verdict in as_they_are}
    formed = [(case, zlib.crc32(case.name.encode()) % 2 == 1) for case in cases]
    known = [judged[case.name] for case, erase in formed if case.name in judged and not erase]
    new = [(case, erase) for case, erase in formed if case.name not in judged or erase]
    with _processes(jobs) as pool:
        return known + list(map(one, new) if pool is None else pool.map(one, new, chunksize=CASES_AT_A_TIME))


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
