"""Which operators ONNX Runtime has kernels for, by provider, version of the operator and element type.

The facts are in `kernels.tsv`, taken from the kernel registries of released wheels: the CPU provider's of
onnxruntime 1.32.0 and the CUDA provider's of onnxruntime-gpu 1.31.1, the newest ones in November 2026.
`python -m tests.kernels` renews the rows of the providers that the installed build has.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import onnx

TAKEN_FROM = {"CPU": "1.32.0", "CUDA": "1.31.1"}
# The newest opset that these builds load.
NEWEST_OPSET = {"CPU": 28, "CUDA": 26}

FACTS = Path(__file__).with_name("kernels.tsv")
TYPES = ("bool", "float", "int32", "int64")
COLUMNS = "provider\toperator\tfirst version\tlast version\telement types\n"

# The last version of a kernel that is registered without an end.
_NO_END = 2**31 - 1


class Kernel(NamedTuple):
    """Versions of an operator that a kernel runs, and for which of `TYPES`."""

    first: int
    last: int
    types: frozenset[str]

    def runs(self, version: int, dtype: str) -> bool:
        """Whether it runs a node of this version: ONNX Runtime's `KernelRegistry::VerifyKernelDef`.

        A kernel without an end runs the version that it was made for and no later one, because nobody can
        know yet what that will change.
        """
        is_inside = self.first <= version <= self.last and self.last != _NO_END
        return (version == self.first or is_inside) and dtype in self.types


@functools.cache
def has_kernel(provider: str, op_type: str, opset: int, dtype: str) -> bool:
    """Whether `provider` runs the operator on `dtype` in a graph of this opset."""
    version = onnx.defs.get_schema(op_type, opset).since_version
    return any(kernel.runs(version, dtype) for kernel in kernels().get((provider, op_type), ()))


@functools.cache
def kernels() -> dict[tuple[str, str], list[Kernel]]:
    """All facts, by provider and operator."""
    found = defaultdict(list)
    for line in FACTS.read_text().splitlines()[1:]:
        provider, op_type, first, last, types = line.split("\t")
        kernel = Kernel(int(first), int(last or _NO_END), frozenset(types.split()))
        found[provider, op_type].append(kernel)
    return dict(found)


def installed() -> dict[tuple[str, str], list[Kernel]]:
    """The same of the installed ONNX Runtime, as far as its kernels run opset 18 or later."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    types: dict[tuple[str, str], dict[tuple[int, int], set[str]]] = defaultdict(lambda: defaultdict(set))
    for kernel in get_all_opkernel_def():
        if kernel.domain == "" and kernel.provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
            provider = kernel.provider.removesuffix("ExecutionProvider")
            allowed = {t for constraint in kernel.type_constraints.values() for t in constraint}
            if _takes_float_only(kernel.op_name, kernel.version_range[0]):
                allowed.add("tensor(float)")
            known = {t for t in TYPES if f"tensor({t})" in allowed}
            types[provider, kernel.op_name][kernel.version_range] |= known
    found = {
        key: [Kernel(*r, frozenset(t)) for r, t in sorted(ranges.items()) if t and _runs_opset_18(key[1], *r)]
        for key, ranges in types.items()
    }
    return {key: rows for key, rows in found.items() if rows}


def _takes_float_only(op_type: str, version: int) -> bool:
    """Whether the specification leaves no choice of the type of some input or output, which is float."""
    schema = _schemas()[op_type].get(max((v for v in _schemas()[op_type] if v <= version), default=0))
    formals = (*schema.inputs, *schema.outputs) if schema is not None else ()
    return any(formal.type_str == "tensor(float)" for formal in formals)


def _runs_opset_18(op_type: str, first: int, last: int) -> bool:
    versions = sorted(_schemas()[op_type])
    in_use = [v for v in versions if v > 18] + [v for v in versions if v <= 18][-1:]
    return any(v == first or (first < v <= last != _NO_END) for v in in_use)


@functools.cache
def _schemas() -> dict[str, dict[int, onnx.defs.OpSchema]]:
    """The schemas of the default domain, by operator and version."""
    found: dict[str, dict[int, onnx.defs.OpSchema]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name][schema.since_version] = schema
    return found


def main() -> None:
    """Renew the facts about the providers of the installed build."""
    facts = kernels() | installed()
    with FACTS.open("w") as file:
        file.write(COLUMNS)
        for (provider, op_type), rows in sorted(facts.items()):
            for first, last, types in sorted(rows, key=lambda kernel: kernel.first):
                end = "" if last == _NO_END else last
                file.write(f"{provider}\t{op_type}\t{first}\t{end}\t{' '.join(sorted(types))}\n")
    print(f"wrote {FACTS.name}: {', '.join(sorted({provider for provider, _ in installed()}))}")


if __name__ == "__main__":
    main()
