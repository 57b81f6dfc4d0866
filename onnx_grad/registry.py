"""The table of gradient rules, and the declared state of every operator.

Every operator is in exactly one state: it has a rule, its derivative is zero everywhere, it is expanded by
its function body, or it is refused with a reason.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

import onnx
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.errors import InputError, RuleError

Thunk = Callable[[], ir.Value | None]
InputCotangent = ir.Value | Thunk | None
Rule = Callable[..., InputCotangent | Sequence[InputCotangent]]
Refusal = Callable[[ir.Node], str | None]


class Flow(Protocol):
    """What the rule of a node with bodies can ask about the derivatives in them."""

    @property
    def captured(self) -> Sequence[ir.Value]:
        """The values that the bodies read from outside and whose cotangents are needed."""

    def is_active(self, value: ir.Value) -> bool:
        """Whether the cotangent of `value` is needed and may differ from zero."""

    def pull_back(
        self, op: Builder, body: ir.Graph, seeds: Sequence[tuple[ir.Value, ir.Value]]
    ) -> Mapping[ir.Value, ir.Value]:
        """Build with `op` the cotangents of what `body` reads, given those of its outputs."""


class ForwardFlow(Protocol):
    """What the forward rule of a node with bodies can ask about the derivatives in them."""

    def is_active(self, value: ir.Value) -> bool:
        """Whether the tangent of `value` is needed and may differ from zero."""

    def tangent(self, value: ir.Value) -> ir.Value | None:
        """The tangent of what the node reads, if it has one."""

    def push_forward(
        self, op: Builder, body: ir.Graph, seeds: Sequence[tuple[ir.Value, ir.Value]]
    ) -> Mapping[ir.Value, ir.Value]:
        """Build with `op` the tangents of what `body` computes, given those of its inputs."""

    def roots(self) -> Sequence[ir.Value]:
        """What nodes that were extended before read; a body that holds them has to compute it."""

    def extended(self, node: ir.Node) -> None:
        """Note that the bodies of `node` compute tangents as well now."""

    def replaced(self, old: ir.Value, new: ir.Value) -> None:
        """Note that `new` stands in the place of `old`."""


StructuralRule = Callable[..., Sequence[tuple[ir.Value, ir.Value]]]
Composition = Callable[[Builder, ir.Node], ir.Value | Sequence[ir.Value | None]]

OperatorId = tuple[str, str]

Quantization = Literal["straight-through"]


class State(enum.Enum):
    """What is declared of an operator."""

    RULE = "has a rule"
    ZERO = "derivative is zero everywhere"
    EXPANDED = "expanded by its function body"
    REFUSED = "refused"


@dataclass(frozen=True)
class Linearity:
    """How an operator is linear: applied to tangents of its operands, it gives the tangent of its result.

    It is linear in some operands together, with what is added to their function left out (`together`), or in
    each of several factors alone (`factors`), with further operands that are added (`added`).

    Attributes:
        together: Positions of the operands; `None` for all of them.
        factors: Positions of the factors; `None` for all operands.
        added: Positions of what is added to their product, and may be left out.
        broadcasts: Whether operands are stretched to the shape of the result.
        unless: Tells of a node for which it does not hold.
        joined: Builds the sum of the terms of two factors in another way, of the node and both tangents;
            `None` from it where two terms are better.
    """

    together: tuple[int, ...] | None = ()
    factors: tuple[int, ...] | None = ()
    added: tuple[int, ...] = ()
    broadcasts: bool = False
    unless: Callable[[ir.Node], bool] | None = None
    joined: Callable[[Builder, ir.Node, ir.Value, ir.Value], ir.Value | None] | None = None


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        state: The declared state.
        rule: For `State.RULE`, the function that builds the cotangents of the inputs.
        structural: For `State.RULE` of an operator with bodies, the function that builds the cotangents of
            everything they read.
        structural_tangents: For the same operators, the function that builds the tangents of their outputs.
        function: For `State.EXPANDED` of an operator that a user defined, its body.
        composition: For `State.RULE` of an operator that others compose, the function that builds it of them.
        arity: How many cotangents of outputs `rule` takes; `None` for any number.
        broadcasts: Whether the inputs are stretched to the output's shape, to be undone after the rule.
        frozen: Positions of float inputs that have no derivative (a ratio, a scale factor).
        refuses: Gives the reason why a particular node cannot be differentiated, or `None`.
        convention: The value chosen where the function has no derivative.
        reason: For `State.REFUSED` and `State.ZERO`, why.
        rounds: Whether its integers stand for real numbers, so that their being integers does not end the
            path, and its rule takes and gives float cotangents for them.
        quantization: What is done about rounding, where the row holds for that only.
        linearity: How the operator is linear, where that is declared.
        flat: Tells of a node, for `State.RULE`, whose derivative is zero wherever it has one.
    """

    state: State
    rule: Rule | None = None
    structural: StructuralRule | None = None
    structural_tangents: StructuralRule | None = None
    composition: Composition | None = None
    function: onnx.FunctionProto | None = None
    arity: int | None = None
    broadcasts: bool = False
    frozen: frozenset[int] = field(default_factory=frozenset)
    refuses: Refusal | None = None
    convention: str = ""
    reason: str = ""
    rounds: bool = False
    quantization: Quantization | None = None
    linearity: Linearity | None = None
    flat: Callable[[ir.Node], bool] | None = None

    def is_flat(self, node: ir.Node) -> bool:
        """Whether no derivative flows through `node`."""
        return self.state is State.ZERO or (self.flat is not None and self.flat(node))


