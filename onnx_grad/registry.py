"""The table of gradient rules, and the declared state of every operator.

Every operator is in exactly one state: it has a rule, its derivative is zero everywhere, it is expanded by
its function body, or it is refused with a reason.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

Thunk = Callable[[], ir.Value | None]
InputCotangent = ir.Value | Thunk | None
Rule = Callable[..., InputCotangent | Sequence[InputCotangent]]
Refusal = Callable[[ir.Node], str | None]

OperatorId = tuple[str, str]


class State(enum.Enum):
    """What is declared of an operator."""

    RULE = "has a rule"
    ZERO = "derivative is zero everywhere"
    EXPANDED = "expanded by its function body"
    REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        state: The declared state.
        rule: For `State.RULE`, the function that builds the cotangents of the inputs.
        arity: How many cotangents of outputs `rule` takes; `None` for any number.
        broadcasts: Whether the inputs are stretched to the output's shape, to be undone after the rule.
        frozen: Positions of float inputs that have no derivative (a ratio, a scale factor).
        refuses: Gives the reason why a particular node cannot be differentiated, or `None`.
        convention: The value chosen where the function has no derivative.
        reason: For `State.REFUSED` and `State.ZERO`, why.
        rounds: For `State.REFUSED`, whether integer outputs stand for real numbers, so that their being
            integers does not end the path.
    """

    state: State
    rule: Rule | None = None
    arity: int | None = None
    broadcasts: bool = False
    frozen: frozenset[int] = field(default_factory=frozenset)
    refuses: Refusal | None = None
    convention: str = ""
    reason: str = ""
    rounds: bool = False


_table: dict[OperatorId, Entry] = {}


def gradient(
    op_type: str,
    *,
    domain: str = "",
    broadcasts: bool = False,
    frozen: Sequence[int] = (),
    refuses: Refusal | None = None,
    convention: str = "",
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

    Returns:
        The decorator, which gives the function back unchanged.
    """

    def register(rule: Rule) -> Rule:
        _table[_identifier(domain, op_type)] = Entry(
            State.RULE,
            rule=rule,
            arity=_cotangent_count(rule),
            broadcasts=broadcasts,
            frozen=frozenset(frozen),
            refuses=refuses,
            convention=convention,
        )
        return rule

    return register


def derivative_is_zero(*op_types: str, domain: str = "", reason: str = "") -> None:
    """Declare operators through which no derivative flows, such as comparisons and `Floor`."""
    for op_type in op_types:
        _table[_identifier(domain, op_type)] = Entry(State.ZERO, reason=reason)


def refused(*op_types: str, domain: str = "", reason: str, rounds: bool = False) -> None:
    """Declare operators that cannot be differentiated, with a reason that a user can act on.

    Args:
        *op_types: Their types.
        domain: Their domain.
        reason: Why, and what to do instead.
        rounds: Their integer outputs stand for real numbers, as quantised ones do: a gradient that is zero
            because of them would surprise, so it is refused as well.
    """
    for op_type in op_types:
        _table[_identifier(domain, op_type)] = Entry(State.REFUSED, reason=reason, rounds=rounds)


def lookup(domain: str, op_type: str, opset: int | None = None) -> Entry:
    """The declared state of an operator.

    An operator that nothing is declared of is expanded when its specification has a function body, and
    refused otherwise.

    Args:
        domain: The operator's domain.
        op_type: The operator's type.
        opset: Version of the domain, to find the function body; the newest known when `None`.
    """
    entry = _table.get(_identifier(domain, op_type))
    if entry is not None:
        return entry
    if domain in ("", "ai.onnx") and _has_function_body(op_type, opset):
        return Entry(State.EXPANDED)
    where = f"domain '{domain}'" if domain else "the default domain"
    return Entry(
        State.REFUSED,
        reason=f"no gradient rule is known for operator '{op_type}' of {where}; register one with "
        f"@onnx_grad.gradient('{op_type}', domain='{domain}'), or cut the flow with stop=[…]",
    )


def operators() -> dict[OperatorId, Entry]:
    """Everything that is declared, by (domain, operator type)."""
    return dict(_table)


def unregister(op_type: str, domain: str = "") -> None:
    """Forget what is declared of an operator."""
    _table.pop(_identifier(domain, op_type), None)


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
