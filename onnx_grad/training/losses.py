"""What training makes small: the losses, as PyTorch's `torch.nn.functional` computes them.

A loss is a small frozen object that builds its formula, out of standard operators, over one output of a
model and a target. All are computed in float32 where the output is of half precision, and none overflows
where its value does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import InputError, NotDifferentiableError

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Labels:
    """What a target of integer labels may hold.

    Attributes:
        classes: How many classes there are; `None` where that is not known before.
        ignored: The label of what does not count.
        axis: The axis of the classes in the output.
    """

    classes: int | None
    ignored: int
    axis: int


@dataclass(frozen=True)
class Loss(ABC):
    """A scalar that compares one output of a model with a target.

    Attributes:
        reduction: `"mean"` over the elements that count, or their `"sum"`.
    """

    reduction: Reduction = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise InputError(
                f"{type(self).__name__}: reduction='{self.reduction}' gives no scalar; use 'mean' or 'sum'"
            )

    @abstractmethod
    def build(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        """The scalar loss of `prediction` against `target`, in nodes of `op`."""

    @abstractmethod
    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape | None]:
        """The element type and shape of the target that belongs to `prediction`."""

    def labels(self, prediction: ir.Value) -> Labels | None:
        """What a target of integer labels may hold."""
        del prediction
        return None

    def reduced(self, op: Builder, elements: ir.Value) -> ir.Value:
        """The mean or the sum of all `elements`."""
        reduce = op.ReduceMean if self.reduction == "mean" else op.ReduceSum
        return reduce(elements, keepdims=0)


@dataclass(frozen=True)
class _Elementwise(Loss):
    """A loss of which each element of the prediction has its own."""

    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape | None]:
        return _type(prediction), prediction.shape

    def build(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        prediction, target = _wide(op, prediction), _wide(op, target)
        return self.reduced(op, self.elements(op, prediction, target))

    @abstractmethod
    def elements(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        """The loss of each element."""


@dataclass(frozen=True)
class MeanSquaredError(_Elementwise):
    """(x − t)², as `mse_loss`."""

    def elements(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        difference = op.Sub(prediction, target)
        return op.Mul(difference, difference)


@dataclass(frozen=True)
class L1(_Elementwise):
    """|x − t|, as `l1_loss`."""

    def elements(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        return op.Abs(op.Sub(prediction, target))


@dataclass(frozen=True)
class Huber(_Elementwise):
    """½d² up to |d| = δ, δ(|d| − ½δ) beyond, for d = x − t, as `huber_loss`.

    Attributes:
        delta: Where the square turns into a straight line.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta > 0.0:
            raise InputError(f"Huber: delta={self.delta} is not positive")

    def elements(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        distance = op.Abs(op.Sub(prediction, target))
        inner = op.Min(distance, op.scalar_like(self.delta, distance))
        return op.Mul(inner, op.Sub(distance, op.Mul(inner, 0.5)))


@dataclass(frozen=True)
class BinaryCrossEntropy(_Elementwise):
    """−w·t·log σ(x) − (1 − t)·log(1 − σ(x)) of logits x, as `binary_cross_entropy_with_logits`.

    Attributes:
        pos_weight: The weight w of the positive examples: a number, or one for each entry of the last axis.
    """

    pos_weight: float | Sequence[float] | None = None

    def elements(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        x, t = prediction, target
        # −log σ(x), of which the other term is this plus x.
        rest = _softplus(op, op.Neg(x))
        if self.pos_weight is not None:
            less_one = op.constant(np.asarray(self.pos_weight) - 1.0, _type(x))
            rest = op.Mul(rest, op.Add(op.Mul(less_one, t), 1.0))
        return op.Add(op.Mul(op.Sub(op.scalar_like(1.0, t), t), x), rest)


@dataclass(frozen=True)
class Cosine(Loss):
    """1 − cos(x, t) of the vectors along an axis, as `cosine_embedding_loss` with the label one.

    Attributes:
        axis: The axis of the vectors.
    """

    axis: int = -1

    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape | None]:
        return _type(prediction), prediction.shape

    def build(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        x, t = _wide(op, prediction), _wide(op, target)

        def dot(a: ir.Value, b: ir.Value) -> ir.Value:
            return op.ReduceSum(op.Mul(a, b), [self.axis], keepdims=0)

        lengths = op.Sqrt(op.Mul(op.Add(dot(x, x), 1e-12), op.Add(dot(t, t), 1e-12)))
        cosine = op.Div(dot(x, t), lengths)
        return self.reduced(op, op.Sub(op.scalar_like(1.0, cosine), cosine))


@dataclass(frozen=True)
class NegativeLogLikelihood(Loss):
    """−w[t]·x[t] of log-probabilities x and integer labels t, as `nll_loss`.

    The mean is Σ w[t]·loss / Σ w[t] over the labels that are not ignored, as PyTorch's; where all of a batch
    are ignored, it is not a number.

    Attributes:
        weight: The weight w of each class.
        ignore_index: Examples with this label do not count.
        axis: The axis of the classes.
    """

    weight: Sequence[float] | None = None
    ignore_index: int = -100
    axis: int = 1

    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape | None]:
        if prediction.shape is None:
            return ir.DataType.INT64, None
        axis = self._axis(prediction)
        dims = [dim for index, dim in enumerate(prediction.shape) if index != axis]
        return ir.DataType.INT64, ir.Shape(dims)

    def labels(self, prediction: ir.Value) -> Labels | None:
        return Labels(self.classes(prediction), self.ignore_index, self._axis(prediction))

    def classes(self, prediction: ir.Value) -> int | None:
        """How many classes there are, where the shape of the prediction tells."""
        if prediction.shape is None:
            return None
        size = prediction.shape[self._axis(prediction)]
        return size if isinstance(size, int) else None

    def build(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        self._check_weight(prediction)
        return self._likelihood(op, _wide(op, prediction), prediction, target, smoothing=0.0)

    def _likelihood(
        self, op: Builder, x: ir.Value, prediction: ir.Value, target: ir.Value, smoothing: float
    ) -> ir.Value:
        axis = self._axis(prediction)
        counts = op.Not(op.Equal(target, op.constant(self.ignore_index, target.dtype or ir.DataType.INT64)))
        label = op.Where(counts, self._in_range(op, x, target, axis), op.scalar_like(0, target))
        zero = op.scalar_like(0.0, x)
        loss = op.Neg(op.Squeeze(op.GatherElements(x, op.Unsqueeze(label, [axis]), axis=axis), [axis]))
        importance = op.CastLike(counts, x)
        if self.weight is not None:
            weight = op.constant(self.weight, _type(x))
            of_label = op.Gather(weight, label)
            loss = op.Mul(loss, of_label)
            importance = op.Where(counts, of_label, zero)
        total = op.ReduceSum(op.Where(counts, loss, zero), keepdims=0)
        if smoothing:
            every = x if self.weight is None else op.Mul(x, self._along_classes(op, x, axis))
            smooth = op.Neg(op.ReduceSum(every, [axis], keepdims=0))
            spread = op.ReduceSum(op.Where(counts, smooth, zero), keepdims=0)
            number = op.CastLike(op.Squeeze(op.Shape(x, start=axis, end=axis + 1 or None)), x)
            total = op.Add(op.Mul(total, 1.0 - smoothing), op.Mul(op.Div(spread, number), smoothing))
        if self.reduction == "sum":
            return total
        return op.Div(total, op.ReduceSum(importance, keepdims=0))

    def _along_classes(self, op: Builder, x: ir.Value, axis: int) -> ir.Value:
        """The weights of the classes, to be stretched over the other axes of `x`."""
        weight = op.constant(self.weight, _type(x))
        rank = known.rank(x)
        if axis < 0 or rank is not None:
            behind = -axis - 1 if rank is None else rank - axis % rank - 1
            return op.Reshape(weight, [-1, *[1] * behind]) if behind else weight
        rest = op.Sub(op.Size(op.Shape(x)), axis + 1)
        ones = op.Expand(op.constant([1], ir.DataType.INT64), op.Reshape(rest, [1]))
        return op.Reshape(weight, op.Concat(op.constant([-1], ir.DataType.INT64), ones, axis=0))

    def _in_range(self, op: Builder, x: ir.Value, target: ir.Value, axis: int) -> ir.Value:
        """Negative labels, which would count from the end, as one that is out of range."""
        number = op.CastLike(op.Squeeze(op.Shape(x, start=axis, end=axis + 1 or None)), target)
        return op.Where(op.Less(target, op.scalar_like(0, target)), number, target)

    def _axis(self, prediction: ir.Value) -> int:
        rank = known.rank(prediction)
        if rank is None:
            return self.axis
        if rank == 1 and self.axis == 1:
            return 0
        if not -rank <= self.axis < rank:
            raise InputError(
                f"{type(self).__name__}: '{prediction.name}' has rank {rank} and no axis {self.axis} for the "
                "classes; give axis="
            )
        return self.axis % rank

    def _check_weight(self, prediction: ir.Value) -> None:
        number = self.classes(prediction)
        if self.weight is not None and number is not None and len(self.weight) != number:
            raise InputError(
                f"{type(self).__name__}: weight has {len(self.weight)} entries, and '{prediction.name}' has "
                f"{number} classes"
            )


@dataclass(frozen=True)
class CrossEntropy(NegativeLogLikelihood):
    """−w[t]·log softmax(x)[t] of logits x and integer labels t, as `cross_entropy`.

    Attributes:
        label_smoothing: The part of the target that is spread evenly over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise InputError(f"CrossEntropy: label_smoothing={self.label_smoothing} is not within 0 and 1")

    def build(self, op: Builder, prediction: ir.Value, target: ir.Value) -> ir.Value:
        self._check_weight(prediction)
        log_probability = op.LogSoftmax(_wide(op, prediction), axis=self._axis(prediction))
        return self._likelihood(op, log_probability, prediction, target, self.label_smoothing)


LOSSES: Mapping[str, type[Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "l1": L1,
    "huber": Huber,
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "negative_log_likelihood": NegativeLogLikelihood,
    "cosine": Cosine,
}


def _wide(op: Builder, value: ir.Value) -> ir.Value:
    """`value` in float32 where it is of half precision."""
    return op.widened(value) if value.dtype in known.HALF_TYPES else value


def _type(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise NotDifferentiableError(
            f"loss: the type of '{value.name}' is unknown; declare it in the model's value_info"
        )
    return value.dtype


def _softplus(op: Builder, x: ir.Value) -> ir.Value:
    """log(1 + exp(x))."""
    if x.dtype != ir.DataType.DOUBLE:
        return op.Softplus(x)
    # ONNX Runtime has no Softplus in float64. Max shares a tie evenly, so that the slope at 0 is one half.
    fraction = op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0))
    return op.Add(op.Max(x, op.scalar_like(0.0, x)), fraction)