_table: dict[OperatorId, Entry] = {}
_straight_through: dict[OperatorId, Entry] = {}

# Why an operator that has a rule in the second table only is refused without it.
_ROUNDS = (
    "it computes with rounded numbers, so its derivative is zero or undefined; "
    'quantization="straight-through" takes rounding for the identity, or differentiate the model before it '
    "is quantized"
)


def gradient(
    op_type: str,
    *,
    domain: str = "",
    broadcasts: bool = False,
    frozen: Sequence[int] = (),
    refuses: Refusal | None = None,
    convention: str = "",
    quantization: Quantization | None = None,
    rounds: bool = False,
    flat: Callable[[ir.Node], bool] | None = None,
) -> Callable[[Rule], Rule]:
    """Register the decorated function as the gradient rule of an operator.

    The rule is called as `rule(op, node, *cotangents)`: `op` builds nodes (`op.MatMul(a, b)`, or arithmetic
    on values), `node` is the forward node, and there is one cotangent for each output that the function has a
    parameter for, `None` where none arrives. It returns the cotangent of the first input, or a sequence
    aligned with the inputs; an entry is a value of the shape and dtype of that input, `None` for zero, or a
    function without arguments that builds the value when it is wanted.

    Args:
        op_type: Operator type. A later registration replaces an earlier one.
        domain: Its domain; the default domain is empty.
        broadcasts: The inputs are stretched to the shape of the first output, as for `Add`; the rule gives
            cotangents of that shape, and they are summed over the stretched axes afterwards.
        frozen: Positions of float inputs without a derivative.
        refuses: Called with a node before any work; a returned text is why it cannot be differentiated.
        convention: What the rule gives where the function has no derivative, in a few words.
        quantization: Register the rule for this choice of `vjp` only, beside what holds without it. Such a
            rule takes and gives cotangents of integers, which are float32.
        rounds: The integer outputs stand for real numbers, so that derivatives flow through them.
        flat: Called with a node; whether its derivative is zero wherever it has one, so that none is taken.

    Returns:
        The decorator, which gives the function back unchanged.
    """

    def register(rule: Rule) -> Rule:
        _table_for(quantization)[_identifier(domain, op_type)] = Entry(
            State.RULE,
            rule=rule,
            arity=_cotangent_count(rule),
            broadcasts=broadcasts,
            frozen=frozenset(frozen),
            refuses=refuses,
            convention=convention,
            quantization=quantization,
            rounds=rounds,
            flat=flat,
        )
        return rule

    return register


