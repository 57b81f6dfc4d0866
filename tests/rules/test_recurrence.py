"""RNN, GRU and LSTM: directions, lengths, layouts, activation functions, and all that may be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.errors import UnsupportedOpError
from tests.graphs import operators
from tests.oracle import check, evaluator, gradients, quiet_vjp, single_node
from tests.recurrence import DEFAULTS, FUNCTIONS, GATES, as_scans

KINDS = ("RNN", "GRU", "LSTM")
DIRECTIONS = ("forward", "reverse", "bidirectional")
OUTPUTS = {"RNN": ["Y", "Y_h"], "GRU": ["Y", "Y_h"], "LSTM": ["Y", "Y_h", "Y_c"]}
LENGTH, BATCH, INPUTS, HIDDEN = 3, 2, 2, 2

Arrays = dict[str, np.ndarray | None]


def arrays(
    kind: str,
    direction: str = "forward",
    *,
    lengths: Sequence[int] | None = None,
    without: Sequence[str] = (),
    is_batch_first: bool = False,
    seed: int = 0,
) -> Arrays:
    """Inputs of a node in float64; `None` for what is left out."""
    generator = np.random.default_rng(seed)
    directions, gates = 1 + (direction == "bidirectional"), GATES[kind]
    state = (BATCH, directions, HIDDEN) if is_batch_first else (directions, BATCH, HIDDEN)
    shapes = {
        "X": (BATCH, LENGTH, INPUTS) if is_batch_first else (LENGTH, BATCH, INPUTS),
        "W": (directions, gates * HIDDEN, INPUTS),
        "R": (directions, gates * HIDDEN, HIDDEN),
        "B": (directions, 2 * gates * HIDDEN),
        "sequence_lens": (BATCH,),
        "initial_h": state,
    }
    if kind == "LSTM":
        shapes |= {"initial_c": state, "P": (directions, 3 * HIDDEN)}
    given: Arrays = {name: 0.7 * generator.standard_normal(shape) for name, shape in shapes.items()}
    given["sequence_lens"] = None if lengths is None else np.array(lengths, dtype=np.int32)
    return given | dict.fromkeys(set(without) & set(given))


def node_model(kind: str, given: Arrays, outputs: Sequence[str] = (), **attributes: Any) -> onnx.ModelProto:
    names = outputs or OUTPUTS[kind]
    return single_node(kind, given, outputs=names, hidden_size=HIDDEN, **attributes)


def in_single_precision(given: Arrays) -> Arrays:
    return {n: a if a is None or a.dtype.kind == "i" else a.astype(np.float32) for n, a in given.items()}


def present(given: Arrays) -> dict[str, np.ndarray]:
    return {name: array for name, array in given.items() if array is not None}


def check_node(
    kind: str,
    *,
    outputs: Sequence[str] = (),
    lengths: Sequence[int] | None = None,
    without: Sequence[str] = (),
    seed: int = 0,
    opset: int = 18,
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Compare with finite differences of the node written out as a `Scan`."""
    attributes = attributes or {}
    is_batch_first = bool(attributes.get("layout", 0))
    given = arrays(
        kind,
        attributes.get("direction", "forward"),
        lengths=lengths,
        without=without,
        is_batch_first=is_batch_first,
        seed=seed,
    )
    model = node_model(kind, given, outputs, opset=opset, **attributes)
    check(model, present(given), **options)


def functions(kind: str, name: str) -> dict[str, Any]:
    """Attributes that put one activation function everywhere, with other parameters each time."""
    names = [name] * len(DEFAULTS[kind])
    return {"activations": names, "activation_alpha": [0.3, 0.2, 0.4], "activation_beta": [0.3, 0.5, 0.4]}


