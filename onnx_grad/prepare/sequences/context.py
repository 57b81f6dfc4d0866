"""The walk through a model that expresses its sequences over tensors, node by node."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnx_grad.liveness import detach, drop
from onnx_grad.path import OBSTACLE
from onnx_grad.prepare.sequences.forms import Form
from onnx_grad.prepare.sequences.optionals import Option
from onnx_grad.prepare.sequences.runs import NoTensorFormError
from onnx_grad.prepare.sequences.sites import Site, Writer, graph_of
from onnx_grad.wiring import bodies, iteration

Handler: TypeAlias = "Callable[[Walk, ir.Node], None]"


@dataclass(frozen=True)
class _Dropped:
    """A sequence that no node makes any longer."""

    sequence: ir.Value
    form: Form | Option
    site: Site


class Walk:
    """Expresses the sequences of one model over tensors.

    Each node that makes a sequence is noted with the tensors that stand for it; each node that reads a tensor
    of one is replaced by nodes that read those. A node that makes a sequence stays for as long as something
    else reads the sequence.

    Args:
        graph: The main graph.
        is_active: Whether a derivative flows through a value; other sequences stay what they are.
        handlers: What to do at a node of each operator.

    Attributes:
        writer: Writes the new nodes.
        forms: What stands for each sequence and optional.
        reasons: Why nodes could not be replaced.
        changed: Whether anything was replaced.
    """

    def __init__(
        self, graph: ir.Graph, is_active: Callable[[ir.Value], bool], handlers: Mapping[str, Handler]
    ) -> None:
        self.writer = Writer(graph)
        self.forms: dict[ir.Value, Form | Option] = {}
        self.reasons: dict[ir.Node, str] = {}
        self.changed = False
        self._graph = graph
        self._is_active = is_active
        self._handlers = handlers
        self._copies: set[ir.Value] = set()
        self._obstacles: dict[ir.Value, str] = {}
        self._read: set[ir.Value] = set()
        self._dropped: list[_Dropped] = []

    def visit(self, nodes: Iterable[ir.Node]) -> None:
        """Express what `nodes`, in topological order, and those of their bodies make and read."""
        for node in tuple(nodes):
            handler = self._handlers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if handler is None:
                for body in bodies(node):
                    self.visit(body)
                continue
            self._read.update(o for o in node.outputs if o.uses() or o.is_graph_output())
            try:
                handler(self, node)
            except NoTensorFormError as error:
                node.meta[OBSTACLE] = f"{error}; {_ADVICE}"
                self.reasons[node] = str(error)
                self._obstacles.update((output, str(error)) for output in node.outputs)

    def active(self, value: ir.Value | None) -> bool:
        """Whether what reads a sequence is to be replaced; in copied bodies, that is so for all of them."""
        return value is not None and (value in self._copies or self._is_active(value))

    def adopt(self, nodes: Iterable[ir.Node]) -> None:
        """Count copied nodes among those through which derivatives flow."""
        for node in nodes:
            self._copies.update(node.outputs)
            for body in bodies(node):
                self._copies.update(body.inputs)
                self.adopt(body)

    def adopt_body(self, body: ir.Graph) -> None:
        """Count a copied body among those through which derivatives flow."""
        self._copies.update(body.inputs)
        self.adopt(body)

    def form(self, value: ir.Value) -> Form:
        """What stands for a sequence."""
        form = self.forms.get(value)
        if isinstance(form, Form):
            return form
        raise self._no_form(value)

    def option(self, value: ir.Value) -> Option:
        """What stands for an optional."""
        option = self.forms.get(value)
        if isinstance(option, Option):
            return option
        raise self._no_form(value)

    def _no_form(self, value: ir.Value) -> NoTensorFormError:
        if value in self._obstacles:
            return NoTensorFormError(self._obstacles[value])
        if value.is_graph_input():
            return NoTensorFormError(
                f"'{value.name}' comes from outside as a {kind_of(value)}, so what it holds is not known"
            )
        return NoTensorFormError(f"what the {kind_of(value)} '{value.name}' holds is not known")

    def before(self, node: ir.Node) -> Site:
        """Where the inputs of `node` can be read."""
        return Site.before(self.writer, node)

    def after(self, node: ir.Node) -> Site:
        """Where the outputs of `node` can be read."""
        return Site.after(self.writer, node)

    def replace(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """Let `values` be read in the place of the outputs of `node`, which goes."""
        added = [
            new
            for old, value in zip(node.outputs, values, strict=True)
            if (new := self._hand_over(old, value, self.before(node))) is not value
        ]
        detach([node])
        graph_of(node).remove(node)
        self.changed = True
        self.visit(producer for value in added if (producer := value.producer()) is not None)

    def _hand_over(self, old: ir.Value, new: ir.Value, site: Site) -> ir.Value:
        """Let `new` be read in the place of `old`, and be called so; through an `Identity` where need be."""
        if not old.name:
            return new
        is_free = new.producer() in self.writer.written and new not in self.writer.named
        if not is_free or new.is_graph_output() or new.graph is not old.graph:
            with site.writing() as op:
                new = op.Identity(new)
                new.type = old.type
        self.writer.named.add(new)
        _take_place(old, new)
        return new

    def supersede(self, old: ir.Node, new: ir.Node, kept: Mapping[ir.Value, ir.Value]) -> None:
        """Put `new` into the place of `old`; the values of `kept` are read in the place of its outputs."""
        self.after(old).put([new])
        for value, instead in kept.items():
            instead.type = value.type
            _take_place(value, instead)
        drop(old)
        self.changed = True

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Inside, a copy is changed that counts only where no `NoTensorFormError` is raised."""
        changed, dropped = self.changed, len(self._dropped)
        try:
            yield
        except NoTensorFormError:
            self.changed = changed
            del self._dropped[dropped:]
            raise

    def drop_sequence(self, sequence: ir.Value, form: Form | Option, site: Site) -> None:
        """Note what stands for a sequence that no node makes any longer."""
        self.forms[sequence] = form
        self._dropped.append(_Dropped(sequence, form, site))

    def finish(self) -> None:
        """Make the sequences again that something still reads, and drop what nothing reads."""
        for dropped in self._dropped:
            sequence = dropped.sequence
            if sequence.uses() or sequence.is_graph_output():
                with dropped.site.writing() as op:
                    again = dropped.form.sequence(op, sequence.type)
                again.name, again.type = sequence.name, sequence.type
                sequence.replace_all_uses_with(again, replace_graph_outputs=True)
        self._drop_unread(self._graph)
        self._blame(self._graph)
        self.writer.finish()

    def _blame(self, graph: ir.Graph, owner: ir.Node | None = None) -> None:
        """Let nodes that make a sequence say why it stays: the reason is with a node that reads it."""
        for node in reversed(tuple(graph)):
            for body in bodies(node):
                self._blame(body, node)
            made = [output for output in node.outputs if holds_tensors(output)]
            readers = [use.node for output in made for use in output.uses()]
            readers += [owner for output in made if output.is_graph_output() and owner is not None]
            reasons = [reader.meta[OBSTACLE] for reader in readers if OBSTACLE in reader.meta]
            if reasons and OBSTACLE not in node.meta:
                node.meta[OBSTACLE] = reasons[0]

    def _drop_unread(self, graph: ir.Graph) -> None:
        for node in reversed(tuple(graph)):
            if self._is_ours(node) and not any(o.uses() or o.is_graph_output() for o in node.outputs):
                detach([node])
                graph.remove(node)
                continue
            for body in bodies(node):
                self._drop_unread(body)

    def _is_ours(self, node: ir.Node) -> bool:
        """Whether nothing but what was replaced can have needed `node`."""
        return node in self.writer.written or any(
            output in self.forms and output in self._read for output in node.outputs
        )


