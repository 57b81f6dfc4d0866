"""Arithmetic on values: `a * b` builds a node with whichever builder records in the calling thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from onnx_grad.builder import Builder


class _ArithmeticDispatch:
    """Sends `a * b` on values to the builder that is recording in the calling thread.

    onnx_ir keeps one arithmetic handler for the whole process. This one asks which thread is calling, so
    that transforms in several threads do not see each other's builder; a thread that records nothing keeps
    whatever handler was installed before.
    """

    def __init__(self) -> None:
        self._recording = threading.local()
        self._lock = threading.Lock()
        self._users = 0
        self._previous: Any = None

    @contextlib.contextmanager
    def to(self, builder: Builder) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._previous = ir.set_value_magic_handler(self)
            self._users += 1
        outer = getattr(self._recording, "builder", None)
        self._recording.builder = builder
        try:
            yield
        finally:
            self._recording.builder = outer
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    ir.set_value_magic_handler(self._previous)
                    self._previous = None

    def _handler(self) -> Any:
        builder = getattr(self._recording, "builder", None)
        if builder is not None:
            return builder
        if self._previous is None:
            raise ValueError("arithmetic on values outside of a transform: no graph is being built")
        return self._previous

    def Add(self, a: Any, b: Any) -> Any:
        return self._handler().Add(a, b)

    def Sub(self, a: Any, b: Any) -> Any:
        return self._handler().Sub(a, b)

    def Mul(self, a: Any, b: Any) -> Any:
        return self._handler().Mul(a, b)

    def Div(self, a: Any, b: Any) -> Any:
        return self._handler().Div(a, b)

    def Neg(self, a: Any) -> Any:
        return self._handler().Neg(a)


_dispatch = _ArithmeticDispatch()


def recording(builder: Builder) -> contextlib.AbstractContextManager[None]:
    """Inside, `+ - * /` on values of the calling thread build nodes with `builder`."""
    return _dispatch.to(builder)
