"""The floors under what was aimed at."""

from __future__ import annotations

import onnx

from benchmarks.limits import Aim, Profile, aims, floors


def aim(derivative: str, network: str) -> Aim:
    return next(a for a in aims(1, [network]) if (a.derivative, a.network) == (derivative, network))


def test_an_mlp_is_nearly_all_products() -> None:
    seed, products = floors(aim("weights", "mlp"), steps=5)
    assert 0.5 < products < 1.05
    assert 0.5 < seed < 1.05


def test_positions_of_maxima_and_masks_are_for_nothing() -> None:
    seed, _ = floors(aim("tangents", "digits_cnn"), steps=20)
    assert seed < 0.95


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