def structural_gradient(
    op_type: str, *, refuses: Refusal | None = None
) -> Callable[[StructuralRule], StructuralRule]:
    """Register the decorated function as the gradient rule of an operator that runs bodies.

    The rule is called as `rule(op, node, flow, cotangents)`: `flow` pulls cotangents back through a body, and
    `cotangents` has one for each output, `None` where none arrives. It returns pairs of a value that the node
    reads, as an operand or inside a body, and a contribution to its cotangent.

    Args:
        op_type: Operator type of the default domain.
        refuses: Called with a node before any work; a returned text is why it cannot be differentiated.
    """

    def register(rule: StructuralRule) -> StructuralRule:
        _table["", op_type] = Entry(State.RULE, structural=rule, refuses=refuses)
        return rule

    return register


def structural_tangents(op_type: str) -> Callable[[StructuralRule], StructuralRule]:
    """Register the decorated function as the forward rule of an operator that runs bodies.

    The rule is called as `rule(op, node, flow)`: `flow` gives the tangents of what the node reads, and pushes
    them through a body. It returns pairs of an output and its tangent; the node itself may be replaced by one
    that computes both.

    Args:
        op_type: Operator type of the default domain, which has a `structural_gradient`.
    """

    def register(rule: StructuralRule) -> StructuralRule:
        _table["", op_type] = replace(_table["", op_type], structural_tangents=rule)
        return rule

    return register


def composition(
    op_type: str,
    *,
    domain: str = "",
    frozen: Sequence[int] = (),
    refuses: Refusal | None = None,
    convention: str = "",
    quantization: Quantization | None = None,
    rounds: bool = False,
) -> Callable[[Composition], Composition]:
    """Register the decorated function as what an operator is composed of, which gives its gradient.

    The function is called as `define(op, node)`, builds with `op` what the node computes out of operators
    that have rules, and returns the value of its first output, or one for each output, `None` for those that
    have no derivative. The gradient is that of what it builds. The forward node stays what it is: of the
    composition, only what the gradient reads becomes part of the graph.

    Args:
        op_type: Operator type.
        domain: Its domain.
        frozen: Positions of float inputs without a derivative.
        refuses: Called with a node before any work; a returned text is why it cannot be differentiated.
        convention: As for `gradient`.
        quantization: As for `gradient`.
        rounds: As for `gradient`.
    """

    def register(define: Composition) -> Composition:
        _table_for(quantization)[_identifier(domain, op_type)] = Entry(
            State.RULE,
            composition=define,
            frozen=frozenset(frozen),
            refuses=refuses,
            convention=convention,
            quantization=quantization,
            rounds=rounds,
        )
        return define

    return register


def linear(
    *op_types: str,
    together: Sequence[int] | None = (),
    factors: Sequence[int] | None = (),
    added: Sequence[int] = (),
    broadcasts: bool = False,
    unless: Callable[[ir.Node], bool] | None = None,
    joined: Callable[[Builder, ir.Node, ir.Value, ir.Value], ir.Value | None] | None = None,
) -> None:
    """Declare of operators of the default domain, which have rules, that they are linear: see `Linearity`."""
    declared = Linearity(
        None if together is None else tuple(together),
        None if factors is None else tuple(factors),
        tuple(added),
        broadcasts,
        unless,
        joined,
    )
    for op_type in op_types:
        _table["", op_type] = replace(_table["", op_type], linearity=declared)


def define_function(op_type: str, function: onnx.FunctionProto, *, domain: str) -> None:
    """Define an operator of a custom domain by an ONNX function; its gradient follows.

    Where the operator is on the way from `wrt` to `of`, its nodes are replaced by the function's, so that
    ONNX Runtime needs no kernel for it there.

    Args:
        op_type: Operator type. A later definition, or rule, replaces an earlier one.
        function: Its body; inputs, outputs and attributes are matched as for a call of a model-local
            function. Its own name and domain do not matter. (Of a function of onnxscript, it is
            `to_function_proto()`.)
        domain: Its domain.

    Raises:
        RuleError: The domain is one that ONNX defines, or the function has no nodes.
    """
    if domain == "" or domain.startswith("ai.onnx"):
        raise RuleError(f"define_function: '{domain}' is a domain of the ONNX standard; use one of your own")
    if not function.node:
        raise RuleError(f"define_function: the function given for '{op_type}' has no nodes")
    _table[domain, op_type] = Entry(State.EXPANDED, function=function)


