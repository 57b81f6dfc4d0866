"""What became of a case."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.StrEnum):
    """What became of a case."""

    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"
    UNEVALUABLE = "unevaluable"
    NOT_DIFFERENTIABLE = "not differentiable"
    OUT_OF_SCOPE = "out of scope"


# Those of a case that has a derivative.
DIFFERENTIABLE = (Outcome.RIGHT, Outcome.WRONG, Outcome.REFUSED, Outcome.UNEVALUABLE)


class Precision(enum.StrEnum):
    """In what a gradient was compared with differences."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    NOTHING = "nothing to compare"


@dataclass(frozen=True)
class Finding:
    """What became of a case at one point.

    Attributes:
        outcome: What became of it.
        reason: Why; where it is right, any reservation.
        precision: Where it is right, what its gradient was compared in.
    """

    outcome: Outcome
    reason: str = ""
    precision: Precision = Precision.NOTHING


@dataclass(frozen=True)
class Verdict:
    """What became of a case, and why.

    Attributes:
        case: Its name.
        operator: Its operator.
        outcome: What became of it.
        reason: Why; where it is right, any reservation.
        seconds: How long it took.
        precision: Where it is right, what its gradient was compared in.
    """

    case: str
    operator: str
    outcome: Outcome
    reason: str
    seconds: float
    precision: Precision = Precision.NOTHING
