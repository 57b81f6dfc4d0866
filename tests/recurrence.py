"""RNN, GRU and LSTM written out as `Scan`, for evaluating them in float64.

ONNX Runtime has no float64 kernels for them, and the ONNX reference evaluator leaves out most of their
attributes. This follows the specification step by step, and knows nothing of the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.recording import recording
from onnx_grad.rules.bodies import body_graph

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

# The activation functions of x, with their α and β where they have them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Affine": lambda op, x, a, b: x * a + b,
    "Elu": lambda op, x, a: op.Where(op.Less(x, 0.0), (op.Exp(x) - 1.0) * a, x),
    "HardSigmoid": lambda op, x, a, b: op.Max(op.Min(x * a + b, 1.0), 0.0),
    "LeakyRelu": lambda op, x, a: op.Where(op.Less(x, 0.0), x * a, x),
    "Relu": lambda op, x: op.Relu(x),
    "ScaledTanh": lambda op, x, a, b: op.Tanh(x * b) * a,
    "Sigmoid": lambda op, x: op.Sigmoid(x),
    "Softplus": lambda op, x: op.Log(op.Exp(x) + 1.0),
    "Softsign": lambda op, x: x / (op.Abs(x) + 1.0),
    "Tanh": lambda op, x: op.Tanh(x),
    "ThresholdedRelu": lambda op, x, a: op.Where(op.Less(x, a), 0.0, x),
}
ALPHAS = {"Affine": 0, "Elu": 1, "HardSigmoid": 0.2, "LeakyRelu": 0.01, "ScaledTanh": 0, "ThresholdedRelu": 0}
BETAS = {"Affine": 0, "HardSigmoid": 0.5, "ScaledTanh": 0}

Step = Callable[[Builder, Any, Sequence[Any]], list[Any]]


def needs_scans(model: onnx.ModelProto) -> bool:
    """Whether it has recurrent nodes, and inputs in float64."""
    types = {value.type.tensor_type.elem_type for value in model.graph.input}
    return onnx.TensorProto.DOUBLE in types and any(node.op_type in GATES for node in model.graph.node)


def as_scans(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its recurrent nodes written out."""
    written = ir.from_proto(model)
    graph = written.graph
    opset = graph.opset_imports[""] = max(graph.opset_imports[""], 18)
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    op = Builder(opset, {value.name for value in values if value.name})
    for node in [node for node in graph if node.op_type in GATES]:
        op.nodes.clear()
        with recording(op):
            results = dict(zip(node.outputs, _written_out(op, node), strict=False))
            named = {old: op.Identity(new) for old, new in results.items() if old.name}
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], op.nodes, [*named.keys()], [*named.values()]
        )
    for value in op.initializers:
        graph.register_initializer(value)
    return ir.to_proto(written)


def _written_out(op: Builder, node: ir.Node) -> list[Any]:
    """Y, Y_h and, for LSTM, Y_c."""
    x, w, r, b, lengths, h, c, p = [*node.inputs, *[None] * 8][:8]
    is_batch_first = node.attributes.get_int("layout", 0)
    if is_batch_first:
        x, h, c = (value and op.Transpose(value, perm=[1, 0, 2]) for value in (x, h, c))
    running = op.Expand(op.scalar_like(1.0, x), op.Concat(op.Shape(x, end=2), [1], axis=0))
    if lengths is not None:
        steps = op.CumSum(running, np.array(0), exclusive=1)
        running = op.CastLike(op.Less(steps, op.Unsqueeze(op.CastLike(lengths, x), [1])), x)
    orders = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}
    results = []
    for index, order in enumerate(orders[node.attributes.get_string("direction", "forward")]):
        own = [value and op.Gather(value, np.array(index), axis=0) for value in (w, r, b, p, h, c)]
        shape = op.Concat(op.Shape(x, start=1, end=2), op.Shape(own[1], start=1), axis=0)
        zeros = op.Expand(op.scalar_like(0.0, x), shape)
        initial = [value or zeros for value in own[4:]][: 2 if node.op_type == "LSTM" else 1]
        results.append(_scan(op, node, _step(op, node, index, *own[:4]), order, x, running, initial))
    ys, *states = zip(*results, strict=True)
    y = op.Concat(*(op.Unsqueeze(y, [1]) for y in ys), axis=1)
    finals = [op.Concat(*(op.Unsqueeze(s, [0]) for s in own), axis=0) for own in states]
    if is_batch_first:
        return [op.Transpose(y, perm=[2, 0, 1, 3]), *(op.Transpose(s, perm=[1, 0, 2]) for s in finals)]
    return [y, *finals]


