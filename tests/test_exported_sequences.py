"""Lists of tensors as PyTorch's exporters write them, against its autograd."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, List, Optional  # noqa: UP035  (torch.jit.script resolves these)

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.prepare.validate import all_nodes

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
Tensor = torch.Tensor  # for torch.jit.script, which resolves annotations
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own age

OF_SEQUENCES = ("Sequence", "Optional")


def sequences_in(model: onnx.ModelProto) -> set[str]:
    """The operators of sequences and optionals in a model, its functions left aside."""
    types = {node.op_type for node in all_nodes(model.graph)}
    return {name for name in types if any(part in name for part in OF_SEQUENCES)}


def exported(
    module: Any,
    inputs: Mapping[str, Any],
    *,
    varying: bool = True,
    scripted: bool = False,
    axes: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """The module by the TorchScript exporter; the sizes of all axes vary, or of some, or of none."""
    file = io.BytesIO()
    axes = axes or {name: list(range(tensor.ndim)) for name, tensor in inputs.items()}
    torch.onnx.export(
        torch.jit.script(module) if scripted else module,
        tuple(inputs.values()),
        file,
        opset_version=17,
        input_names=list(inputs),
        dynamic_axes=axes if varying else None,
        dynamo=False,
    )
    return onnx.load_from_string(file.getvalue())


def exported_by_dynamo(module: Any, inputs: Mapping[str, Any], *, varying: bool = True) -> onnx.ModelProto:
    """The same by the newer exporter."""
    pytest.importorskip("onnxscript", reason="the exporter needs it")
    sizes = tuple(dict.fromkeys(range(t.ndim), torch.export.Dim.DYNAMIC) for t in inputs.values())
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        dynamic_shapes=sizes if varying else None,
        verbose=False,
    )
    return program.model_proto


def assert_equals_autograd(model: onnx.ModelProto, module: Any, inputs: Mapping[str, Any]) -> None:
    """The value and the gradients of all float inputs and parameters, to 1e-5 of the largest."""
    assert sequences_in(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    parameters = {name: weight for name, weight in module.named_parameters() if name in weights}
    given = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in inputs.items()}
    value = module(*given.values())
    dy = torch.randn_like(value)
    sources = {**{n: t for n, t in given.items() if t.is_floating_point()}, **parameters}
    expected = torch.autograd.grad(
        value, list(sources.values()), dy, allow_unused=True, materialize_grads=True
    )
    function = onnx_grad.GradientFunction(model, wrt=list(sources))
    (y,) = (output.name for output in model.graph.output)
    result = function(**{n: t.numpy() for n, t in inputs.items()}, cotangents={y: dy.numpy()})
    np.testing.assert_allclose(result.values[y], value.detach().numpy(), rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, gradient in zip(sources, expected, strict=True):
        actual = result.gradients[name]
        np.testing.assert_allclose(actual, gradient.numpy(), rtol=1e-5, atol=1e-5 * largest, err_msg=name)


def normal(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Stacks(torch.nn.Module):
    """Joining lists of tensors of any rank: each tensor is reshaped by its rank."""

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        a = torch.hstack([x, x.sin()])
        b = torch.vstack([v, v * v])
        c = torch.dstack([v.cos(), v])
        d, e = torch.atleast_2d(v, v.exp())
        (f,) = torch.atleast_3d((v.tanh(),))
        g = torch.column_stack([v, v.sin()])
        h = torch.hstack([v, v.cos()])
        terms = (a * a, b * b, c * c, d * e, f * f, g * g, h * h)
        return torch.stack([(term * (i + 1)).sum() for i, term in enumerate(terms)])


@pytest.mark.parametrize("varying", [True, False], ids=["any size", "one size"])
def test_stacks_of_the_dynamo_exporter(varying: bool) -> None:
    inputs = {"x": normal(3, 4), "v": normal(4)}
    model = exported_by_dynamo(Stacks(), inputs, varying=varying)
    assert "SequenceMap" in sequences_in(model)
    assert_equals_autograd(model, Stacks(), inputs)
    if varying:
        assert_equals_autograd(model, Stacks(), {"x": normal(2, 5), "v": normal(7)})


class Bags(torch.nn.Module):
    """Sums of embeddings: one more bag is appended in each iteration."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(7, 3, mode=mode)

    def forward(self, x: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(words, offsets) * x


def test_embedding_bag() -> None:
    torch.manual_seed(0)
    module = Bags("sum")
    inputs = {"x": normal(3, 3), "words": torch.tensor([1, 2, 4, 5, 4]), "offsets": torch.tensor([0, 2, 4])}
    model = exported_by_dynamo(module, inputs, varying=False)
    assert_equals_autograd(model, module, inputs)
    assert_equals_autograd(model, module, {**inputs, "offsets": torch.tensor([0, 1, 2])})


class Columns(torch.nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.hstack([x, w.sin(), x * w])


class Chunks(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pieces = x.chunk(4, 1)
        return pieces[0].sum() * pieces[1].exp()


class Quarters(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pieces = x.tensor_split(4, 1)
        return pieces[0].sum() * pieces[1].exp().sum() + pieces[-1].sum()


class Between(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pieces = x.tensor_split([1, 4], 1)
        return pieces[0].sum() * pieces[1].exp().sum() + (pieces[2] * pieces[2]).sum()


class AtLeast(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.atleast_3d(x, x.sin())
        return a * b


TRACED = {
    "hstack": Columns,
    "chunk": Chunks,
    "tensor_split": Quarters,
    "split at": Between,
    "atleast": AtLeast,
}


@pytest.mark.parametrize("varying", [True, False], ids=["any size", "one size"])
@pytest.mark.parametrize("name", TRACED)
def test_traced(name: str, varying: bool) -> None:
    module = TRACED[name]()
    names = ["x", "w"] if name == "hstack" else ["x"]
    model = exported(module, {n: normal(3, 6) + i for i, n in enumerate(names)}, varying=varying)
    for shape in ((3, 6), (2, 9), (5, 7)) if varying else ((3, 6),):
        assert_equals_autograd(model, module, {n: normal(*shape) + i for i, n in enumerate(names)})


def test_hstack_of_vectors() -> None:
    """The exporter leaves a branch for matrices that does not fit vectors."""
    inputs = {"x": normal(4), "w": normal(4) + 1}
    model = exported(Columns(), inputs)
    assert_equals_autograd(model, Columns(), inputs)
    assert_equals_autograd(model, Columns(), {"x": normal(3), "w": normal(3) + 1})


class Repeats(torch.nn.Module):
    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return torch.repeat_interleave(x, times, dim=0).sin()


def test_repeat_interleave() -> None:
    """A loop appends what differs in size."""
    inputs = {"x": normal(3, 2), "times": torch.tensor([2, 1, 3])}
    model = exported(Repeats(), inputs, axes={"x": [0], "times": [0]})
    for times in ([2, 1, 3], [1, 1, 1], [4, 2]):
        assert_equals_autograd(model, Repeats(), {"x": normal(len(times), 2), "times": torch.tensor(times)})


class Cell(torch.nn.Module):
    """A learned step."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input = torch.nn.Linear(3, 3)
        self.of_state = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = (self.of_input(x) + self.of_state(h)).chunk(2, 0)
        return torch.tanh(torch.cat([b, a], 0))


class Recurrence(torch.nn.Module):
    """A recurrent network of one's own: a list of inputs is read, a list of outputs grows."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inputs = x.unbind(0)
        outputs: List[Tensor] = []  # noqa: UP006
        for i in range(len(inputs)):
            h = self.cell(inputs[i], h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Growing(torch.nn.Module):
    """A list that starts with a tensor, and whose last one is read in each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        outputs = [x]
        for _ in range(int(n)):
            outputs.append(torch.tanh(self.linear(outputs[-1])))
        return torch.cat(outputs, 1)


class Layers(Growing):
    """A list of states, each of which changes."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        states = [x, 2 * x]
        for _ in range(int(n)):
            states[0] = torch.tanh(self.linear(states[0]))
            states[1] = states[1] * states[0]
        return states[0] + states[1]


class Chosen(Growing):
    """One of tensors of different shapes, by a number."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        tensors = [x, x.sin(), x[:1].cos()]
        return self.linear(tensors[int(n)])


class Pieces(Growing):
    """A loop over pieces, the last of which may be smaller."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        outputs: List[Tensor] = []  # noqa: UP006
        for piece in x.split(2, 0):
            outputs += [torch.tanh(self.linear(piece)).sum(0)]
        return torch.stack(outputs, 0) * n


class ReadBack(Growing):
    """A list that one loop fills and another reads from its end."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        rows: List[Tensor] = []  # noqa: UP006
        for row in x.unbind(1):
            rows.append(torch.sin(row))
        total = torch.zeros_like(rows[0])
        for i in range(len(rows)):
            total = total + rows[len(rows) - 1 - i] * float(i)
        return total * n


class Optionals(Growing):
    """Something that is there or not."""

    def scaled(self, x: Tensor, factor: Optional[Tensor]) -> Tensor:  # noqa: UP045
        if factor is not None:
            return x * factor
        return x

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        factor: Optional[Tensor] = None  # noqa: UP045
        if bool(n > 2):
            factor = torch.sin(x)
        return self.scaled(self.linear(x), factor)


class Lists(Growing):
    """One list or another."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        tensors = [x, x.sin()] if bool(n > 2) else [x.cos(), x.exp()]
        return self.linear(tensors[0]) * tensors[1]


SCRIPTED = (Growing, Layers, Chosen, Pieces, ReadBack, Optionals, Lists)


def test_recurrence_over_lists() -> None:
    torch.manual_seed(0)
    module = Recurrence()
    model = exported(module, {"x": normal(5, 4, 3), "h": normal(4, 3)}, scripted=True)
    for length, batch in ((5, 4), (2, 2), (1, 6)):
        assert_equals_autograd(model, module, {"x": normal(length, batch, 3), "h": normal(batch, 3)})


@pytest.mark.parametrize("module_of", SCRIPTED)
def test_scripted(module_of: type[Any]) -> None:
    torch.manual_seed(0)
    module = module_of()
    model = exported(module, {"x": normal(5, 3), "n": torch.tensor(2)}, scripted=True)
    for batch, n in ((5, 2), (4, 1), (3, 0)) if module_of is Chosen else ((5, 2), (4, 3), (1, 1)):
        assert_equals_autograd(model, module, {"x": normal(batch, 3), "n": torch.tensor(n)})
