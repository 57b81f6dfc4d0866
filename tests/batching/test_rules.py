"""Every batching rule against the operator run for one example after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import onnx_grad
from tests.batching.examples import check, mapped_together, scans
from tests.batching.forms import MappedForm, mapped_forms
from tests.operator_forms import Form, operator_forms
from tests.oracle import SHAPE_KNOWLEDGE, with_shapes

# Of these, results differ in shape between the examples where these inputs are mapped.
_REFUSED = {"Range": "abc", "Unique": "a", "Resize": "c"}


def _choices(form: Form) -> Iterator[Sequence[str]]:
    """Each float input by itself, and all together."""
    floats = [name for name, array in form.point(np.float32).items() if array.dtype == np.float32]
    yield from ([name] for name in floats)
    if len(floats) > 1:
        yield floats


@pytest.mark.parametrize("form", operator_forms(), ids=lambda form: form.operator)
def test_each_float_input_and_all_together(form: Form) -> None:
    point = form.point(np.float32)
    for names in _choices(form):
        for knowledge in SHAPE_KNOWLEDGE:
            if form.operator == "LinearAttention" and knowledge == "unknown":
                continue  # Its body is a Scan, of which ONNX Runtime has to know the ranks.
            model = with_shapes(form.model(np.float32), knowledge)
            if set(names).intersection(_REFUSED.get(form.operator, "")):
                with pytest.raises(onnx_grad.UnsupportedOpError, match=form.operator):
                    onnx_grad.vmap(model, dict.fromkeys(names, 0))
                continue
            check(model, mapped_together(point, names), dict.fromkeys(names, 0))


@pytest.mark.parametrize("form", mapped_forms(), ids=str)
def test_form(form: MappedForm) -> None:
    point = form.form.point(np.float32)
    examples = {n: a.astype(point[n].dtype) for n, a in form.examples.items()}
    for knowledge in SHAPE_KNOWLEDGE:
        model = with_shapes(form.form.model(np.float32), knowledge)
        batched = check(model, point | examples, dict.fromkeys(examples, 0))
        if knowledge == "static":
            assert bool(scans(batched)) == form.scans


_SIZED = "Concat Conv ConvTranspose Expand Flatten Gemm ReduceSum Reshape RoiAlign ScatterND Squeeze".split()


@pytest.mark.parametrize("form", [f for f in mapped_forms() if f.form.operator in _SIZED], ids=str)
def test_form_for_a_fixed_number_of_examples(form: MappedForm) -> None:
    point = form.form.point(np.float32)
    examples = {n: a.astype(point[n].dtype) for n, a in form.examples.items()}
    check(form.form.model(np.float32), point | examples, dict.fromkeys(examples, 0), axis_size=3)
