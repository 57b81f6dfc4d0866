"""The command `onnx-grad`.

Results go to stdout, as tables or with `--json` as one JSON object; progress and errors go to stderr. Exit
codes: 0 it worked; 1 the answer is no (a gradient is wrong, something blocks); 2 bad input.
"""

from onnx_grad.cli.application import app

# --help lists the commands in the order in which these register them.
# isort: off
from onnx_grad.cli import transforming, batching, lowering, checking, running, memory, training  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command."""
    app()
