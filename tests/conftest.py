"""What holds for all tests: how they share the machine."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# There is a worker for every core; PyTorch reads this when it is imported, and so do programs that tests run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that need onnx's backend cases, or what is emitted for them: neither is made in a second worker.
OF_BACKEND_CASES = frozenset(
    f"tests/test_{name}.py" for name in ("closure", "conformance", "kernels", "registry")
)


@pytest.fixture(scope="session", autouse=True)
def one_thread_in_a_session() -> Iterator[None]:
    import onnxruntime

    from tests.one_thread import OneThread

    with mock.patch.object(onnxruntime, "SessionOptions", OneThread):
        yield


@pytest.fixture(scope="module", autouse=True)
def what_stays_is_no_garbage() -> None:
    """Tests and modules stay for the whole run: to search all of them for garbage takes a sixth of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Hand out tests by file, and the files about backend cases together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "backend cases" if file in OF_BACKEND_CASES else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
