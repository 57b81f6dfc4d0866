"""Every form that operators had since opset 7: outputs and gradients are those of the original file.

Each model runs at its own opset in ONNX Runtime, so that neither onnx's version converter nor a rule is
believed: the forward values must be equal, and the gradients those of finite differences of the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.oracle import evaluator, given_names, numerical_gradient, quiet_vjp, with_shapes

NEWEST = onnx.defs.onnx_opset_version()

# Attributes that became inputs behind those that there were, and the opset of the change.
MOVED = {
    **dict.fromkeys([("Clip", "min"), ("Clip", "max"), ("Pad", "pads"), ("Pad", "value")], 11),
    **dict.fromkeys([("Slice", "starts"), ("Slice", "ends"), ("Slice", "axes"), ("TopK", "k")], 10),
    **dict.fromkeys([(op, "axes") for op in ("ReduceSum", "Squeeze", "Unsqueeze")], 13),
    **dict.fromkeys(
        [(f"Reduce{name}", "axes") for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare".split()],
        18,
    ),
    ("Dropout", "ratio"): 12,
    ("Split", "split"): 13,
    ("Upsample", "scales"): 9,
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def spread(*shape: int, seed: int = 0) -> np.ndarray:
    """Values apart from one another and from zero, in a random order."""
    count = int(np.prod(shape))
    return (np.random.default_rng(seed).permutation(count).reshape(shape) - count // 2 + 0.3) * 0.37


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# Their gradients need the rank of an input.
NEED_RANKS = ("GridSample", "Resize", "Upsample")

X = spread(2, 3, 4)
IMAGE = spread(1, 2, 4, 5)
POSITIVE = np.abs(spread(2, 3, 4)) + 0.5


@dataclass
class Form:
    """A node as it is written from the opset `first` to `last`; float64 arrays are what is differentiated."""

    op_type: str
    inputs: Mapping[str, np.ndarray | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    first: int = 7
    last: int = NEWEST
    outputs: int = 1
    single: bool = False  # in float32, for which alone ONNX Runtime has kernels
    constants: tuple[str, ...] = ()

    def opsets(self) -> list[int]:
        """The oldest and the newest opset, and those between at which the form changed."""
        moved = {opset for (op_type, _), opset in MOVED.items() if op_type == self.op_type}
        return sorted({self.first, self.last, *(v for v in moved if self.first < v < self.last)})

    def dtype(self) -> type:
        return np.float32 if self.single else np.float64

    def point(self) -> dict[str, np.ndarray]:
        """All inputs, constant ones too."""
        given = {name: array for name, array in self.inputs.items() if array is not None}
        return {n: a.astype(self.dtype()) if a.dtype == np.float64 else a for n, a in given.items()}

    def model(self, opset: int) -> onnx.ModelProto:
        """The model of the node at `opset`, in an IR version of that time."""
        attributes, names = (
            dict(self.attributes),
            [n if a is not None else "" for n, a in self.inputs.items()],
        )
        constants = {name: self.point()[name] for name in self.constants}
        for (op_type, name), moved_at in MOVED.items():
            if op_type == self.op_type and opset >= moved_at and self._takes(name):
                if name in attributes:
                    constants[name] = self._tensor(name, attributes.pop(name))
                names.append(name if name in constants else "")
        variable = {name: array for name, array in self.point().items() if name not in constants}
        # Before IR version 4 initializers were listed among the inputs.
        listed = {**variable, **constants} if opset < 9 else variable
        outputs = [f"y{i}" for i in range(self.outputs)]
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node(self.op_type, names, outputs, **attributes)],
                "form",
                [_info(name, array) for name, array in listed.items()],
                [],
                [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
            ),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=3 if opset < 9 else 10,
        )
        _declare_outputs(model, outputs, self.dtype())
        return model

    def _takes(self, name: str) -> bool:
        """Whether an attribute is given, or one behind it, so that its place has to be kept."""
        order = [attribute for op_type, attribute in MOVED if op_type == self.op_type]
        return any(later in self.attributes for later in order[order.index(name) :])

    def _tensor(self, name: str, value: Any) -> np.ndarray:
        if name in ("min", "max", "value"):
            return np.asarray(value, self.dtype())
        if name in ("ratio", "scales"):
            return np.asarray(value, np.float32)
        return np.atleast_1d(np.asarray(value, np.int64))


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, dtype, array.shape)


def _declare_outputs(model: onnx.ModelProto, names: list[str], dtype: type) -> None:
    """As inferred, or of `dtype` and unknown shape where the old operator infers nothing."""
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    for value in inferred.graph.output:
        if not value.type.tensor_type.elem_type:
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        model.graph.output.append(value)


def statistics() -> dict[str, np.ndarray]:
    """The inputs of BatchNormalization."""
    scale, bias, mean, variance = (normal(3, seed=i) for i in range(1, 5))
    return {"x": normal(2, 3, 2, 2), "scale": scale, "b": bias, "mean": mean, "var": np.abs(variance) + 0.5}


def of_elements() -> dict[str, np.ndarray]:
    """The same with statistics for each element of an instance."""
    scale, bias, mean, variance = (normal(3, 2, 2, seed=i) for i in range(1, 5))
    return {"x": normal(2, 3, 2, 2), "scale": scale, "b": bias, "mean": mean, "var": np.abs(variance) + 0.5}


def resizes() -> Iterator[Form]:
    """Growing, shrinking and both, by factors that the converter could and could not know."""
    for scales in ([1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.6, 2.3]):
        for mode in ("nearest", "linear"):
            yield Form("Upsample", {"x": IMAGE}, {"scales": scales, "mode": mode}, last=9, single=True)
    for scales in ([1, 1, 0.6, 0.5], [1, 1, 1.6, 0.6]):
        for mode in ("nearest", "linear"):
            inputs = {"x": IMAGE, "scales": floats(*scales)}
            for constants in ((), ("scales",)):
                yield Form("Resize", inputs, {"mode": mode}, 10, 10, single=True, constants=constants)
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        mode = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": rounding}
        inputs = {"x": IMAGE, "roi": floats(), "scales": floats(1, 1, 1.6, 0.6)}
        yield Form("Resize", inputs, mode, 11, 12, single=True, constants=("roi", "scales"))
    sized = {"x": IMAGE, "roi": floats(), "scales": floats(), "sizes": integers(1, 2, 6, 3)}
    yield Form("Resize", sized, {"mode": "linear"}, 11, 12, single=True, constants=("roi", "scales"))
    half_pixel = {"x": IMAGE, "roi": None, "scales": floats(1, 1, 1.6, 0.6)}
    yield Form("Resize", half_pixel, {"mode": "cubic"}, 13, single=True)


def reductions() -> Iterator[Form]:
    for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split():
        x = POSITIVE if name == "LogSum" else X
        yield Form(f"Reduce{name}", {"x": x}, {"axes": [0, 2], "keepdims": 0})
        yield Form(f"Reduce{name}", {"x": x}, {"axes": [-2]}, 11)
    yield Form("ReduceSum", {"x": X})
    yield Form("ReduceMean", {"x": X})


def softmaxes() -> Iterator[Form]:
    for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        single = op_type == "Hardmax"
        yield Form(op_type, {"x": X}, single=single)
        yield Form(op_type, {"x": X}, first=12, last=13, single=single)
        for axis, first in ((0, 7), (1, 7), (2, 7), (-1, 11), (-2, 11)):
            yield Form(op_type, {"x": X}, {"axis": axis}, first, single=single)


def windows() -> Iterator[Form]:
    x, filters = normal(1, 2, 5, 6), normal(3, 2, 2, 3)
    cut: dict[str, Any] = {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]}
    yield Form("MaxPool", {"x": spread(1, 2, 5, 6)}, cut, single=True)
    yield Form(
        "MaxPool", {"x": spread(1, 2, 5, 6)}, {**cut, "dilations": [2, 1], "ceil_mode": 1}, 10, single=True
    )
    yield Form("AveragePool", {"x": x}, {**cut, "count_include_pad": 1}, single=True)
    yield Form("AveragePool", {"x": x}, {**cut, "ceil_mode": 1}, 10, single=True)
    yield Form("LpPool", {"x": np.abs(x) + 0.3}, cut, single=True)
    yield Form("Conv", {"x": x, "w": filters, "b": normal(3)}, {"auto_pad": "SAME_LOWER"}, single=True)
    transposed = {"strides": [2, 2], "output_shape": [10, 13]}
    yield Form("ConvTranspose", {"x": x, "w": normal(2, 3, 2, 3)}, transposed, single=True)
    unpooled = {"kernel_shape": [2, 2], "strides": [2, 2]}
    positions = np.array([[[[5, 7], [13, 15]]]])
    yield Form("MaxUnpool", {"x": normal(1, 1, 2, 2), "i": positions}, unpooled, 9, single=True)
    regions = {"x": x, "rois": floats(0, 0, 3, 3, 1, 1, 4, 3).reshape(2, 4), "batch": integers(0, 0)}
    yield Form("RoiAlign", regions, {"output_height": 2, "output_width": 2}, 10, 21, single=True)
    grid = {"x": x, "grid": normal(1, 3, 2, 2).astype(np.float32) * 0.5}
    yield Form("GridSample", grid, {"mode": "bicubic"}, 16, 19, single=True)
    yield Form("GridSample", grid, {"mode": "cubic"}, 20, single=True)


def normalizations() -> Iterator[Form]:
    yield Form("BatchNormalization", statistics(), {"epsilon": 0.1})
    yield Form("BatchNormalization", statistics(), {"momentum": 0.3}, outputs=5, last=13)
    yield Form("BatchNormalization", statistics(), {"training_mode": 1}, 14, outputs=3)
    yield Form("BatchNormalization", of_elements(), {"spatial": 0, "epsilon": 0.1}, last=8)
    affine = {"x": normal(2, 4, 3), "scale": normal(4, seed=1), "b": normal(4, seed=2)}
    yield Form("InstanceNormalization", affine, single=True)
    by_group = {**affine, "scale": normal(2, seed=1), "b": normal(2, seed=2)}
    yield Form("GroupNormalization", by_group, {"num_groups": 2}, 18, 20, single=True)
    yield Form("GroupNormalization", affine, {"num_groups": 2}, 21, single=True)
    yield Form("MeanVarianceNormalization", {"x": normal(2, 3, 2, 2)}, first=9, single=True)
    yield Form("LpNormalization", {"x": X}, {"axis": 1, "p": 1})
    yield Form("LRN", {"x": normal(1, 5, 2, 2)}, {"size": 3}, single=True)


def moves() -> Iterator[Form]:
    """Attributes that became inputs."""
    yield Form("Squeeze", {"x": spread(1, 3, 1, 2)}, {"axes": [0, 2]})
    yield Form("Squeeze", {"x": spread(1, 3, 1, 2)})
    yield Form("Squeeze", {"x": spread(1, 3, 1, 2)}, {"axes": [-2]}, 11)
    yield Form("Unsqueeze", {"x": spread(3, 2)}, {"axes": [0, 2]})
    yield Form("Unsqueeze", {"x": spread(3, 2)}, {"axes": [-1, 0]}, 11)
    yield Form("Split", {"x": X}, {"axis": 1, "split": [1, 2]}, outputs=2)
    yield Form("Split", {"x": X}, {"axis": -2, "split": [3, 0]}, 11, outputs=2)
    yield Form("Split", {"x": X}, {"axis": 2}, last=17, outputs=2)
    yield Form("Slice", {"x": X}, {"starts": [1, -3], "ends": [1000, -1], "axes": [1, 2]})
    yield Form("Slice", {"x": X}, {"starts": [0, 1], "ends": [2, 3]})
    yield Form("Slice", {"x": X}, {"starts": [1], "ends": [3], "axes": [-1]}, 10)
    for bounds in ({}, {"min": -0.5}, {"max": 0.7}, {"min": -0.5, "max": 0.7}):
        yield Form("Clip", {"x": X}, bounds, single=True)
    for mode in ("constant", "reflect", "edge"):
        yield Form("Pad", {"x": X}, {"mode": mode, "pads": [0, 1, 2, 0, 0, 1], "value": 1.5})
    yield Form("Pad", {"x": X}, {"pads": [0, -1, 2, 0, 0, -1]})
    yield Form("Dropout", {"x": X}, {"ratio": 0.3})
    yield Form("Dropout", {"x": X}, outputs=2, last=9)
    yield Form("Dropout", {"x": X}, outputs=2, first=10, last=11)
    yield Form("Dropout", {"x": X}, outputs=2, first=12)
    yield Form("TopK", {"x": X}, {"k": 2, "axis": 1}, outputs=2)
    yield Form("TopK", {"x": X}, {"k": 2, "axis": -2, "largest": 0}, 11, outputs=2)


def indices() -> Iterator[Form]:
    table, one = spread(2, 3), spread(1, 2, seed=4)
    yield Form("Gather", {"x": X, "i": integers(0, 2)}, {"axis": 1})
    yield Form("Gather", {"x": X, "i": integers(0, -1)}, {"axis": -2}, 11)
    yield Form("GatherElements", {"x": table, "i": np.array([[0, -1], [1, 1]])}, {"axis": 1}, 11)
    yield Form("GatherND", {"x": X, "i": np.array([[0, 1], [1, -2]])}, first=11)
    yield Form("GatherND", {"x": X, "i": np.array([[0], [1]])}, {"batch_dims": 1}, 12)
    yield Form("Scatter", {"x": table, "i": np.array([[0, 2]]), "u": one}, {"axis": 1}, 9, 10)
    yield Form("ScatterElements", {"x": table, "i": np.array([[0, -1]]), "u": one}, {"axis": -1}, 11)
    yield Form("ScatterND", {"x": table, "i": np.array([[1]]), "u": spread(1, 3, seed=4)}, first=11)
    for reduction, first in (("add", 16), ("mul", 16), ("min", 18), ("max", 18)):
        elements = {"x": table, "i": np.array([[0, 2]]), "u": one}
        yield Form("ScatterElements", elements, {"axis": 1, "reduction": reduction}, first)
        slices = {"x": table, "i": np.array([[1], [1]]), "u": spread(2, 3, seed=4)}
        yield Form("ScatterND", slices, {"reduction": reduction}, first)
    yield Form(
        "OneHot",
        {"i": integers(0, 2, -1, 5, -4), "depth": integers(3), "v": normal(2)},
        first=9,
        last=27,
        single=True,
    )
    yield Form("Compress", {"x": table, "c": np.array([True, False, True])}, {"axis": 1}, 9)
    yield Form("Compress", {"x": table, "c": np.array([True, False, True])}, {"axis": -1}, 11)


def shapes() -> Iterator[Form]:
    for axis in (0, 1, 2):
        yield Form("Flatten", {"x": X}, {"axis": axis})
    yield Form("Flatten", {"x": X}, {"axis": -1}, 11)
    yield Form("Reshape", {"x": X, "shape": integers(0, -1, 2)})
    yield Form("Reshape", {"x": np.zeros((2, 0)), "shape": integers(0, 3)}, {"allowzero": 1}, 14)
    yield Form("Expand", {"x": spread(3, 1), "shape": integers(2, 1, 4)}, first=8)
    yield Form("Concat", {"a": X, "b": X + 1}, {"axis": 1})
    yield Form("Concat", {"a": X, "b": X + 1}, {"axis": -1}, 11)
    yield Form("Tile", {"x": spread(2, 3), "repeats": integers(2, 1)})
    yield Form("DepthToSpace", {"x": normal(1, 8, 1, 2)}, {"blocksize": 2})
    yield Form("DepthToSpace", {"x": normal(1, 8, 1, 2)}, {"blocksize": 2, "mode": "CRD"}, 11)
    yield Form("Cast", {"x": X}, {"to": onnx.TensorProto.DOUBLE})


def arithmetic() -> Iterator[Form]:
    a, b = POSITIVE[0], POSITIVE[1, 0]
    for op_type in ("Add", "Sub", "Mul", "Div", "Pow"):
        yield Form(op_type, {"a": a, "b": b})
    for op_type in ("Max", "Min", "Sum", "Mean"):
        yield Form(op_type, {"a": a, "b": a + spread(3, 4, seed=1)}, single=True, last=7)
        yield Form(op_type, {"a": a, "b": spread(4, seed=1)}, first=8, single=True)
    yield Form("Gemm", {"a": normal(2, 3), "b": normal(4, 3), "c": normal(4)}, {"transB": 1, "alpha": 0.5})
    yield Form("Gemm", {"a": normal(2, 3), "b": normal(3, 4)}, first=11)
    yield Form("MatMul", {"a": normal(2, 3, 4), "b": normal(4, 2)})
    yield Form("Mod", {"a": X, "b": POSITIVE}, {"fmod": 1}, 10)
    yield Form("Where", {"c": np.array([True, False, True]), "a": spread(2, 3), "b": normal(2, 3)}, first=9)
    yield Form("CumSum", {"x": X, "axis": np.array(1)}, {"exclusive": 1, "reverse": 1}, 11)
    yield Form("Einsum", {"a": normal(2, 3), "b": normal(3, 4)}, {"equation": "ij,jk->ki"}, 12)
    yield Form("PRelu", {"x": X, "slope": np.abs(normal(3, 1))}, single=True)
    for op_type in ("Sigmoid", "Tanh", "Exp", "Relu"):
        yield Form(op_type, {"x": X * 0.5})
    for op_type in ("LeakyRelu", "Softplus", "Elu"):
        yield Form(op_type, {"x": X}, single=True)
    yield Form("ThresholdedRelu", {"x": X}, {"alpha": 0.2}, first=10, single=True)


def losses_and_transforms() -> Iterator[Form]:
    labels = {"x": normal(3, 4), "t": integers(0, 3, 1), "w": np.abs(normal(4))}
    yield Form("NegativeLogLikelihoodLoss", labels, {"ignore_index": 3}, 12)
    yield Form("SoftmaxCrossEntropyLoss", labels, {"reduction": "sum"}, 12, outputs=2)
    yield Form("LayerNormalization", {"x": X, "scale": normal(4), "b": normal(4)}, first=17)
    signal = {"x": normal(2, 4, 1), "n": np.array(5)}
    yield Form("DFT", signal, {"axis": 1, "onesided": 1}, 17, 19)
    yield Form("DFT", {**signal, "axis": np.array(1)}, {"onesided": 1}, 20)
    yield Form("STFT", {"x": normal(1, 9, 1), "step": np.array(3), "window": normal(4)}, first=17)
    steps = {"x": np.array([[3, -5], [7, 9]], np.int8), "scale": np.array(0.3), "zero": np.array(2, np.int8)}
    yield Form("DequantizeLinear", steps, first=10, last=27, single=True)


FORMS = [
    *moves(),
    *softmaxes(),
    *reductions(),
    *resizes(),
    *normalizations(),
    *windows(),
    *indices(),
    *shapes(),
    *arithmetic(),
    *losses_and_transforms(),
]


def cases() -> Iterator[Any]:
    """Every form at every opset, named by the operator, the opset and a number."""
    for number, form in enumerate(FORMS):
        for opset in form.opsets():
            yield pytest.param(form, opset, id=f"{form.op_type}-{opset}-{number}")


def original(model: onnx.ModelProto) -> Any:
    """Runs `model` as it is in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in model.graph.output]
    fed = {value.name for value in session.get_inputs()}
    return lambda inputs: dict(
        zip(names, session.run(None, {n: a for n, a in inputs.items() if n in fed}), strict=True)
    )


