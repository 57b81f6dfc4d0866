"""Scan for the ONNX reference evaluator, whose own only goes forward, along the first axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

Array: TypeAlias = np.ndarray[Any, Any]


class Scan(OpRun):
    """The body run on each slice of the scanned inputs in turn, its results put together again."""

    def need_context(self) -> bool:
        """The body may read values of the graph around it."""
        return True

    def _run(
        self,
        *operands: Array,
        context: Mapping[str, Array] | None = None,
        body: Any = None,
        num_scan_inputs: int | None = None,
        scan_input_axes: Sequence[int] | None = None,
        scan_input_directions: Sequence[int] | None = None,
        scan_output_axes: Sequence[int] | None = None,
        scan_output_directions: Sequence[int] | None = None,
        attributes: Mapping[str, Any] | None = None,
        bindings: Any = None,
    ) -> tuple[Array, ...]:
        assert num_scan_inputs is not None
        count = len(operands) - num_scan_inputs
        states = list(operands[:count])
        slices = [
            np.moveaxis(operand, axis, 0)[:: -1 if backwards else 1]
            for operand, axis, backwards in zip(
                operands[count:],
                scan_input_axes or [0] * num_scan_inputs,
                scan_input_directions or [0] * num_scan_inputs,
                strict=True,
            )
        ]
        results: list[list[Array]] = []
        for current in zip(*slices, strict=True):
            inputs = dict(zip(body.input_names, (*states, *current), strict=True))
            outputs = body.run(None, {**(context or {}), **inputs}, attributes=attributes)
            states = outputs[:count]
            results.append(outputs[count:])
        scanned = len(body.output_names) - count
        if scanned and not results:
            raise RuntimeError("Scan over nothing: the body would tell the shapes of what it gives")
        return (
            *states,
            *(
                np.moveaxis(np.stack(parts[:: -1 if backwards else 1]), 0, axis)
                for parts, axis, backwards in zip(
                    zip(*results, strict=True),
                    scan_output_axes or [0] * scanned,
                    scan_output_directions or [0] * scanned,
                    strict=True,
                )
            ),
        )
