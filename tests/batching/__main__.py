"""How each operator is batched, over all of onnx's backend cases: `python -m tests.batching`.

Every float input of a case is mapped at once, and the results are compared with those of each example. A line
for each operator says how many cases were batched, ran in a `Scan` in part, were refused, and differed.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict

import numpy as np

import onnx_grad
from tests.batching.examples import batch_of, check, one_by_one, scans
from tests.conformance.cases import Case, load_cases

# Their results are random.
_RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
_LARGEST = 50_000


def main() -> None:
    """Print the table and what differed."""
    warnings.simplefilter("ignore")
    found: dict[str, Counter[str]] = defaultdict(Counter)
    different = []
    for case in load_cases():
        outcome = _outcome(case)
        if outcome is not None:
            found[case.operator][outcome.partition(":")[0]] += 1
            if outcome.startswith("different"):
                different.append(f"{case.name}, {outcome}")
    for operator, counts in sorted(found.items()):
        print(f"{operator:28}", ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    totals = sum(found.values(), Counter())
    print(f"{'all':28}", ", ".join(f"{count} {what}" for what, count in totals.most_common()))
    print("\n".join(different))


def _outcome(case: Case) -> str | None:
    """What became of a case; `None` where it cannot be run for each example."""
    point = {name: array for name, array in case.points[0].items() if isinstance(array, np.ndarray)}
    names = [name for name, array in point.items() if array.dtype.kind == "f" and array.dtype != np.float16]
    if len(point) < len(case.points[0]) or not names or case.operator in _RANDOM or case.size > _LARGEST:
        return None
    inputs = point | {name: batch_of(point[name]) for name in names}
    axes = dict.fromkeys(names, 0)
    try:
        one_by_one(case.model, inputs, axes)
    except Exception:  # ONNX Runtime and onnx's reference lack a kernel, or the case is about an error.
        return None
    try:
        sequential = scans(check(case.model, inputs, axes, rtol=2e-3, atol=1e-4))
    except onnx_grad.UnsupportedOpError:
        return "refused"
    except (onnx_grad.OnnxGradError, AssertionError) as error:
        return f"different: {str(error).strip()[:200]!r}"
    return f"in a Scan ({', '.join(sorted(set(sequential)))})" if sequential else "batched"


if __name__ == "__main__":
    main()
