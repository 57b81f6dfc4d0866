"""Models with training operators as text."""

from __future__ import annotations

import onnx
import onnx.parser

DOMAIN = "ai.onnx.preview.training"
_OPERATORS = ("Gradient", "Adam", "Adagrad", "Momentum")


def program(graph: str, *, opset: int = 18, functions: str = "") -> onnx.ModelProto:
    """The model of a `graph` in ONNX's text syntax, where the training operators need no domain."""
    for operator in _OPERATORS:
        graph, functions = (
            text.replace(f" {operator}<", f" {DOMAIN}.{operator}<") for text in (graph, functions)
        )
    domains = {"": opset, DOMAIN: 1}
    domains |= {domain: 1 for domain in ("local", "custom", "com.microsoft") if f" {domain}." in graph}
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in domains.items())
    return onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {graph} {functions}")
