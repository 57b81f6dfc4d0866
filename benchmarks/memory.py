"""Peak memory of one step of a side, above what is resident before it: run in a process of its own.

`python -m benchmarks.memory <network> <weights|input> <side>` prints megabytes. Linux only.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import sides
from benchmarks.networks import EXTRA, NETWORKS

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")

# Freed memory goes back at once, so that what is resident is what is in use.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}

SIDES = {"forward": sides.forward, "onnx_grad": sides.ours, "PyTorch": sides.torch, "onnx-ad": sides.onnx_ad}


def peak_megabytes(network: str, wrt: str, side: str) -> float | None:
    """The peak of one step; `None` where it cannot be measured."""
    if side not in SIDES or not _RESET.exists():
        return None
    command = [sys.executable, "-m", "benchmarks.memory", network, wrt, side]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    return float(result.stdout) if result.returncode == 0 else None


def main() -> None:
    """Print the peak of one step of the side that the arguments name."""
    name, wrt, side_name = sys.argv[1:]
    (network,) = [n for n in (*NETWORKS, *EXTRA) if n.name == name]
    side = SIDES[side_name](sides.Task(network, wrt, threads=1, arena=False))
    side.step()
    side.clear()
    print(megabytes_of(side.step))


def megabytes_of(step: Callable[[], object]) -> float:
    """The most that `step` takes of memory at once, above what is resident before it."""
    gc.collect()
    before = kilobytes("VmRSS")
    _RESET.write_text("5")
    step()
    return (kilobytes("VmHWM") - before) / 1024


def kilobytes(field: str) -> int:
    """A field of what the kernel says of this process, such as VmRSS, what is resident, or VmHWM, at most."""
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