def derivative_is_zero(*op_types: str, domain: str = "", reason: str = "") -> None:
    """Declare operators through which no derivative flows, such as comparisons and `Floor`."""
    for op_type in op_types:
        _table[_identifier(domain, op_type)] = Entry(State.ZERO, reason=reason)


def refused(*op_types: str, domain: str = "", reason: str) -> None:
    """Declare operators that cannot be differentiated, with a reason that a user can act on.

    Args:
        *op_types: Their types.
        domain: Their domain.
        reason: Why, and what to do instead.
    """
    for op_type in op_types:
        _table[_identifier(domain, op_type)] = Entry(State.REFUSED, reason=reason)


def lookup(
    domain: str,
    op_type: str,
    opset: int | None = None,
    quantization: Quantization | None = None,
    functions: Container[OperatorId] = (),
) -> Entry:
    """The declared state of an operator.

    An operator that nothing is declared of is expanded when it is a function of the model or its
    specification has a function body, and refused otherwise.

    Args:
        domain: The operator's domain.
        op_type: The operator's type.
        opset: Version of the domain, to find the function body; the newest known when `None`.
        quantization: What is done about rounding; what is declared for that comes first.
        functions: Domain and name of the functions of the model.
    """
    identifier = _identifier(domain, op_type)
    for table in (_table_for(quantization), _table):
        if identifier in table:
            return table[identifier]
    if identifier in _straight_through:
        return Entry(State.REFUSED, reason=_ROUNDS, rounds=_straight_through[identifier].rounds)
    if identifier in functions:
        return Entry(State.EXPANDED)
    if domain in ("", "ai.onnx") and _has_function_body(op_type, opset):
        return Entry(State.EXPANDED)
    where = f"domain '{domain}'" if domain else "the default domain"
    return Entry(
        State.REFUSED,
        reason=f"no gradient rule is known for operator '{op_type}' of {where}; register one with "
        f"@onnx_grad.gradient('{op_type}', domain='{domain}'), or cut the flow with stop=[…]",
    )


def has_own_rule(op_type: str) -> bool:
    """Whether the rules of a standard operator are the project's, and none is a user's, who may wrap them."""
    entries = (lookup("", op_type, quantization=choice) for choice in (None, *get_args(Quantization)))
    rules = [entry.rule for entry in entries]
    return all(rule is not None and rule.__module__.startswith("onnx_grad.rules.") for rule in rules)


def operators() -> dict[OperatorId, Entry]:
    """Everything that is declared, by (domain, operator type), as it is without a choice of quantization."""
    identifiers = (*_straight_through, *_table)
    return {identifier: lookup(*identifier) for identifier in identifiers}


def unregister(op_type: str, domain: str = "") -> None:
    """Forget what is declared of an operator."""
    for table in (_table, _straight_through):
        table.pop(_identifier(domain, op_type), None)


def _table_for(quantization: Quantization | None) -> dict[OperatorId, Entry]:
    if quantization is None:
        return _table
    if quantization not in get_args(Quantization):
        offered = ", ".join(f"'{choice}'" for choice in get_args(Quantization))
        raise InputError(f"there is no quantization '{quantization}'; there is: {offered}, or None")
    return _straight_through


def _identifier(domain: str, op_type: str) -> OperatorId:
    return ("" if domain == "ai.onnx" else domain, op_type)


def _cotangent_count(rule: Rule) -> int | None:
    parameters = list(inspect.signature(rule).parameters.values())[2:]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    return len(parameters)


@functools.cache
def _has_function_body(op_type: str, opset: int | None) -> bool:
    if not onnx.defs.has(op_type):
        return False
    schema = (
        onnx.defs.get_schema(op_type)
        if opset is None
        else onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    )
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]
