"""The table of declared states, and that its pages tell what the rules do."""

from __future__ import annotations

import functools
import re
from collections import defaultdict

import onnx
import pytest

import onnx_grad
from docs.differentiability import DIFFERENCES, FROZEN
from docs.operators import (
    LIFTED,
    README,
    TARGET,
    float_inputs,
    inputs_with_gradients,
    operators,
    outputs_with_cotangents,
    page,
    summary,
    tagged_otherwise,
    with_overview,
)
from onnx_grad import registry
from onnx_grad.registry import State
from tests.emission import emissions
from tests.graphs import parse


@functools.cache
def run() -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The inputs of each operator that a cotangent reached in some form, and the outputs it came from."""
    inputs: dict[str, set[int]] = defaultdict(set)
    outputs: dict[str, set[int]] = defaultdict(set)
    for emission in emissions():
        inputs[emission.operator] |= emission.differentiated
        outputs[emission.operator] |= emission.cotangents
    return inputs, outputs


def is_variadic(formals: list[onnx.defs.OpSchema.FormalParameter]) -> bool:
    return bool(formals) and formals[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic


class TestStates:
    def test_every_operator_is_declared_or_has_a_function_body(self) -> None:
        """A new onnx release that adds an operator fails here."""
        undeclared = [
            name
            for name, entry in operators().items()
            if entry.state is State.REFUSED and ("", name) not in registry.operators()
        ]
        assert undeclared == []

    def test_nothing_is_declared_that_does_not_exist(self) -> None:
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
        # ONNX Runtime has this one in the default domain as well.
        known.add("SimplifiedLayerNormalization")
        assert {name for domain, name in registry.operators() if domain == ""} <= known

    def test_a_refusal_says_what_to_do(self) -> None:
        refused = {name: entry.reason for name, entry in operators().items() if entry.state is State.REFUSED}
        assert {name: reason for name, reason in refused.items() if len(reason) <= 40} == {}

    def test_a_zero_derivative_says_why(self) -> None:
        silent = [n for n, entry in operators().items() if entry.state is State.ZERO and not entry.reason]
        assert silent == []

    @pytest.mark.parametrize("operator", LIFTED)
    def test_lifted_operators_are_those_that_ended_before_opset_18(self, operator: str) -> None:
        assert onnx.defs.get_schema(operator).deprecated
        assert onnx.defs.get_schema(operator).since_version <= 18

    @pytest.mark.parametrize(
        "graph",
        [
            "g (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample (x, s) }",
            "g (float[3] x, int64[1] i, float[1] u) => (float[3] y) { y = Scatter (x, i, u) }",
        ],
        ids=["Upsample", "Scatter"],
    )
    def test_what_is_said_to_be_lifted_is_differentiated(self, graph: str) -> None:
        transformed = onnx_grad.vjp(parse(graph, opset=9), wrt="x")
        assert [output.name for output in transformed.graph.output] == ["y", "x_grad"]


class TestInputs:
    def test_a_gradient_reaches_every_input_that_is_listed(self) -> None:
        reached, _ = run()
        claimed = {
            (name, formal): position in reached[name]
            for name, entry in operators().items()
            for position, formal in inputs_with_gradients(name, entry).items()
        }
        assert [key for key, is_true in claimed.items() if not is_true] == []

    def test_cotangents_come_from_every_output_that_is_listed(self) -> None:
        _, sources = run()
        claimed = {
            (name, formal): position in sources[name]
            for name, entry in operators().items()
            for position, formal in outputs_with_cotangents(name, entry).items()
        }
        assert [key for key, is_true in claimed.items() if not is_true] == []

    def test_no_gradient_reaches_any_other_input(self) -> None:
        reached, _ = run()
        unlisted = [
            (name, position)
            for name, entry in operators().items()
            for position in reached[name] - set(inputs_with_gradients(name, entry))
            if not is_variadic(onnx.defs.get_schema(name).inputs)
        ]
        assert unlisted == []

    def test_inputs_without_a_gradient_have_a_reason(self) -> None:
        frozen = {
            (name, formal)
            for name, entry in operators().items()
            for position, formal in float_inputs(name).items()
            if position in entry.frozen
        }
        assert frozen == set(FROZEN)

    def test_frozen_inputs_exist(self) -> None:
        for name, entry in operators().items():
            if entry.frozen:
                assert max(entry.frozen) < len(onnx.defs.get_schema(name).inputs), name


class TestTags:
    """The differentiability tags of the specification, which are incomplete."""

    def test_every_difference_is_explained_and_nothing_else(self) -> None:
        differences = {
            name: ", ".join(tagged)
            for name, entry in operators().items()
            if name not in LIFTED and (tagged := tagged_otherwise(name, entry))
        }
        assert differences == {name: tensors for name, (tensors, _) in DIFFERENCES.items()}


class TestPages:
    def test_the_page_is_up_to_date(self) -> None:
        assert TARGET.read_text(encoding="utf-8") == page(), "run python -m docs.operators"

    def test_the_readme_is_up_to_date(self) -> None:
        readme = README.read_text(encoding="utf-8")
        assert readme == with_overview(readme), "run python -m docs.operators"

    def test_the_summary_counts_every_operator_once(self) -> None:
        total, opset, *counts = map(int, re.findall(r"\d+", summary().split(";")[0]))
        assert opset == onnx.defs.onnx_opset_version()
        assert sum(counts) + len(LIFTED) == total == len(operators())