@pytest.mark.parametrize(("form", "opset"), list(cases()))
def test_outputs_and_gradients_are_those_of_the_original(form: Form, opset: int) -> None:
    model, dtype = form.model(opset), form.dtype()
    run, point = original(model), {n: a for n, a in form.point().items() if n not in form.constants}
    values = run(point)
    generator = np.random.default_rng(1)
    dys = {y: generator.standard_normal(v.shape).astype(dtype) for y, v in values.items() if v.dtype == dtype}
    # What is float64 in the table is differentiated, also where the model is in float32.
    wrt = [n for n, a in form.inputs.items() if a is not None and a.dtype == np.float64]
    step, tolerance = (2e-2, 2e-3) if form.single else (1e-4, 1e-6)
    expected = {x: numerical_gradient(run, point, x, dys, step) for x in wrt}
    unknown = ["unknown"] if opset == form.first < 18 and form.op_type not in NEED_RANKS else []
    for knowledge in ("static", *unknown):
        transformed = quiet_vjp(with_shapes(model, knowledge), wrt, list(dys))
        cotangents, gradients = given_names(transformed)
        results = evaluator(transformed)({**point, **{cotangents[y]: dy for y, dy in dys.items()}})
        for y, value in values.items():
            assert results[y].dtype == value.dtype
            np.testing.assert_allclose(results[y], value, rtol=1e-6, atol=1e-6, err_msg=f"{y}, {knowledge}")
        for x in wrt:
            actual = results[gradients[x]]
            assert actual.dtype == dtype
            assert actual.shape == point[x].shape
            where = f"{x}, {knowledge}"
            np.testing.assert_allclose(actual, expected[x], rtol=tolerance, atol=tolerance, err_msg=where)


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_a_network_at_every_opset(opset: int) -> None:
    weight = onnx.numpy_helper.from_array(normal(3, 4).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Tanh", ["product"], ["hidden"]),
        onnx.helper.make_node("Softmax", ["hidden"], ["probability"], axis=1),
        onnx.helper.make_node("Log", ["probability"], ["y"]),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", length])
        for name, length in (("x", 3), ("y", 4))
    )
    inputs = [x, onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 4])][
        : 2 if opset < 9 else 1
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "network", inputs, [y], [weight]),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=3 if opset < 9 else 10,
    )
    point = {"x": normal(2, 3, seed=1).astype(np.float32)}
    run = original(model)
    dy = normal(2, 4, seed=2).astype(np.float32)
    transformed = quiet_vjp(model)
    results = evaluator(transformed)({**point, "y_grad": dy})
    np.testing.assert_allclose(results["y"], run(point)["y"], rtol=1e-6)
    expected = numerical_gradient(run, point, "x", {"y": dy}, 2e-2)
    np.testing.assert_allclose(results["x_grad"], expected, rtol=1e-3, atol=1e-3)
