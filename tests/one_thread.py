"""Sessions that leave the other cores alone."""

from __future__ import annotations

import onnxruntime


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """The options of a session without threads of its own, which cost more than small models take to run."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1
