"""The floors under what was aimed at."""

from __future__ import annotations

import onnx

from benchmarks.limits import Aim, Profile, aims, floors, profile


def aim(derivative: str, network: str) -> Aim:
    return next(a for a in aims(1, [network]) if (a.derivative, a.network) == (derivative, network))


def test_there_are_two_floors() -> None:
    assert min(floors(aim("weights", "mlp"), steps=2)) > 0


def test_products_are_a_part_of_a_gradient_and_so_is_what_depends_on_its_seed() -> None:
    gradient = aim("weights", "mlp")
    found = profile(gradient.model, gradient.feeds, threads=1, steps=2)
    assert 0 < found.products < found.total
    assert 0 < found.depending_on(["y_grad"]) < found.total


def test_positions_of_maxima_and_masks_are_for_nothing() -> None:
    tangents = aim("tangents", "digits_cnn")
    found = profile(tangents.model, tangents.feeds, threads=1, steps=2)
    coefficients = {name: float(kind in ("Less", "HardSigmoid")) for name, kind in found.operators.items()}
    counted = Profile(coefficients, found.operators, found.graph)
    assert counted.total > 0
    assert counted.depending_on(["image_tangent"]) == 0
    assert counted.depending_on(["image"]) == counted.total


def test_what_depends_on_a_seed() -> None:
    graph = onnx.parser.parse_graph(
        "g (float x, float t) => (float y, float u) { y = Exp(x)  v = Mul(y, t)  w = Sin(x)  u = Add(v, w) }"
    )
    names = ["exp", "mul", "sin", "add"]
    for node, name in zip(graph.node, names, strict=True):
        node.name = name
    profile = Profile(dict(zip(names, (1.0, 2.0, 4.0, 8.0), strict=True)), {}, graph)
    assert profile.depending_on(["t"]) == 10.0
    assert profile.total == 15.0