class TestTheOracle:
    """The written-out form computes what ONNX Runtime's kernels do."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("lengths", [None, [0, 2]])
    def test_directions_and_lengths(self, kind: str, direction: str, lengths: list[int] | None) -> None:
        self.assert_same(kind, arrays(kind, direction, lengths=lengths), direction=direction)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_activation_functions(self, kind: str, name: str) -> None:
        self.assert_same(kind, arrays(kind), clip=0.9, **functions(kind, name))

    @pytest.mark.parametrize(
        ("kind", "attributes"),
        [
            ("GRU", {"linear_before_reset": 1}),
            ("LSTM", {"input_forget": 1}),
            # A value is for the next function that has such a parameter, not for the one in its place.
            (
                "LSTM",
                {"activations": ["Sigmoid", "LeakyRelu", "Elu"], "activation_alpha": [0.3, 0.6]},
            ),
            ("LSTM", {"activations": ["HardSigmoid", "LeakyRelu", "Elu"]}),
        ],
    )
    def test_attributes(self, kind: str, attributes: dict[str, Any]) -> None:
        self.assert_same(kind, arrays(kind), **attributes)

    @staticmethod
    def assert_same(kind: str, given: Arrays, **attributes: Any) -> None:
        single = in_single_precision(given)
        model = node_model(kind, single, opset=22, **attributes)
        by_kernel, written_out = (evaluator(m)(present(single)) for m in (model, as_scans(model)))
        for name, expected in by_kernel.items():
            np.testing.assert_allclose(written_out[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
class TestGradients:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_directions(self, kind: str, direction: str) -> None:
        check_node(kind, attributes={"direction": direction})

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize(("lengths", "shapes"), [([2, 3], "symbolic"), ([0, 1], "unknown")])
    def test_sequences_that_end_early(
        self, kind: str, direction: str, lengths: list[int], shapes: str
    ) -> None:
        check_node(kind, lengths=lengths, attributes={"direction": direction}, shapes=[shapes])

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_batch_first(self, kind: str, direction: str) -> None:
        attributes = {"layout": 1, "direction": direction}
        check_node(kind, lengths=[2, 3], attributes=attributes, shapes=["unknown"])

    @pytest.mark.parametrize("without", ["B", "initial_h", "initial_c", "P", "B initial_h initial_c P"])
    def test_without_what_may_be_left_out(self, kind: str, without: str) -> None:
        if set(without.split()) & set(arrays(kind)):
            attributes = {"direction": "reverse"}
            check_node(
                kind, without=without.split(), lengths=[2, 3], attributes=attributes, shapes=["symbolic"]
            )

    @pytest.mark.parametrize("outputs", [["Y"], ["", "Y_h"], ["", "", "Y_c"]])
    def test_single_outputs(self, kind: str, outputs: list[str]) -> None:
        if set(outputs) <= {"", *OUTPUTS[kind]}:
            check_node(kind, outputs=outputs, shapes=["static"])

    def test_clip(self, kind: str) -> None:
        check_node(kind, attributes={"clip": 0.6})

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_activation_functions(self, kind: str, name: str) -> None:
        check_node(kind, attributes=functions(kind, name), shapes=["unknown"])

    def test_activation_functions_of_each_direction(self, kind: str) -> None:
        names = {"RNN": ["Sigmoid", "Tanh"], "GRU": ["Tanh", "Softsign", "Sigmoid", "Tanh"]}
        names["LSTM"] = ["Sigmoid", "Tanh", "Softsign", "HardSigmoid", "Affine", "Tanh"]
        attributes = {
            "activations": names[kind],
            "activation_alpha": [0.3, 0.8],
            "activation_beta": [0.4, 0.1],
        }
        check_node(kind, attributes={"direction": "bidirectional", **attributes}, shapes=["static"])

    @pytest.mark.parametrize("opset", [7, 14, 22])
    def test_opsets(self, kind: str, opset: int) -> None:
        check_node(kind, opset=opset, shapes=["unknown"])

    @pytest.mark.parametrize(("lengths", "shapes"), [(None, "symbolic"), ([2, 3], "unknown")])
    def test_second_order(self, kind: str, lengths: list[int] | None, shapes: str) -> None:
        attributes = {"direction": "reverse"}
        check_node(kind, lengths=lengths, attributes=attributes, second_order=True, shapes=[shapes])

    def test_single_precision(self, kind: str) -> None:
        """With ONNX Runtime's own kernel for the forward node."""
        given = arrays(kind, lengths=[2, 3])
        wrt = [name for name in present(given) if name != "sequence_lens"]
        results = []
        for dtype in (np.float64, np.float32):
            own = {n: a if a.dtype.kind == "i" else a.astype(dtype) for n, a in present(given).items()}
            model = node_model(kind, {name: own.get(name) for name in given})
            values = evaluator(model)(own)
            seeds = {y: np.cos(np.arange(v.size, dtype=dtype)).reshape(v.shape) for y, v in values.items()}
            results.append(gradients(model, own, seeds, wrt))
        exact, single = results
        for name in wrt:
            assert single[name].dtype == np.float32
            np.testing.assert_allclose(single[name], exact[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("attributes", [{}, {"clip": 0.6}])
def test_reset_gate_after_the_product(direction: str, attributes: dict[str, Any]) -> None:
    form = {"linear_before_reset": 1, "direction": direction, **attributes}
    check_node("GRU", lengths=[2, 3], attributes=form, shapes=["symbolic"])
    check_node("GRU", without=["B"], attributes=form, shapes=["unknown"])


def test_reset_gate_after_the_product_at_second_order() -> None:
    check_node("GRU", attributes={"linear_before_reset": 1}, second_order=True, shapes=["symbolic"])


@pytest.mark.parametrize("without", [[], ["P"]])
@pytest.mark.parametrize("lengths", [None, [0, 2]])
def test_forget_gate_coupled_to_the_input_gate(without: list[str], lengths: list[int] | None) -> None:
    attributes = {"input_forget": 1}
    check_node("LSTM", without=without, lengths=lengths, attributes=attributes, shapes=["unknown"])


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_no_steps(kind: str) -> None:
    """ONNX Runtime gives final states of zero then, whatever the initial ones; its GRU fails."""
    single = in_single_precision(arrays(kind))
    model = node_model(kind, single)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "T"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    given = present(single)
    given["X"] = given["X"][:0]
    seeds = {y: np.ones_like(value) for y, value in evaluator(model)(given).items()}
    for name, gradient in gradients(model, given, seeds, list(given)).items():
        assert gradient.shape == given[name].shape
        assert not gradient.any()


class TestTheGraph:
    def test_the_forward_node_gives_what_the_gradient_needs(self) -> None:
        model = quiet_vjp(node_model("LSTM", arrays("LSTM"), ["", "", "Y_c"]))
        (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
        assert [bool(name) for name in node.output] == [True, False, True]

    @pytest.mark.parametrize(
        ("kind", "attributes", "count"),
        [
            ("RNN", {}, [1]),
            ("GRU", {}, [2]),
            ("GRU", {"linear_before_reset": 1}, [1]),
            ("LSTM", {}, [0, 1]),
            ("LSTM", {"direction": "bidirectional"}, [0, 1, 0, 1]),
        ],
    )
    def test_matrix_products_of_a_step(self, kind: str, attributes: dict[str, Any], count: list[int]) -> None:
        given = arrays(kind, attributes.get("direction", "forward"))
        model = quiet_vjp(node_model(kind, given, **attributes))
        steps = [
            a.g
            for node in model.graph.node
            if node.op_type == "Scan"
            for a in node.attribute
            if a.name == "body"
        ]
        products = [sum(node.op_type in ("MatMul", "Gemm") for node in step.node) for step in steps]
        assert sorted(products) == sorted(count)

    def test_gates_are_not_computed_again_where_the_state_tells_the_slope(self) -> None:
        model = quiet_vjp(node_model("RNN", arrays("RNN")), ["initial_h"])
        assert not {"Gemm", "MatMul"} & set(operators(model))


class TestRefusals:
    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"activations": ["Sigmoid", "Gelu"]}, "'gelu' is none of the specification's"),
            ({"activations": ["Sigmoid"]}, "names 1 activation functions \\(sigmoid\\) where it has 2"),
            ({"activations": ["Sigmoid", "Affine"]}, "activation_alpha has no value .* 'affine'"),
            (
                {"activations": ["ScaledTanh", "Tanh"], "activation_alpha": [2.0]},
                "activation_beta has no value .* 'scaledtanh'",
            ),
            ({"activations": ["Sigmoid", "ThresholdedRelu"]}, "activation_alpha has no value"),
        ],
    )
    def test_functions_without_a_definition(self, attributes: dict[str, Any], message: str) -> None:
        with pytest.raises(UnsupportedOpError, match=message):
            onnx_grad.vjp(node_model("GRU", arrays("GRU"), **attributes))