def _scan(
    op: Builder, node: ir.Node, step: Step, order: int, x: Any, running: Any, initial: Sequence[Any]
) -> list[Any]:
    """Y and the final states of one direction. A state stays where a sequence has ended, and Y is 0 there."""
    inner = op.for_body(node)
    before = [_placeholder(op, x) for _ in initial]
    now, runs = _placeholder(op, x), _placeholder(op, x)
    with recording(inner):
        stepped = step(inner, now, before)
        still = inner.Greater(runs, 0.0)
        after = [inner.Where(still, new, old) for new, old in zip(stepped, before, strict=True)]
        y = stepped[0] * runs
    for value in (*after, y):
        value.shape = ir.Shape([None, None])
    *final, stacked = op.node(
        "Scan",
        *initial,
        x,
        running,
        outputs=len(initial) + 1,
        body=body_graph(inner, inner.nodes, [*before, now, runs], [*after, y], "step"),
        num_scan_inputs=2,
        scan_input_directions=[order, order],
        scan_output_directions=[order],
    )
    any_step = op.ReduceMax(running, [0], keepdims=0)
    return [stacked, *(state * any_step for state in final)]


def _step(op: Builder, node: ir.Node, index: int, w: Any, r: Any, b: Any, p: Any) -> Step:
    """From the input and the states to the states after a step."""
    kind, flag, count = node.op_type, node.attributes.get_int, GATES[node.op_type]
    zeros = [op.scalar_like(0.0, w)] * 8
    w, r = ([op.Transpose(v, perm=[1, 0]) for v in _split(op, weight, count)] for weight in (w, r))
    b = zeros if b is None else _split(op, b, 2 * count)
    p_i, p_o, p_f = zeros[:3] if p is None else _split(op, p, 3)
    functions = _functions(node, index)

    def step(op: Builder, x: Any, states: Sequence[Any]) -> list[Any]:
        def clipped(value: Any) -> Any:
            clip = node.attributes.get_float("clip", 0.0)
            return op.Max(op.Min(value, clip), -clip) if clip else value

        def by_input(gate: int) -> Any:
            return op.MatMul(x, w[gate]) + b[gate]

        def by_state(gate: int, h: Any) -> Any:
            return op.MatMul(h, r[gate]) + b[count + gate]

        f, h = functions, states[0]
        s = [by_input(gate) + by_state(gate, h) for gate in range(count)]
        if kind == "RNN":
            return [f[0](op, clipped(s[0]))]
        if kind == "GRU":
            z, reset = f[0](op, clipped(s[0])), f[0](op, clipped(s[1]))
            is_linear_first = flag("linear_before_reset", 0)
            rest = reset * by_state(2, h) if is_linear_first else by_state(2, reset * h)
            return [(1.0 - z) * f[1](op, clipped(by_input(2) + rest)) + z * h]
        c = states[1]
        i = f[0](op, clipped(s[0] + p_i * c))
        forget = 1.0 - i if flag("input_forget", 0) else f[0](op, clipped(s[2] + p_f * c))
        after = forget * c + i * f[1](op, clipped(s[3]))
        return [f[0](op, clipped(s[1] + p_o * after)) * f[2](op, after), after]

    return step


def _functions(node: ir.Node, index: int) -> list[Callable[..., Any]]:
    """The activation functions of one direction."""
    defaults = DEFAULTS[node.op_type]
    names = node.attributes.get_strings("activations", [*defaults, *defaults])
    alphas = iter(node.attributes.get_floats("activation_alpha", []))
    betas = iter(node.attributes.get_floats("activation_beta", []))
    functions = []
    for name in names:
        parameters = [next(alphas, ALPHAS[name])] if name in ALPHAS else []
        parameters += [next(betas, BETAS[name])] if name in BETAS else []
        functions.append(lambda op, x, f=FUNCTIONS[name], own=parameters: f(op, x, *map(float, own)))
    return functions[index * len(defaults) :][: len(defaults)]


def _placeholder(op: Builder, like: Any) -> ir.Value:
    return ir.Value(name=op.unique_name("step"), shape=ir.Shape([None, None]), type=like.type)


def _split(op: Builder, value: Any, count: int) -> Sequence[Any]:
    return [value] if count == 1 else op.Split(value, axis=0, num_outputs=count, outputs=count)
