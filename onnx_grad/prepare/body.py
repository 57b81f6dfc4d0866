"""Writing a function body for one node, by what is known of that node."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx

Dimension = int | str | None


class Body:
    """The body that is to stand for `node`: its nodes so far, and questions about the node.

    Any operator of the default domain is a method: positional arguments are names of values or lists of
    integers, keyword arguments are attributes, and the name of the first output comes back.

    Args:
        node: A call of an operator of the default domain.
        version: The opset of the model.
        types: The types of the model's values, as far as they are known.
    """

    def __init__(self, node: onnx.NodeProto, version: int, types: Mapping[str, onnx.TypeProto]) -> None:
        self.name = node.name
        self.version = version
        self._node = node
        self._types = types
        self._formals = onnx.defs.get_schema(node.op_type, version).inputs
        self._written: list[onnx.NodeProto] = []
        self._constants: dict[bytes, str] = {}
        self._counts: Counter[str] = Counter()

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return functools.partial(self._write, op_type)

    def _write(self, op_type: str, *operands: str | Sequence[int], **attributes: Any) -> str:
        inputs = [o if isinstance(o, str) else self.integers(o) for o in operands]
        output = self._unique(f"{self._node.name}/{op_type}")
        self._written.append(onnx.helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def _unique(self, name: str) -> str:
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name]}"

    def integers(self, values: Sequence[int]) -> str:
        """A constant 1-D int64 tensor."""
        return self._constant(onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(values)], values))

    def number(self, value: float, element_type: int) -> str:
        """A constant scalar."""
        return self._constant(onnx.helper.make_tensor("", element_type, [], [value]))

    def _constant(self, tensor: onnx.TensorProto) -> str:
        key = tensor.SerializeToString(deterministic=True)
        if key not in self._constants:
            self._constants[key] = self._write("Constant", value=tensor)
        return self._constants[key]

    def input(self, index: int) -> str | None:
        """The name that the body has for an operand, `None` where it is left out."""
        return str(self._formals[index].name) if self._actual(index) else None

    def required(self, index: int) -> str:
        """The name that the body has for an operand that cannot be left out."""
        return str(self._formals[index].name)

    def element_type(self, index: int) -> int:
        """The element type of an operand, 0 where it is unknown."""
        return int(self._tensor(index).elem_type)

    def dimensions(self, index: int) -> list[Dimension] | None:
        """The dimensions of an operand, integers, symbols or `None`; `None` for an unknown rank."""
        tensor = self._tensor(index)
        if not tensor.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]

    def size(self, index: int, axis: int) -> int | None:
        """One dimension of an operand where it is a known integer."""
        dims = self.dimensions(index)
        found = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        return found if isinstance(found, int) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        for attribute in self._node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def wants(self, index: int) -> bool:
        """Whether the node has output `index`."""
        return index < len(self._node.output) and bool(self._node.output[index])

    def function(self, results: Sequence[str | None]) -> onnx.FunctionProto:
        """The function that gives `results`, with the nodes that they need.

        The node loses the operands and outputs that it leaves out, as the function does not have them.
        """
        indices = [index for index in range(len(self._node.input)) if self._actual(index)]
        wanted = [index for index in range(len(self._node.output)) if self.wants(index)]
        formals = [self.required(index) for index in indices]
        # An output of its own for each: one value may be given out twice, or be an operand.
        outputs = [self._write("Identity", str(results[index])) for index in wanted]
        actual = [self._actual(index) for index in indices], [self._node.output[index] for index in wanted]
        del self._node.input[:], self._node.output[:]
        self._node.input.extend(actual[0])
        self._node.output.extend(actual[1])
        opsets = [onnx.helper.make_opsetid("", self.version)]
        return onnx.helper.make_function(
            "", self._node.op_type, formals, outputs, self._live(outputs), opsets
        )

    def _live(self, outputs: Iterable[str]) -> list[onnx.NodeProto]:
        needed = set(outputs)
        kept = []
        for node in reversed(self._written):
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        return kept[::-1]

    def _actual(self, index: int) -> str:
        return str(self._node.input[index]) if index < len(self._node.input) else ""

    def _tensor(self, index: int) -> onnx.TypeProto.Tensor:
        return self._types.get(self._actual(index), onnx.TypeProto()).tensor_type
