"""Which operators act on each element by itself."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.path import Step

_ELEMENTWISE = frozenset(
    "Abs Acos Acosh Add Asin Asinh Atan Atanh Cast Celu Clip Cos Cosh Div Elu Erf Exp Gelu HardSigmoid "
    "HardSwish Identity LeakyRelu Log Max Mean Min Mish Mod Mul Neg PRelu Pow Reciprocal Relu Selu Shrink "
    "Sigmoid Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where".split()
)


def is_elementwise(step: Step, like: ir.Value) -> bool:
    """Whether each element of what `step` gives certainly varies with one element of what it reads only.

    Args:
        step: A node on a path.
        like: A value whose shape all the others have to have.
    """
    node = step.node
    if node.domain != "" or node.op_type not in _ELEMENTWISE or step.captured:
        return False
    operands = (node.inputs[index] for index in step.wanted)
    results = (node.outputs[index] for index in step.reached)
    return all(v is not None and known.same_shape(v, like) for v in (*operands, *results))
