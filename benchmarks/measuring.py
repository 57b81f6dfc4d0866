"""Times of several sides taken alternately, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.sides import Clock, Side

# ONNX Runtime's threads are told to stop spinning; PyTorch's OpenMP threads spin on for some 10 ms.
PAUSE_SECONDS = 0.015
# A sample is long enough for the caches to fill again after the side before.
SAMPLE_SECONDS = 0.03
WARM_UPS = 2


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """That of `samples`."""
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(low, median, high)


def clock_for(threads: int) -> Clock:
    """CPU time for one thread, which a busy machine disturbs little; wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def alternate(sides: Mapping[str, Side], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of one step of every side, one sample of each a round, in turning order."""
    repetitions = {}
    for name, side in sides.items():
        side.seconds(WARM_UPS, clock)
        repetitions[name] = max(1, round(SAMPLE_SECONDS / max(side.seconds(1, clock), 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for names in _turning(list(sides), rounds):
        for name in names:
            time.sleep(PAUSE_SECONDS)
            samples[name].append(sides[name].seconds(repetitions[name], clock))
    return samples


def ratios(samples: Mapping[str, Sequence[float]], of: str, to: str) -> Spread:
    """How `of` compares with `to`, round by round."""
    return Spread.of([a / b for a, b in zip(samples[of], samples[to], strict=True)])


def median_seconds(action: Callable[[], object], repetitions: int) -> float:
    """The median CPU time of an action."""
    seconds = []
    for _ in range(repetitions):
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def _turning(names: list[str], rounds: int) -> Iterator[list[str]]:
    """Another side comes first in each round."""
    for i in range(rounds):
        start = i % len(names)
        yield names[start:] + names[:start]
