"""Pages of the documentation: their code, run as a reader would run it in the repository's root."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from onnx_grad.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Run:
    """What the Python code of a page left.

    Attributes:
        names: Its variables and functions.
        printed: The lines that it printed.
        told: The lines that its comments behind `print(…)` tell the reader.
    """

    names: dict[str, Any]
    printed: list[str]
    told: list[str]


def run_page(name: str) -> Run:
    """Run the Python blocks of `docs/<name>`, one after the other."""
    page = DOCS / name
    names: dict[str, Any] = {}
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as output:
        for code in _blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)
    told = re.findall(r"^print\(.*\)  # (.*)$", page.read_text(), re.MULTILINE)
    return Run(names, output.getvalue().splitlines(), told)


def run_commands(name: str, folder: Path) -> None:
    """Run the commands `onnx-grad` of `docs/<name>`; they find `models/`, and write into `folder`."""
    (folder / "models").symlink_to(ROOT / "models")
    with contextlib.chdir(folder):
        for line in "".join(_blocks(DOCS / name, "sh")).split("\n"):
            command, *arguments = shlex.split(line, comments=True) or [""]
            if command:
                assert command == "onnx-grad", line
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, result.output


def _blocks(page: Path, language: str) -> Iterator[str]:
    """The blocks in `language`, behind as many empty lines as make line numbers those of the page."""
    text = page.read_text()
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text[: block.start(1)].count("\n") + block[1]
