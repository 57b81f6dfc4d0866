"""What rules emit runs where ONNX Runtime runs: on its CPU and its CUDA provider."""

from __future__ import annotations

import functools

import onnx
import onnxruntime
import pytest

import onnx_grad
from benchmarks.networks import NETWORKS, Network
from benchmarks.sides import Task
from tests.emission import emissions, node_types
from tests.kernels import NEWEST_OPSET, TAKEN_FROM, Kernel, has_kernel, installed, kernels

# Provider, operator, version of the operator, element type.
Key = tuple[str, str, int, str]

# Why there is no other formula.
_BESIDE = "it is emitted beside forward operators only that have no kernel either"
_SHAPES = "products of shapes, which ONNX Runtime computes on the CPU"
WITHOUT_KERNEL: dict[Key, str] = {
    ("CPU", "DequantizeLinear", 28, "float"): _BESIDE,
    ("CUDA", "AffineGrid", 20, "float"): _BESIDE,
    ("CUDA", "CumProd", 26, "float"): _BESIDE,
    ("CUDA", "DFT", 17, "float"): _BESIDE,
    ("CUDA", "DFT", 20, "float"): _BESIDE,
    ("CUDA", "Det", 11, "float"): _BESIDE,
    ("CUDA", "Det", 22, "float"): _BESIDE,
    ("CUDA", "EyeLike", 22, "float"): _BESIDE,
    ("CUDA", "MaxPool", 22, "float"): _BESIDE,
    ("CUDA", "MaxUnpool", 11, "float"): _BESIDE,
    ("CUDA", "MaxUnpool", 22, "float"): _BESIDE,
    ("CUDA", "ReduceProd", 18, "int64"): _SHAPES,
    ("CUDA", "Unique", 11, "float"): _BESIDE,
}


@functools.cache
def missing() -> dict[Key, set[tuple[str, int]]]:
    """The emitted operators without a kernel, with the forward operators that they serve and the opsets."""
    found: dict[Key, set[tuple[str, int]]] = {}
    for operator, op_type, dtype, oldest in {
        (emission.operator, *node, emission.opset) for emission in emissions() for node in emission.nodes
    }:
        for provider, newest in NEWEST_OPSET.items():
            for opset in range(oldest, newest + 1):
                if not has_kernel(provider, op_type, opset, dtype):
                    version = onnx.defs.get_schema(op_type, opset).since_version
                    found.setdefault((provider, op_type, version, dtype), set()).add((operator, opset))
    return found


def test_emitted_operators_have_kernels() -> None:
    assert {key: served for key, served in missing().items() if key not in WITHOUT_KERNEL} == {}


def test_the_exceptions_are_needed() -> None:
    assert set(WITHOUT_KERNEL) - set(missing()) == set()


@pytest.mark.parametrize("key", [key for key, reason in WITHOUT_KERNEL.items() if reason == _BESIDE])
def test_forward_operators_that_are_said_to_have_no_kernel_have_none(key: Key) -> None:
    provider = key[0]
    assert [
        operator for operator, opset in missing()[key] if has_kernel(provider, operator, opset, "float")
    ] == []


@pytest.mark.parametrize("wrt", ["weights", "input"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_gradients_of_networks_stay_on_the_device(network: Network, wrt: str) -> None:
    """Every node of the graphs that are measured has a CUDA kernel, also where activations are recomputed."""
    task = Task(network, wrt, threads=1)
    for recompute in (None, "sqrt"):
        model = onnx_grad.vjp(task.model(), task.names(), recompute=recompute)
        (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
        nodes = set(node_types(model.graph, {}))
        assert {node for node in nodes if not has_kernel("CUDA", node[0], opset, node[1])} == set()


@pytest.mark.parametrize(
    ("kernel", "version", "runs"),
    [
        (Kernel(11, 21, frozenset({"float"})), 13, True),
        (Kernel(11, 21, frozenset({"float"})), 22, False),
        (Kernel(13, 2**31 - 1, frozenset({"float"})), 13, True),
        (Kernel(13, 2**31 - 1, frozenset({"float"})), 19, False),
        (Kernel(13, 18, frozenset({"int64"})), 13, False),
    ],
    ids=["inside", "after the end", "no end, its own version", "no end, a later version", "another type"],
)
def test_a_kernel_runs_its_versions(kernel: Kernel, version: int, runs: bool) -> None:
    assert kernel.runs(version, "float") is runs


@pytest.mark.skipif(onnxruntime.__version__ != TAKEN_FROM["CPU"], reason="the facts are of another version")
def test_the_facts_are_those_of_the_installed_build() -> None:
    known = {key: rows for key, rows in kernels().items() if key[0] == "CPU"}

    assert {key: rows for key, rows in installed().items() if key[0] == "CPU"} == known
