"""Updates in place, slice by slice, give what updates into other memory give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnx_grad.training import Lion, Optimizer, OptimizerNotes
from onnx_grad.training.buffers import Block, Device, Layout, aligned, device_of
from onnx_grad.training.optimizer_graph import optimizer_graph
from onnx_grad.training.updating import Updater
from tests.training.test_optimizers import CASES

SHAPES = {"small": (3, 5), "large": (210, 200), "scalar": ()}
OPTIMIZERS = [case[0] for case in CASES] + [Lion(weight_decay=0.1)]


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_in_place_is_the_same(optimizer: Optimizer) -> None:
    options: dict[str, Any] = {"clip_norm": 1.0, "average": 0.9}
    updater = Updater(Layout(ir.DataType.FLOAT, SHAPES), optimizer, 0.5, Device(), settings={}, **options)
    updater.parameters.load(draw(0))
    updater.start_average()
    flat = ir.Value(name="parameter", shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.FLOAT))
    model = optimizer_graph([(flat, "gradient")], optimizer, scaled=True, **options)
    notes = OptimizerNotes.of(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    expected = {}
    for name, start in draw(0).items():
        slots = {slot: np.full(start.size, number, np.float32) for slot, number in notes.initial.items()}
        expected[name] = {"parameter": start.reshape(-1), "parameter_average": start.reshape(-1), **slots}
    pairs = {**notes.parameters, **notes.slots}
    for step in range(3):
        gradients = draw(step + 1)
        updater.gradients.load(gradients)
        norm = float(np.sqrt(updater.square_sum()))
        squares = sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values())
        assert norm == pytest.approx(np.sqrt(squares), rel=1e-5)
        updater.update(0.1, step, 0.5, norm)
        scalars = {"learning_rate": 0.05, "gradient_scale": 0.5, "gradient_norm": norm}
        feeds = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
        for name, state in expected.items():
            gradient = {"gradient": gradients[name].reshape(-1), "step": np.asarray(step)}
            results = session.run(list(pairs.values()), {**feeds, **state, **gradient})
            expected[name] = dict(zip(pairs, results, strict=True))
    blocks = {"parameter": updater.parameters}
    blocks.update({f"parameter_{slot}": block for slot, block in updater.slots.items()})
    assert blocks.keys() == pairs.keys()
    for key, block in blocks.items():
        for name, value in block.tensors():
            np.testing.assert_array_equal(value.reshape(-1), expected[name][key], err_msg=f"{key} of {name}")


def test_tensors_lie_apart_and_aligned() -> None:
    block = Block(Layout(ir.DataType.FLOAT, SHAPES), Device(), fill=7.0)
    assert all((value == 7.0).all() for _, value in block.tensors())
    starts = [block.address(place.start) for place in block.layout.places.values()]
    assert all(start % 64 == 0 for start in starts)
    block.load(draw(0))
    for name, value in block.tensors():
        np.testing.assert_array_equal(value, draw(0)[name])
    block.clear()
    assert not any(value.any() for _, value in block.tensors())
    assert aligned([3], np.dtype("int64")).ctypes.data % 64 == 0


def test_devices_are_those_of_the_first_provider() -> None:
    assert device_of(None) == device_of(["CPUExecutionProvider"]) == Device("cpu", 0)
    assert device_of([("CUDAExecutionProvider", {"device_id": 2}), "CPUExecutionProvider"]) == Device(
        "cuda", 2
    )
