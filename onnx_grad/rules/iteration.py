"""Iteration: Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import Flow, structural_gradient
from onnx_grad.rules.bodies import Keeper, body_graph, placeholder
from onnx_grad.rules.handing_on import hand_on, in_form_of
from onnx_grad.rules.keeping import BackwardBody
from onnx_grad.wiring import Iteration, Scanned, certainly_runs, iteration

Contributions = list[tuple[ir.Value, ir.Value]]


def _changes_shape(node: ir.Node) -> str | None:
    """Why a loop cannot be differentiated: what it would have to keep has no common shape."""
    for state in iteration(node).states:
        before, after = known.dimensions(state.initial), known.dimensions(state.after)
        if before is None or after is None or not known.may_be_float(state.after):
            continue
        if len(before) != len(after) or any(map(_differ, before, after)):
            return (
                f"its state '{state.before.name}' starts with shape {state.initial.shape} and goes on with "
                f"{state.after.shape}; give it one shape, for instance by padding it"
            )
    return None


def _differ(a: known.Dimension, b: known.Dimension) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


@structural_gradient("Loop", refuses=_changes_shape)
def loop(op: Builder, node: ir.Node, flow: Flow, cotangents: Sequence[ir.Value | None]) -> Contributions:
    """hₜ₊₁, yₜ = f(hₜ, θ): dhₜ = (∂f/∂hₜ)ᵀ·(dhₜ₊₁, dyₜ), and dθ = Σₜ (∂f/∂θ)ᵀ·(dhₜ₊₁, dyₜ).

    The gradient is a `Scan` from the last iteration that ran to the first, whose states are dh and, for each
    captured tensor θ, the sum dθ so far: memory for one dθ, not for one an iteration. What an iteration needs
    of the forward pass is kept as one more stacked output of the loop: either all that it reads, or the
    states that it can be computed again from, whichever has fewer elements. ONNX Runtime does not scan
    tensors of length zero, so a loop that may end before its first iteration has the `Scan` in an `If`.
    """
    gradient = _Gradient(op, node, flow, cotangents)
    if not gradient.matters:
        return []
    results = gradient.scan(op) if certainly_runs(node) else _if_any(op, node, gradient)
    return gradient.contributions(op, results)


@structural_gradient("Scan")
def scan(op: Builder, node: ir.Node, flow: Flow, cotangents: Sequence[ir.Value | None]) -> Contributions:
    """hₜ₊₁, yₜ = f(hₜ, xₜ, θ): the same as for `Loop`, and dxₜ = (∂f/∂xₜ)ᵀ·(dhₜ₊₁, dyₜ).

    The gradient is a `Scan` in the opposite direction. The slices xₜ need not be kept: it reads them itself.
    """
    gradient = _Gradient(op, node, flow, cotangents)
    return gradient.contributions(op, gradient.scan(op)) if gradient.matters else []


class _Gradient:
    """The backward iteration of one `Loop` or `Scan` node."""

    def __init__(self, op: Builder, node: ir.Node, flow: Flow, cotangents: Sequence[ir.Value | None]) -> None:
        self._form = iteration(node)
        arriving = dict(zip(node.outputs, cotangents, strict=True))
        inner = op.for_body(node, repeats=True)
        states = [s for s in self._form.states if any(map(flow.is_active, (s.before, s.after, s.result)))]
        d_states = [hand_on(op, inner, s.initial, arriving[s.result], s.after, "cotangent") for s in states]
        writes = [w for w in self._form.writes if arriving[w.whole] is not None and flow.is_active(w.slice)]
        d_writes = [placeholder(op, w.slice, f"{w.slice.name}/cotangent") for w in writes]
        seeds = [(s.after, d.value) for s, d in zip(states, d_states, strict=True) if flow.is_active(s.after)]
        seeds += [(w.slice, d) for w, d in zip(writes, d_writes, strict=True)]
        pulled = flow.pull_back(inner, self._form.body, seeds)

        reached = [c for c in flow.captured if c in pulled]
        sums = [hand_on(op, inner, c, None, c, "cotangent") for c in reached]
        handed_on = [
            pulled[s.before] if s.before in pulled and flow.is_active(s.before) else inner.zeros_like(d.value)
            for s, d in zip(states, d_states, strict=True)
        ]
        handed_on += [_add(inner, total.value, pulled[total.primal]) for total in sums]
        self._carried = [*d_states, *sums]
        self._reads = [r for r in self._form.reads if r.slice in pulled and flow.is_active(r.slice)]
        outputs = [
            in_form_of(inner, value, d.before) for value, d in zip(handed_on, self._carried, strict=True)
        ]
        outputs += [in_form_of(inner, pulled[r.slice], r.slice) for r in self._reads]
        backward = BackwardBody(inner, self._form.body, outputs)

        self._operands = [
            Scanned(d, p, w.axis, w.backward)
            for w, p in zip(writes, d_writes, strict=True)
            if (d := arriving[w.whole]) is not None
        ]
        available = self._provide(op, node, backward)
        inputs = [*(d.before for d in self._carried), *(o.slice for o in self._operands)]
        self.matters = bool(sums or self._reads or any(flow.is_active(s.initial) for s in states))
        self._body = backward.graph(inputs, available, f"{node.name}/body_gradient")

    def scan(self, op: Builder) -> tuple[ir.Value, ...]:
        """Build the backward `Scan` with `op`."""
        results: tuple[ir.Value, ...] = op.node(
            "Scan",
            *self.initial(),
            *(o.whole for o in self._operands),
            outputs=len(self._carried) + len(self._reads),
            shared=False,
            body=self._body,
            num_scan_inputs=len(self._operands),
            scan_input_axes=[o.axis for o in self._operands],
            scan_input_directions=[int(not o.backward) for o in self._operands],
            scan_output_axes=[r.axis for r in self._reads] or None,
            scan_output_directions=[int(not r.backward) for r in self._reads] or None,
        )
        forms = [*(d.initial for d in self._carried), *(r.whole for r in self._reads)]
        for result, like in zip(results, forms, strict=True):
            result.type, result.shape = like.type, like.shape
        return results

    def initial(self) -> list[ir.Value]:
        """What the states of the backward `Scan` start as."""
        return [d.initial for d in self._carried]

    def iterations(self, op: Builder) -> ir.Value:
        """How many iterations ran, in a tensor of shape [1]."""
        return op.Shape(self._operands[0].whole, start=0, end=1)

    def contributions(self, op: Builder, results: Sequence[ir.Value]) -> Contributions:
        """The results with what they are cotangents of."""
        carried = zip(self._carried, results, strict=False)
        read = zip(self._reads, results[len(self._carried) :], strict=True)
        return [
            *((d.primal, d.in_shape(op, result, d.primal)) for d, result in carried),
            *((r.whole, result) for r, result in read),
        ]

    def _provide(self, op: Builder, node: ir.Node, backward: BackwardBody) -> dict[ir.Value, ir.Value]:
        """Where the backward body finds values of the forward body: slices to read, kept or operands."""
        slices = {r.slice: r for r in self._form.reads}
        if not op.repeats:
            slices |= _written(self._form)
        kept = backward.smallest(free=slices)
        read = [v for v in slices if backward.needs(v, kept)]
        if not (kept or read or self._operands):
            # Something must say how many iterations ran: a slice, or the number of each.
            read = list(slices)[:1]
            kept = [] if read else [self._form.body.inputs[0]]
        sources = {value: slices[value] for value in read}
        if kept:
            keeper = Keeper(op, node)
            sources |= {value: _kept(keeper, value) for value in kept}
        available = {value: placeholder(op, value, f"{value.name}/kept") for value in sources}
        self._operands += [
            Scanned(source.whole, available[value], source.axis, source.backward)
            for value, source in sources.items()
        ]
        return available


def _add(op: Builder, total: ir.Value, term: ir.Value) -> ir.Value:
    """`total + term`; a matrix product that nothing else reads adds to the total itself."""
    product = term.producer()
    if product is None or product.op_type != "Gemm" or len(product.inputs) > 2 or term.uses():
        return op.Add(total, term)
    attributes = {name: attribute.value for name, attribute in product.attributes.items()}
    return op.Gemm(*product.inputs, total, **attributes)


def _kept(keeper: Keeper, value: ir.Value) -> Scanned:
    """The stack of a body's `value` over the iterations: one that there is already, or one more output."""
    form, piece = iteration(keeper.node), keeper.counterpart(value)
    written = _written(form).get(piece)
    if written is not None:
        return written
    keeper.give_out(form.body, piece)
    stack = keeper.add_output(value)
    _extend(keeper.node, "scan_output_axes")
    _extend(keeper.node, "scan_output_directions")
    return Scanned(stack, piece)