_ADVICE = "export the model with that known, or cut the flow with stop=[…]"


def holds_tensors(value: ir.Value | None) -> bool:
    """Whether `value` is a sequence or an optional."""
    # A tensor is told at once; that something is not an instance of a class of onnx_ir takes microseconds.
    if value is None or isinstance(value.type, ir.TensorType):
        return False
    return isinstance(value.type, (ir.SequenceType, ir.OptionalType))


def kind_of(value: ir.Value) -> str:
    """What a value that is no tensor is called."""
    return "sequence" if isinstance(value.type, ir.SequenceType) else "optional"


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read in the place of `old`, under its name.

    Its shape stays what was found: what was inferred of `old` may rest on a sequence, and onnx infers that
    all its elements, even those that a loop appends, have the sizes of the first ones.
    """
    if old.shape != new.shape:
        forget_shapes(use.node for use in old.uses())
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def forget_shapes(nodes: Iterable[ir.Node]) -> None:
    """Forget the shapes of what `nodes` and all behind them give: they rest on one that is wrong."""
    pending, seen = list(nodes), set[ir.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for output in node.outputs:
            output.shape = None
            pending += (use.node for use in output.uses())
        for body in bodies(node):
            pending += body
        if node.op_type in ("Loop", "Scan"):
            form = iteration(node)
            for value in (*(state.before for state in form.states), *(read.slice for read in form.reads)):
                value.shape = None
