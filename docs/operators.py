"""Writes `docs/operators.md` and the overview in `README.md`: what is declared of every operator.

`python -m docs.operators` writes both anew; a test compares them with what is declared.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

import onnx_grad.rules  # noqa: F401  (fills the table)
from docs.differentiability import DIFFERENCES, FROZEN
from onnx_grad import registry
from onnx_grad.registry import Entry, State

TARGET = Path(__file__).parent / "operators.md"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- operators -->", "<!-- end of operators -->"

# Operators that ended before opset 18, to which older models are lifted, and what they become.
LIFTED = {"Scatter": "ScatterElements", "Upsample": "Resize"}

# What is said of one operator, and of several.
_SAID = {
    State.RULE: ("has a rule", "have a rule"),
    State.ZERO: ("has a derivative that is zero everywhere", "have a derivative that is zero everywhere"),
    State.EXPANDED: ("is expanded by its function body", "are expanded by their function bodies"),
    State.REFUSED: ("is refused", "are refused"),
}
_IN_THE_TABLE = {
    State.RULE: "rule",
    State.ZERO: "zero",
    State.EXPANDED: "expanded",
    State.REFUSED: "refused",
}
_DIFFERENTIABLE_TYPE = re.compile(r"tensor\((float|double|float16|bfloat16)\)")


def operators() -> dict[str, Entry]:
    """Every operator of the newest opset that the installed onnx knows, with what is declared of it."""
    names = sorted(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == "")
    return {name: registry.lookup("", name) for name in names}


def in_state(state: State) -> list[str]:
    """The operators that are declared so, without those that are lifted."""
    return [name for name, entry in operators().items() if entry.state is state and name not in LIFTED]


def float_inputs(name: str) -> dict[int, str]:
    """The inputs of an operator that can hold floats, by position."""
    return _floats(name, onnx.defs.get_schema(name).inputs)


def float_outputs(name: str) -> dict[int, str]:
    """The outputs of an operator that can hold floats, by position."""
    return _floats(name, onnx.defs.get_schema(name).outputs)


def inputs_with_gradients(name: str, entry: Entry) -> dict[int, str]:
    """The inputs of an operator that get a gradient, by position."""
    if entry.state not in (State.RULE, State.EXPANDED):
        return {}
    return {i: formal for i, formal in float_inputs(name).items() if i not in entry.frozen}


def outputs_with_cotangents(name: str, entry: Entry) -> dict[int, str]:
    """The outputs of an operator from which gradients come, by position."""
    return float_outputs(name) if entry.state in (State.RULE, State.EXPANDED) else {}


def tagged_otherwise(name: str, entry: Entry) -> dict[str, str]:
    """The inputs and outputs whose tag in the specification does not say what is done here, and the tag."""
    schema = onnx.defs.get_schema(name)
    here = (inputs_with_gradients(name, entry), outputs_with_cotangents(name, entry))
    return {
        formal.name: formal.differentiation_category.name
        for formals, differentiated in zip((schema.inputs, schema.outputs), here, strict=True)
        for position, formal in enumerate(formals)
        if (formal.differentiation_category.name == "Differentiable") != (position in differentiated)
    }


def summary() -> str:
    """How many operators are in each state, as a sentence."""
    parts = []
    for state in State:
        if count := len(in_state(state)):
            parts.append(f"{count} {_SAID[state][count != 1]}")
    lifted = " and ".join(f"{name} (now {successor})" for name, successor in LIFTED.items())
    return (
        f"Of the {len(operators())} operators of the default domain at opset "
        f"{onnx.defs.onnx_opset_version()}, {', '.join(parts[:-1])} and {parts[-1]}; "
        f"{lifted} ended before opset 18, to which older models are lifted."
    )


def overview() -> str:
    """The part of the README: the summary, and the operators of each state."""
    rows = [f"| {_SAID[state][1]} | {', '.join(in_state(state))} |" for state in State if in_state(state)]
    return "\n".join([BEGIN, _wrapped(summary()), "", "| | operators |", "|---|---|", *rows, END])


def page() -> str:
    """The page `operators.md`."""
    return "\n".join(
        [
            "# Operators",
            "",
            _wrapped(summary()),
            "",
            _wrapped(
                "Gradients reach the inputs that are listed, from the outputs that are listed. The last "
                "column says which value is given where a function has no derivative (PyTorch's), or why "
                "there are no gradients."
            ),
            "",
            "| operator | state | inputs | outputs | remark |",
            "|---|---|---|---|---|",
            *(_row(name, entry) for name, entry in operators().items()),
            "",
            "## Float inputs without a gradient",
            "",
            "| operator | input | why |",
            "|---|---|---|",
            *(f"| {name} | {formal} | {reason} |" for (name, formal), reason in sorted(FROZEN.items())),
            "",
            "## Differences from the tags of the specification",
            "",
            "onnx tags inputs and outputs as differentiable or not. Wherever these tags and the table above "
            "disagree:",
            "",
            "| operator | inputs and outputs | tag | why |",
            "|---|---|---|---|",
            *_difference_rows(),
            "",
        ]
    )


def with_overview(readme: str) -> str:
    """The README's text with the overview between its marks renewed."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + overview() + after


def main() -> None:
    """Write the page and the overview."""
    TARGET.write_text(page(), encoding="utf-8")
    README.write_text(with_overview(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {TARGET.name} and the overview in {README.name}")


def _floats(name: str, formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> dict[int, str]:
    constraints = onnx.defs.get_schema(name).type_constraints
    allowed = {c.type_param_str: c.allowed_type_strs for c in constraints}
    return {
        position: formal.name
        for position, formal in enumerate(formals)
        if any(map(_DIFFERENTIABLE_TYPE.search, allowed.get(formal.type_str, [formal.type_str])))
    }


def _row(name: str, entry: Entry) -> str:
    if name in LIFTED:
        return f"| {name} | lifted |  |  | it is {LIFTED[name]} since |"
    inputs = list(inputs_with_gradients(name, entry).values())
    if entry.structural is not None:
        inputs.append("all that its bodies read")
    outputs = outputs_with_cotangents(name, entry).values()
    remark = (entry.convention or entry.reason).replace("|", "\\|")
    cells = (name, _IN_THE_TABLE[entry.state], ", ".join(inputs), ", ".join(outputs), remark)
    return f"| {' | '.join(cells)} |"


def _difference_rows() -> Iterator[str]:
    for name, (tensors, reason) in DIFFERENCES.items():
        tags = tagged_otherwise(name, registry.lookup("", name)).values()
        yield f"| {name} | {tensors} | {', '.join(sorted(set(tags)))} | {reason} |"


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 110))


if __name__ == "__main__":
    main()