def _written(form: Iteration) -> dict[ir.Value, Scanned]:
    """The values of a body that the node gives out in any case, as they are or through an `Identity`."""
    found = {}
    for written in form.writes:
        if written.whole.name:
            producer = written.slice.producer()
            found[written.slice] = written
            if producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
                found[producer.inputs[0]] = written
    return found


def _extend(node: ir.Node, attribute: str) -> None:
    """One more output of a `Scan`: along axis 0, in order."""
    if attribute in node.attributes:
        node.attributes.add(ir.AttrInt64s(attribute, [*node.attributes[attribute].as_ints(), 0]))


def _if_any(op: Builder, node: ir.Node, gradient: _Gradient) -> tuple[ir.Value, ...]:
    """The backward `Scan` if any iteration ran, else its initial states."""
    some, none = op.for_body(node), op.for_body(node)
    results = gradient.scan(some)
    initial = gradient.initial()
    branches: dict[str, Any] = {
        "then_branch": body_graph(some, some.nodes, [], results, "any_iteration"),
        "else_branch": body_graph(none, none.nodes, [], initial, "no_iteration"),
    }
    any_ran = op.Squeeze(op.Greater(gradient.iterations(op), 0))
    handed: tuple[ir.Value, ...] = op.node("If", any_ran, outputs=len(results), shared=False, **branches)
    for value, result in zip(handed, results, strict=True):
        value.type, value.shape = result.type, result.shape
    return handed
