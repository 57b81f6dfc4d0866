"""What would be differentiated, by which rule, and everything that blocks, without doing it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
import rich.box
import rich.console
import rich.table
from rich.text import Text

import onnx_grad.rules  # noqa: F401  (fills the table)
from onnx_grad.path import Path, Step
from onnx_grad.prepare import Model, prepare
from onnx_grad.registry import Quantization, State
from onnx_grad.selection import Names, Selection
from onnx_grad.transforms.tracing import expand_path


@dataclass(frozen=True)
class OperatorReport:
    """The nodes of one operator on the way from `wrt` to `of`.

    Attributes:
        operator: Type of the operator, with its domain unless that is the default one.
        nodes: How many of them are on the way.
        state: The declared state of the operator.
        rule: The function that builds the gradient, as `module.function`.
        convention: What the rule gives where the function has no derivative.
    """

    operator: str
    nodes: int
    state: str
    rule: str
    convention: str


@dataclass(frozen=True)
class Blocker:
    """A node that cannot be differentiated."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class InspectionReport:
    """What `vjp` would do with a model.

    Attributes:
        opset: The opset at which the model would be differentiated.
        nodes: How many nodes the forward graph has.
        wrt: The tensors to differentiate with respect to, with their types and shapes.
        of: The tensors to differentiate, with their types and shapes.
        without_path: Those in `wrt` that no differentiable path leads from: their gradient is zeros.
        operators: The operators on the way, most frequent first.
        expanded: Operators that were replaced by their function bodies on the way.
        quantization: What is done where numbers are rounded, if that is not refused.
        blockers: Every node that cannot be differentiated.
    """

    opset: int
    nodes: int
    wrt: dict[str, str]
    of: dict[str, str]
    without_path: list[str]
    operators: list[OperatorReport]
    expanded: list[str]
    quantization: str | None
    blockers: list[Blocker]

    @property
    def differentiable(self) -> bool:
        """Whether nothing blocks."""
        return not self.blockers

    def to_json(self) -> str:
        """The report as one JSON object."""
        content = {"differentiable": self.differentiable, **dataclasses.asdict(self)}
        return json.dumps(content, indent=2)

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        on_the_way = sum(operator.nodes for operator in self.operators)
        yield f"opset {self.opset}, {self.nodes} nodes, {on_the_way} of them on the way"
        yield _tensors("with respect to", self.wrt)
        yield _tensors("of", self.of)
        if self.without_path:
            yield Text("no path, gradient is zeros: " + ", ".join(self.without_path))
        if self.expanded:
            yield "expanded by their function bodies: " + ", ".join(self.expanded)
        if self.quantization:
            yield f"quantization: {self.quantization}"
        yield self._operator_table()
        if self.blockers:
            yield self._blocker_table()
            yield f"{len(self.blockers)} node(s) block."
        else:
            yield "Nothing blocks."

    def __str__(self) -> str:
        text = io.StringIO()
        rich.console.Console(file=text, width=110).print(self)
        return text.getvalue()

    def _operator_table(self) -> rich.table.Table:
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        table.add_column("operator", no_wrap=True)
        table.add_column("nodes", justify="right", no_wrap=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("where there is no derivative")
        for operator in self.operators:
            rule = operator.rule.partition(".")[0] or operator.state
            cells = (operator.operator, operator.nodes, rule, operator.convention)
            table.add_row(*(Text(str(cell)) for cell in cells))
        return table

    def _blocker_table(self) -> rich.table.Table:
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="What blocks", title_justify="left")
        for column in ("operator", "nodes", "reason"):
            table.add_column(column, overflow="fold")
        nodes: dict[tuple[str, str], list[str]] = {}
        for blocker in self.blockers:
            nodes.setdefault((blocker.operator, blocker.reason), []).append(blocker.node)
        for (operator, reason), names in nodes.items():
            table.add_row(Text(operator), Text(", ".join(names)), Text(reason))
        return table


def inspect(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
) -> InspectionReport:
    """Report what `vjp` would do with the same arguments, and everything that stands in its way.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: As for `vjp`.
        stop: As for `vjp`.
        quantization: As for `vjp`.

    Returns:
        The report; it prints as tables.

    Raises:
        ModelError: The model is damaged or inconsistent.
        UnknownNameError: A name is not a tensor of the model.
        NotDifferentiableError: A named tensor is not of a float type.
    """
    forward = prepare(model)
    before = len(forward.model.graph)
    forward, selection, path, expanded = expand_path(forward, wrt, of, stop, quantization)
    return InspectionReport(
        opset=forward.model.graph.opset_imports.get("", 0),
        nodes=before,
        wrt={str(x.name): _describe(x) for x in _asked_for(selection, path)},
        of={str(y.name): _describe(y) for y in selection.of},
        without_path=[str(x.name) for x in _asked_for(selection, path) if not path.reaches(x)],
        operators=_operators(path),
        expanded=sorted(expanded),
        quantization=quantization,
        blockers=[Blocker(str(step.node.name), _operator(step), reason) for step, reason in path.blocked()],
    )


def _asked_for(selection: Selection, path: Path) -> list[ir.Value]:
    return [x for x in selection.wrt if not selection.optional or path.reaches(x)]


def _operators(path: Path) -> list[OperatorReport]:
    counts = Counter(_operator(step) for step in path.all_steps())
    first = {_operator(step): step for step in reversed(list(path.all_steps()))}
    return [
        OperatorReport(
            operator,
            count,
            _state(first[operator]),
            _rule(first[operator]),
            first[operator].entry.convention,
        )
        for operator, count in counts.most_common()
    ]


def _state(step: Step) -> str:
    return step.entry.state.value


def _operator(step: Step) -> str:
    node = step.node
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _rule(step: Step) -> str:
    entry = step.entry
    rule = entry.rule or entry.structural or entry.composition
    if entry.state is not State.RULE or rule is None:
        return ""
    module = rule.__module__.removeprefix("onnx_grad.rules.")
    return f"{module}.{rule.__name__}"


def _tensors(role: str, tensors: dict[str, str]) -> Text:
    shown = [f"{name} {kind}" for name, kind in list(tensors.items())[:6]]
    more = f" and {len(tensors) - 6} more" if len(tensors) > 6 else ""
    return Text(f"{role}: " + ", ".join(shown) + more)


def _describe(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return dtype if value.shape is None else f"{dtype}{value.shape}"
