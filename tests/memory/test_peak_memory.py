"""The estimate of memory, against what is known and what is measured."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from benchmarks import recomputation
from benchmarks.networks import EXTRA
from models import FOLDER
from onnx_grad.memory.execution_order import execution_order
from tests.graphs import parse
from tests.recomputation.networks import example, executed, perceptron

KIB = 1024


@pytest.mark.parametrize("recompute", [None, "sqrt"])
@pytest.mark.parametrize("name", ["digits_cnn", "encoder", "energy"])
def test_the_order_is_that_of_onnx_runtime(name: str, recompute: str | None, tmp_path: Path) -> None:
    model = onnx_grad.vjp(FOLDER / f"{name}.onnx", recompute=recompute)
    feeds = example(model, batch=2, sequence=3, particles=4)
    expected = executed(model, feeds, tmp_path, "none")
    nodes = [n for n in ir.from_proto(model).graph if n.op_type != "Constant"]
    assert [node.name for node in execution_order(nodes)] == expected


class TestOneTensorAfterTheOther:
    """What is alive at once, tensors of 1 KiB."""

    def test_a_chain_needs_two(self) -> None:
        model = parse(
            "g (float[256] x) => (float[256] y) { a = Sin (x) b = Cos (a) c = Sin (b) y = Cos (c) }"
        )
        peak = onnx_grad.peak_memory(model)
        assert peak.activations == 2 * KIB
        assert [size for _, size in peak.largest] == [KIB, KIB]
        assert (peak.inputs, peak.outputs, peak.weights) == (KIB, KIB, 0)

    def test_what_is_read_later_stays(self) -> None:
        model = parse(
            "g (float[256] x) => (float[256] y) "
            "{ a = Sin (x) b = Cos (a) c = Sin (b) d = Cos (c) y = Mul (a, d) }"
        )
        assert onnx_grad.peak_memory(model).activations == 3 * KIB

    def test_views_and_overwriting_take_nothing(self) -> None:
        model = parse(
            "g (float[16, 16] x) => (float[256] y) <int64[1] flat = {-1}> "
            "{ a = Sin (x) b = Reshape (a, flat) c = Relu (b) d = Tanh (c) y = Cos (d) }"
        )
        assert onnx_grad.peak_memory(model).activations == KIB

    def test_reuse_holds_memory_for_later(self) -> None:
        model = parse(
            """g (float[256] x, float[2, 128] u) => (float[256] y) {
                a = Sin (x) b = Cos (a) s = ReduceSum <keepdims: int = 0> (b)
                v = Add (u, s) w = Sin (v) t = ReduceSum <keepdims: int = 0> (w)
                c = Add (x, t) d = Sin (c) y = Cos (d)
            }"""
        )
        held, freed = onnx_grad.peak_memory(model), onnx_grad.peak_memory(model, reuse=False)
        scalar = 4  # the memory of s, which t gets later
        assert (held.activations, held.idle) == (4 * KIB + scalar, 2 * KIB + scalar)
        assert (freed.activations, freed.idle) == (2 * KIB, 0)

    def test_what_nothing_reads_is_freed_once(self) -> None:
        """It comes first, being last, and the two tensors after it do not both lie in its memory."""
        model = parse(
            """g (float[256] x) => (float[256] y) {
                b = Cos (x) c = Sin (x) d = Add (b, c) y = Cos (d)
                a = Exp (x) unread = Tanh (a)
            }"""
        )
        assert onnx_grad.peak_memory(model).activations == 3 * KIB

    def test_weights_and_what_is_computed_of_them_alone(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { v = Sin (w) y = Mul (x, v) }")
        peak = onnx_grad.peak_memory(model)
        assert (peak.activations, peak.weights) == (0, 8)


class TestSizes:
    MODEL = perceptron(3, "batch, 4")

    def test_symbols(self) -> None:
        one, two = (onnx_grad.peak_memory(self.MODEL, sizes={"batch": n}) for n in (64, 128))
        assert one.activations == 2 * KIB
        assert two.activations == 4 * KIB

    def test_what_is_not_known_is_named(self) -> None:
        peak = onnx_grad.peak_memory(self.MODEL)
        assert set(peak.unsized) >= {"p0", "p1"}
        assert "not counted, of unknown size: 'p0'" in str(peak)

    def test_through_what_is_recomputed(self) -> None:
        gradient = onnx_grad.vjp(self.MODEL, [f"w{i}" for i in range(3)], recompute=["p0", "h0"])
        assert onnx_grad.peak_memory(gradient, sizes={"batch": 5}).unsized == ()

    def test_another_symbol(self) -> None:
        with pytest.raises(onnx_grad.InputError, match=r"no input .* dimension 'N'; they have 'batch'"):
            onnx_grad.peak_memory(self.MODEL, sizes={"N": 3})

    @pytest.mark.parametrize("size", [-1, 2.5, True, "2"])
    def test_no_size(self, size: object) -> None:
        with pytest.raises(onnx_grad.InputError, match="'batch' is to be a number of elements"):
            onnx_grad.peak_memory(self.MODEL, sizes={"batch": size})  # type: ignore[dict-item]

    def test_the_model_stays_as_it_is(self) -> None:
        before = self.MODEL.SerializeToString()
        onnx_grad.peak_memory(self.MODEL, sizes={"batch": 3})
        assert self.MODEL.SerializeToString() == before


class TestTheOptimisedGraph:
    GELU = parse(
        "g (float[16, 16] x, float[16, 16] w) => (float[16, 16] y) "
        "<float r = {1.41421356}, float one = {1}, float half = {0.5}>"
        "{ m = MatMul (x, w) u = Div (m, r) e = Erf (u) a = Add (e, one) p = Mul (m, a) "
        "g = Mul (p, half) y = Sin (g) }"
    )

    def test_has_fused_nodes(self) -> None:
        assert onnx_grad.peak_memory(self.GELU).activations == 3 * KIB
        peak = onnx_grad.peak_memory(self.GELU, optimized=True)
        assert peak.activations == 2 * KIB
        assert peak.unsized == ()

    def test_has_symbols_of_known_sizes(self) -> None:
        peak = onnx_grad.peak_memory(perceptron(3, "batch, 4"), sizes={"batch": 64}, optimized=True)
        assert peak.activations == 2 * KIB
        assert peak.unsized == ()

    def test_needs_kernels(self) -> None:
        model = parse(
            "g (double[1, 1, 4] x) => (double[1, 1, 3] y) { y = AveragePool <kernel_shape = [2]> (x) }"
        )
        assert onnx_grad.peak_memory(model).activations == 0
        with pytest.raises(onnx_grad.RuntimeUnavailableError, match="AveragePool"):
            onnx_grad.peak_memory(model, optimized=True)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from Linux's /proc")
def test_agrees_with_measured_memory() -> None:
    """A process of its own runs the gradient of 32 layers; the figures of the others are in the docs."""
    (network,) = [network for network in EXTRA if network.name == "deepmlp"]
    measured = recomputation.measured_once(network.name, "sqrt", reuse=True)
    estimated = recomputation.estimated(recomputation.gradient(network, "sqrt")).reused
    assert estimated == pytest.approx(measured, rel=0.1)
    plain = recomputation.estimated(recomputation.gradient(network, "nothing")).reused
    assert measured <= plain / 2


def test_any_model_can_be_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(perceptron(3, "64, 4"), path)
    peaks = [onnx_grad.peak_memory(given) for given in (path, onnx.load(path), ir.load(path))]
    assert peaks[0] == peaks[1] == peaks[2]
