"""Writes `docs/operators.md`: the declared state of every operator of the default domain.

`python -m docs.operators` writes it anew; a test compares the two.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

import onnx_grad.rules  # noqa: F401  (fills the table)
from onnx_grad import registry
from onnx_grad.registry import Entry, State

TARGET = Path(__file__).parent / "operators.md"


def operators() -> dict[str, Entry]:
    """Every operator of the newest opset that the installed onnx knows, with what is declared of it."""
    names = sorted(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == "")
    return {name: registry.lookup("", name) for name in names}


def inputs_with_gradients(name: str, entry: Entry) -> str:
    """The float inputs of an operator that get a gradient, by their formal names."""
    if entry.state is not State.RULE:
        return ""
    schema = onnx.defs.get_schema(name)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    formal_names = []
    for position, formal in enumerate(schema.inputs):
        types = allowed.get(formal.type_str, [formal.type_str])
        if position not in entry.frozen and any("float" in t or "double" in t for t in types):
            formal_names.append(formal.name)
    return ", ".join(formal_names)


def table() -> str:
    """The page as Markdown."""
    declared = operators()
    counts = Counter(entry.state for entry in declared.values())
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State)
    lines = [
        "# Operators",
        "",
        f"The {len(declared)} operators of the default domain at opset {onnx.defs.onnx_opset_version()}: "
        f"{summary}.",
        "",
        "| operator | state | inputs that get a gradient | where there is no derivative, or why not |",
        "|---|---|---|---|",
    ]
    for name, entry in declared.items():
        remark = (entry.convention or entry.reason).replace("|", "\\|")
        lines.append(f"| {name} | {entry.state.value} | {inputs_with_gradients(name, entry)} | {remark} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(table())
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
