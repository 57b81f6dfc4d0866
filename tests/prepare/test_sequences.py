"""Sequences and optionals, expressed over tensors: gradients against differences of the model itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.loader
import onnxruntime
import pytest

import onnx_grad
from onnx_grad.prepare.validate import all_nodes
from tests.graphs import parse
from tests.oracle import SHAPE_KNOWLEDGE, check, quiet_vjp

OF_SEQUENCES = frozenset(
    """ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence""".split()
)
CONSTANTS = """<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}, int64 last = {-1},
    int64 before_last = {-2}, int64[3] sizes = {1, 2, 1}, int64[1] axis = {0}, bool true = {1}>"""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def graph(nodes: str, inputs: str = "double[2, 3] x, double[2, 3] w", outputs: str = "double[] y") -> str:
    """A graph that has some small constants at hand."""
    return f"g ({inputs}) => ({outputs}) {CONSTANTS} {{ {nodes} }}"


def left(model: onnx.ModelProto) -> set[str]:
    """The operators of sequences that a model still has."""
    return {node.op_type for node in all_nodes(model.graph)} & OF_SEQUENCES


def check_graph(
    text: str,
    inputs: Mapping[str, np.ndarray],
    shapes: Sequence[str] = SHAPE_KNOWLEDGE,
    **options: Any,
) -> None:
    """The gradients are right, and nothing of sequences is left in the gradient graph."""
    model = parse(text)
    check(model, inputs, shapes=shapes, **options)
    wrt = [name for name, array in inputs.items() if array.dtype == np.float64]
    assert left(quiet_vjp(model, wrt)) == set()


PAIR = {"x": normal(2, 3), "w": normal(2, 3) + 1}

OF_TENSORS = {
    "elements": """
        q = SequenceConstruct (x, w)
        a = SequenceAt (q, zero)
        b = SequenceAt (q, last)
        s = Sin (b)
        y = Mul (a, s)""",
    "a tensor twice": """
        q = SequenceConstruct (x, x, w)
        a = SequenceAt (q, one)
        c = ConcatFromSequence <axis: int = 0> (q)
        s = ReduceSum (c)
        y = Mul (a, s)""",
    "joined": "q = SequenceConstruct (x, w) c = ConcatFromSequence <axis: int = -1> (q) y = Exp (c)",
    "stacked": """
        q = SequenceConstruct (x, w)
        c = ConcatFromSequence <axis: int = 1, new_axis: int = 1> (q)
        y = Exp (c)""",
    "stacked along the last axis": """
        q = SequenceConstruct (x, w)
        c = ConcatFromSequence <axis: int = -1, new_axis: int = 1> (q)
        y = Exp (c)""",
    "inserted and erased": """
        q = SequenceEmpty <dtype: int = 11> ()
        q1 = SequenceInsert (q, x)
        q2 = SequenceInsert (q1, w, zero)
        s = Sin (x)
        q3 = SequenceInsert (q2, s, before_last)
        q4 = SequenceErase (q3, zero)
        q5 = SequenceErase (q4)
        c = ConcatFromSequence <axis: int = 0> (q3)
        d = ConcatFromSequence <axis: int = 0> (q5)
        e = Concat <axis: int = 0> (c, d)
        y = Exp (e)""",
    "length": """
        q = SequenceConstruct (x, w)
        n = SequenceLength (q)
        f = CastLike (n, x)
        a = SequenceAt (q, zero)
        s = Sin (a)
        y = Mul (s, f)""",
    "handed through": """
        q = SequenceConstruct (x, w)
        r = Identity (q)
        c = ConcatFromSequence <axis: int = 0> (r)
        y = Exp (c)""",
    "mapped": """
        q = SequenceConstruct (x, w)
        m = SequenceMap (q) <body = f (double[M, N] t) => (double[M, N] u) { u = Sin (t) }>
        c = ConcatFromSequence <axis: int = 0> (m)
        y = Mul (c, c)""",
    "mapped in pairs": """
        q = SequenceConstruct (x, w)
        r = SequenceConstruct (w, x)
        m, n = SequenceMap (q, r, w) <body = f (double[M, N] a, double[M, N] b, double[M, N] c)
            => (double[M, N] u, double[M, N] v) { s = Sin (a) u = Mul (s, b) p = Mul (b, c) v = Mul (p, x) }>
        a = SequenceAt (m, zero)
        b = SequenceAt (n, one)
        y = Mul (a, b)""",
    "mapped by a branch on the rank": """
        q = SequenceConstruct (x, w)
        m = SequenceMap (q) <body = f (double[M, N] t) => (double[] u) {
            shape = Shape (t)
            rank = Size (shape)
            is_matrix = Equal (rank, two)
            u = If (is_matrix) <then_branch = g () => (double[] a) { a = Sin (t) },
                                else_branch = h () => (double[] b) { b = Unsqueeze (t, axis) }>
        }>
        a = SequenceAt (m, one)
        y = Mul (a, x)""",
    "optional": """
        o = Optional (x)
        h = OptionalHasElement (o)
        a = If (h) <then_branch = g () => (double[] b) { c = OptionalGetElement (o) b = Sin (c) },
                    else_branch = h () => (double[] d) { d = Identity (w) }>
        y = Mul (a, w)""",
    "optional sequence": """
        q = SequenceConstruct (x, w)
        o = Optional (q)
        r = OptionalGetElement (o)
        a = SequenceAt (r, one)
        y = Mul (a, x)""",
    "element of a tensor": "a = OptionalGetElement (x) b = Sin (a) y = Mul (b, w)",
}


@pytest.mark.parametrize("nodes", OF_TENSORS.values(), ids=OF_TENSORS.keys())
def test_sequence_of_tensors(nodes: str) -> None:
    check_graph(graph(nodes), PAIR)


AT_TWO = "a = SequenceAt (q, zero) b = SequenceAt (q, last) c = Sin (b) y = Mul (a, c)"
JOINED = "c = ConcatFromSequence <axis: int = 0> (q) s = Sin (c) y = Mul (s, x)"
MAPPED = """
    m = SequenceMap (q) <body = f (double[] t) => (double[] u) { s = Sin (t) u = Mul (s, s) }>
    c = ConcatFromSequence <axis: int = 0> (m)
    y = Mul (c, c)"""

# How x is split, what is made of the pieces, and whether the ranks must be known.
SPLIT = {
    "slices": ("SplitToSequence <keepdims: int = 0> (x)", AT_TWO, False),
    "slices along the last axis": ("SplitToSequence <axis: int = -1, keepdims: int = 0> (x)", AT_TWO, False),
    "slices with their axis": ("SplitToSequence (x)", AT_TWO, False),
    "slices by a length": ("SplitToSequence <keepdims: int = 0> (x, one)", AT_TWO, True),
    "pieces": ("SplitToSequence (x, two)", AT_TWO, True),
    "pieces with a rest": (
        "SplitToSequence (x, three)",
        "a = SequenceAt (q, zero) b = SequenceAt (q, last) c = ReduceSum (b) y = Mul (a, c)",
        True,
    ),
    "given sizes": (
        "SplitToSequence (x, sizes)",
        "a = SequenceAt (q, one) b = SequenceAt (q, last) c = ReduceSum (b) y = Mul (a, c)",
        False,
    ),
    "slices joined": ("SplitToSequence (x)", JOINED, False),
    "pieces joined": ("SplitToSequence (x, three)", JOINED, False),
    "sizes joined": ("SplitToSequence (x, sizes)", JOINED, False),
    "slices stacked again": (
        "SplitToSequence <axis: int = 1, keepdims: int = 0> (x)",
        "c = ConcatFromSequence <axis: int = 1, new_axis: int = 1> (q) s = Sin (c) y = Mul (s, x)",
        False,
    ),
    "slices stacked otherwise": (
        "SplitToSequence <axis: int = 1, keepdims: int = 0> (x)",
        "c = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (q) y = Mul (c, c)",
        False,
    ),
    "slices joined without their axis": (
        "SplitToSequence <axis: int = 1, keepdims: int = 0> (x)",
        "c = ConcatFromSequence <axis: int = 0> (q) y = Mul (c, c)",
        False,
    ),
    "slices with their axis joined otherwise": (
        "SplitToSequence (x)",
        "c = ConcatFromSequence <axis: int = -1> (q) y = Mul (c, c)",
        True,
    ),
    "slices with their axis stacked": (
        "SplitToSequence (x)",
        "c = ConcatFromSequence <axis: int = 2, new_axis: int = 1> (q) y = Mul (c, c)",
        False,
    ),
    "how many pieces": (
        "SplitToSequence (x, three)",
        "n = SequenceLength (q) f = CastLike (n, x) a = SequenceAt (q, zero) s = Sin (a) y = Mul (s, f)",
        True,
    ),
    "a tensor behind the slices": (
        "SplitToSequence <keepdims: int = 0> (x)",
        """v = Sin (w)
        r = SequenceInsert (q, v)
        c = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (r)
        a = SequenceAt (r, last)
        b = SequenceAt (r, zero)
        d = Mul (c, a)
        y = Mul (d, b)""",
        False,
    ),
    "mapped slices": ("SplitToSequence (x)", MAPPED, False),
    "mapped slices without their axis": ("SplitToSequence <keepdims: int = 0> (x)", MAPPED, False),
}


@pytest.mark.parametrize(("split", "nodes", "ranked"), SPLIT.values(), ids=SPLIT.keys())
def test_split_tensor(split: str, nodes: str, ranked: bool) -> None:
    """The length is only known for static shapes: the others read the tensor at computed positions."""
    text = graph(f"q = {split} {nodes}", "double[4, 3] x, double[3] w")
    if "w" not in nodes.replace("new_axis", ""):
        text = graph(f"q = {split} {nodes} ", "double[4, 3] x")
    inputs = {"x": normal(4, 3), **({"w": normal(3)} if "double[3] w" in text else {})}
    check_graph(text, inputs, SHAPE_KNOWLEDGE[:2] if ranked else SHAPE_KNOWLEDGE)


EVEN = {"a": normal(2, 3), "b": normal(2, 3) + 1, "c": normal(2, 3) - 1}
RAGGED = {"a": normal(2, 3), "b": normal(1, 3), "c": normal(3, 3)}

AT_RUN_TIME = {
    "at": "q = SequenceConstruct (a, b, c) t = SequenceAt (q, i) y = Mul (t, t)",
    "inserted": """
        q = SequenceConstruct (a, b)
        r = SequenceInsert (q, c, i)
        t = SequenceAt (r, one)
        y = Mul (t, t)""",
    "inserted and joined": """
        q = SequenceConstruct (a, b)
        r = SequenceInsert (q, c, i)
        t = ConcatFromSequence <axis: int = 0> (r)
        y = Mul (t, t)""",
    "erased": """
        q = SequenceConstruct (a, b, c)
        r = SequenceErase (q, i)
        t = SequenceAt (r, i)
        y = Mul (t, t)""",
    "erased, inserted, joined": """
        q = SequenceConstruct (a, b, c)
        r = SequenceErase (q, i)
        s = SequenceInsert (r, b)
        u = SequenceInsert (s, a, zero)
        v = SequenceErase (u, one)
        t = ConcatFromSequence <axis: int = 0> (v)
        y = Mul (t, t)""",
}


@pytest.mark.parametrize("nodes", AT_RUN_TIME.values(), ids=AT_RUN_TIME.keys())
@pytest.mark.parametrize("tensors", [EVEN, RAGGED], ids=["even", "ragged"])
def test_position_at_run_time(nodes: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Of tensors of one shape, one is taken from their stack; of others, the branch that has it runs."""
    inputs = ", ".join(f"double[{len(t)}, 3] {name}" for name, t in tensors.items())
    for position in (0, 1, -1):
        check_graph(graph(nodes, f"{inputs}, int64 i"), {**tensors, "i": np.array(position)})


def test_position_in_a_split_at_run_time() -> None:
    for split in ("(x)", "<keepdims: int = 0> (x)", "(x, three)", "(x, two)", "(x, sizes)"):
        text = graph(
            f"q = SplitToSequence {split} t = SequenceAt (q, i) y = Mul (t, t)", "double[4, 3] x, int64 i"
        )
        for position in (0, 1, -1):
            check_graph(text, {"x": normal(4, 3), "i": np.array(position)}, SHAPE_KNOWLEDGE[:2])


def test_number_of_pieces_at_run_time() -> None:
    """With the sizes, how many pieces there are is an input too."""
    text = graph(
        """q = SplitToSequence (x, n)
        a = SequenceAt (q, zero)
        b = SequenceAt (q, last)
        c = ConcatFromSequence <axis: int = 0> (q)
        k = SequenceLength (q)
        f = CastLike (k, x)
        s = ReduceSum (b)
        d = Mul (a, s)
        e = ReduceSum <keepdims: int = 0> (d)
        g = Mul (c, e)
        y = Mul (g, f)""",
        "double[4, 3] x, int64[P] n",
    )
    for sizes in ([1, 3], [4], [2, 1, 1]):
        check_graph(text, {"x": normal(4, 3), "n": np.array(sizes)}, SHAPE_KNOWLEDGE[:1])


BRANCHES = {
    "sequences": """
        q = If (p) <
            then_branch = f () => (seq(double[]) a) { s = Sin (x) a = SequenceConstruct (x, s) },
            else_branch = g () => (seq(double[]) b) {
                e = Exp (x)
                c = SequenceConstruct (e, x, w)
                b = SequenceErase (c)
            }>
        t = SequenceAt (q, zero)
        u = SequenceAt (q, one)
        y = Mul (t, u)""",
    "a sequence from outside": """
        o = SequenceConstruct (x, w)
        q, z = If (p) <
            then_branch = f () => (seq(double[]) a, double[] b) { a = Identity (o) b = Sin (x) },
            else_branch = g () => (seq(double[]) c, double[] d) {
                e = Exp (x)
                c = SequenceConstruct (e, x)
                d = Cos (w)
            }>
        t = SequenceAt (q, one)
        y = Mul (t, z)""",
    "pieces": """
        q = If (p) <
            then_branch = f () => (seq(double[]) a) { s = Sin (x) a = SplitToSequence (s) },
            else_branch = g () => (seq(double[]) b) { e = Exp (w) b = SplitToSequence (e) }>
        t = SequenceAt (q, last)
        c = ConcatFromSequence <axis: int = 0> (q)
        y = Mul (t, c)""",
    "pieces or tensors": """
        q = If (p) <
            then_branch = f () => (seq(double[]) a) { a = SplitToSequence <keepdims: int = 0> (w) },
            else_branch = g () => (seq(double[]) b) { e = SplitToSequence <keepdims: int = 0> (x)
                                                      b = SequenceInsert (e, row, zero) }>
        t = SequenceAt (q, one)
        y = Mul (t, x)""",
    "an optional that may be empty": """
        o = If (p) <
            then_branch = f () => (optional(double[]) a) { s = Sin (x) a = Optional (s) },
            else_branch = g () => (optional(double[]) b) {
                b = Optional <type: type_proto = double[2, 3]> ()
            }>
        h = OptionalHasElement (o)
        y = If (h) <
            then_branch = i () => (double[] c) { d = OptionalGetElement (o) c = Mul (d, w) },
            else_branch = j () => (double[] e) { e = Exp (w) }>""",
    "reading": """
        q = SequenceConstruct (x, w)
        y = If (p) <
            then_branch = f () => (double[] a) { b = SequenceAt (q, one) a = Mul (b, x) },
            else_branch = g () => (double[] c) { d = ConcatFromSequence <axis: int = 0> (q) c = Exp (d) }>""",
}


@pytest.mark.parametrize("name", [name for name in BRANCHES if name != "pieces or tensors"])
def test_branches(name: str) -> None:
    text = graph(BRANCHES[name], "double[2, 3] x, double[2, 3] w, bool p")
    for taken in (True, False):
        check_graph(text, {**PAIR, "p": np.array(taken)})


def test_branch_that_does_not_run() -> None:
    """Which branch runs follows from the rank: nothing of the other is left, though it would not fit."""
    text = graph(
        """q = SequenceConstruct (x, w)
        t = SequenceAt (q, zero)
        shape = Shape (t)
        rank = Size (shape)
        is_vector = Equal (rank, one)
        c = If (is_vector) <
            then_branch = f () => (double[] a) { a = ConcatFromSequence <axis: int = 0> (q) },
            else_branch = g () => (double[] b) { b = ConcatFromSequence <axis: int = 1> (q) }>
        y = Exp (c)""",
        "double[3] x, double[3] w",
    )
    inputs = {"x": normal(3), "w": normal(3) + 1}
    check_graph(text, inputs, ("static", "symbolic"))
    assert "If" not in {node.op_type for node in quiet_vjp(parse(text)).graph.node}


LOOPS = {
    "appended and stacked": """
        e = SequenceEmpty <dtype: int = 11> ()
        h, q = Loop (n, true, x, e) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) q0)
            => (bool d, double[2, 3] t, seq(double[]) q1) {
                d = Identity (c) u = Mul (s, w) t = Sin (u) q1 = SequenceInsert (q0, t) }>
        r = ConcatFromSequence <axis: int = 2, new_axis: int = 1> (q)
        m = Mul (r, r)
        v = ReduceSum <keepdims: int = 0> (m)
        y = Mul (v, h)""",
    "appended to a tensor": """
        e = SequenceConstruct (x)
        q = Loop (n, true, e) <body = f (int64 i, bool c, seq(double[]) q0) => (bool d, seq(double[]) q1) {
                d = Identity (c) s = SequenceAt (q0, last) u = Mul (s, w) t = Sin (u)
                q1 = SequenceInsert (q0, t) }>
        r = ConcatFromSequence <axis: int = 0> (q)
        y = Mul (r, r)""",
    "two tensors appended": """
        e = SequenceEmpty <dtype: int = 11> ()
        h, q = Loop (n, true, x, e) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) q0)
            => (bool d, double[2, 3] t, seq(double[]) q2) {
                d = Identity (c) t = Sin (s) q1 = SequenceInsert (q0, t) u = Mul (t, w)
                q2 = SequenceInsert (q1, u) }>
        a = SequenceAt (q, one)
        b = SequenceAt (q, last)
        y = Mul (a, b)""",
    "inserted at the front": """
        e = SequenceConstruct (w)
        h, q = Loop (n, true, x, e) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) q0)
            => (bool d, double[2, 3] t, seq(double[]) q1) {
                d = Identity (c) t = Sin (s) q1 = SequenceInsert (q0, t, zero) }>
        r = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (q)
        a = SequenceAt (q, zero)
        y = Mul (r, a)""",
    "a list of states": """
        e = SequenceConstruct (x, w)
        q = Loop (n, true, e) <body = f (int64 i, bool c, seq(double[]) q0) => (bool d, seq(double[]) q3) {
                d = Identity (c) a = SequenceAt (q0, zero) s = Sin (a) b = SequenceAt (q0, one)
                q1 = SequenceErase (q0, one) t = Mul (b, s) q2 = SequenceInsert (q1, t, one)
                q4 = SequenceErase (q2, zero) q3 = SequenceInsert (q4, s, zero) }>
        r = ConcatFromSequence <axis: int = 0> (q)
        y = Exp (r)""",
    "pieces read one by one": """
        q = SplitToSequence <keepdims: int = 0> (x)
        k = SequenceLength (q)
        z = ReduceSum <keepdims: int = 0> (w, axis)
        h = Loop (k, true, z) <body = f (int64 i, bool c, double[3] s) => (bool d, double[3] t) {
                d = Identity (c) a = SequenceAt (q, i) u = Mul (s, a) t = Sin (u) }>
        f = CastLike (n, h)
        y = Mul (h, f)""",
    "a branch that appends": """
        e = SequenceConstruct (x)
        h, q = Loop (n, true, x, e) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) q0)
            => (bool d, double[2, 3] t, seq(double[]) q1) {
                d = Identity (c)
                t = Sin (s)
                p = Equal (i, one)
                q1 = If (p) <
                    then_branch = a () => (seq(double[]) qa) { qa = SequenceInsert (q0, t) },
                    else_branch = b () => (seq(double[]) qb) { u = Mul (t, w) qb = SequenceInsert (q0, u) }>
            }>
        r = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (q)
        y = Mul (r, r)""",
    "a loop in a loop": """
        e = SequenceEmpty <dtype: int = 11> ()
        h, q = Loop (n, true, x, e) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) q0)
            => (bool d, double[2, 3] t, seq(double[]) q1) {
                d = Identity (c)
                rows = SplitToSequence <keepdims: int = 0> (s)
                k = SequenceLength (rows)
                g = SequenceEmpty <dtype: int = 11> ()
                inner = Loop (k, true, g) <body = b (int64 j, bool cc, seq(double[]) r0)
                    => (bool dd, seq(double[]) r1) {
                        dd = Identity (cc) row = SequenceAt (rows, j) sr = Sin (row)
                        r1 = SequenceInsert (r0, sr) }>
                m = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (inner)
                t = Mul (m, w)
                q1 = SequenceInsert (q0, t)
            }>
        r = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (q)
        y = Mul (r, r)""",
}


@pytest.mark.parametrize("nodes", LOOPS.values(), ids=LOOPS.keys())
def test_loop(nodes: str) -> None:
    text = graph(nodes, "double[2, 3] x, double[2, 3] w, int64 n")
    for trips in (3, 1):
        check_graph(text, {**PAIR, "n": np.array(trips)}, ("static", "unknown"))


RAGGED_LOOP = """
    e = SequenceConstruct (w)
    q = Loop ({trips}, true, e) <body = f (int64 i, bool c, seq(double[]) q0) => (bool d, seq(double[]) q1) {{
            d = Identity (c) k = Add (i, one) k1 = Reshape (k, axis_one) u = Slice (x, axis, k1, axis)
            s = SequenceAt (q0, zero)
            t = Sin (u) q1 = SequenceInsert (q0, t) }}>
    {reading}"""


def ragged_loop(trips: str, reading: str) -> str:
    """A loop that appends the first i + 1 rows of x, for i = 0, 1, 2, …"""
    nodes = RAGGED_LOOP.format(trips=trips, reading=reading).replace("s = SequenceAt (q0, zero)", "")
    text = graph(nodes, "double[4, 3] x, double[2, 3] w, int64 n")
    return text.replace("int64[1] axis = {0}", "int64[1] axis = {0}, int64[1] axis_one = {1}")


RAGGED_INPUTS = {"x": normal(4, 3), "w": normal(2, 3)}


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_pieces_of_different_sizes_joined(trips: int) -> None:
    """How large they are is found out first."""
    text = ragged_loop("n", "r = ConcatFromSequence <axis: int = 0> (q) y = Mul (r, r)")
    check_graph(
        text, {**RAGGED_INPUTS, "n": np.array(trips)}, SHAPE_KNOWLEDGE if trips else SHAPE_KNOWLEDGE[:2]
    )


def test_pieces_of_different_sizes_in_a_known_number() -> None:
    """The iterations are written one after the other."""
    reading = "a = SequenceAt (q, one) b = SequenceAt (q, last) s = ReduceSum (a) y = Mul (s, b)"
    text = ragged_loop("three", f"{reading} k = Identity (n)")
    check_graph(text, {**RAGGED_INPUTS, "n": np.array(3)})
    assert "Loop" not in {node.op_type for node in quiet_vjp(parse(text)).graph.node}


def test_second_order() -> None:
    text = graph(LOOPS["appended to a tensor"], "double[2, 3] x, double[2, 3] w, int64 n")
    check_graph(text, {**PAIR, "n": np.array(2)}, ("static",), second_order=True)
    check_graph(graph(OF_TENSORS["mapped in pairs"]), PAIR, ("static",), second_order=True)


REFUSED = {
    "comes from outside as a sequence": graph(
        "r = SequenceInsert (q, x) y = ConcatFromSequence <axis: int = 0> (r)",
        "seq(double[2, 3]) q, double[2, 3] x",
    ),
    "the branches give 'q' in different lengths": graph(
        """q = If (p) <
            then_branch = f () => (seq(double[]) a) { a = SequenceConstruct (x, x) },
            else_branch = g () => (seq(double[]) b) { b = SequenceConstruct (x) }>
        y = ConcatFromSequence <axis: int = 0> (q)""",
        "double[2, 3] x, bool p",
    ),
    "changes the length of its state 'q0', and not by appending to it in every iteration": graph(
        """e = SequenceConstruct (x, x, x)
        q = Loop (n, true, e) <body = f (int64 i, bool c, seq(double[]) q0) => (bool d, seq(double[]) q1) {
            d = Identity (c) q1 = SequenceErase (q0) }>
        y = ConcatFromSequence <axis: int = 0> (q)""",
        "double[2, 3] x, int64 n",
    ),
    "reads more than the last tensor of it": graph(
        """e = SequenceConstruct (x)
        q = Loop (n, true, e) <body = f (int64 i, bool c, seq(double[]) q0) => (bool d, seq(double[]) q1) {
            d = Identity (c) s = SequenceAt (q0, i) t = Sin (s) q1 = SequenceInsert (q0, t) }>
        y = ConcatFromSequence <axis: int = 0> (q)""",
        "double[2, 3] x, int64 n",
    ),
    "how many pieces 'x' is cut into is only known when the model runs": graph(
        "q = SplitToSequence (x) r = SequenceErase (q, one) y = ConcatFromSequence <axis: int = 0> (r)",
        "double[N, 3] x",
    ),
    "their number, their sizes or their rank is only known when the model runs": graph(
        "q = SplitToSequence (x, two) y = ConcatFromSequence <axis: int = 1> (q)", "double[N, 3] x"
    ),
    "holds tensors that may differ in shape": graph(
        """q = SplitToSequence (x, two)
        m = SequenceMap (q) <body = f (double[] t) => (double[] u) { u = Sin (t) }>
        y = ConcatFromSequence <axis: int = 0> (m)""",
        "double[N, 3] x",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal_says_why(reason: str) -> None:
    """Nodes between the cause and the end tell the same cause, with what to do."""
    with pytest.raises(onnx_grad.UnsupportedOpError) as refusal:
        onnx_grad.vjp(parse(REFUSED[reason]), "x")
    assert reason in str(refusal.value)
    assert "stop=[…]" in str(refusal.value)
    blockers = onnx_grad.inspect(parse(REFUSED[reason]), "x").blockers
    assert all(reason in blocker.reason for blocker in blockers)


def run(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a model by name, sequences included."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def assert_keeps_its_outputs(text: str, inputs: Mapping[str, np.ndarray], of: str = "y") -> onnx.ModelProto:
    """All outputs of the model are outputs of the gradient graph, with the same values."""
    model = parse(text)
    gradient = quiet_vjp(model, ["x"], [of])
    expected = run(model, inputs)
    actual = run(gradient, {**inputs, f"{of}_grad": np.ones_like(expected[of])})
    for name, value in expected.items():
        pairs = zip(actual[name], value, strict=True) if isinstance(value, list) else [(actual[name], value)]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
    return gradient


def test_sequences_that_are_outputs_stay() -> None:
    gradient = assert_keeps_its_outputs(
        graph(
            """q = SplitToSequence (x)
            a = SequenceAt (q, zero)
            r = SequenceInsert (q, a)
            m = SequenceMap (r) <body = f (double[] t) => (double[] u) { u = Sin (t) }>
            y = ConcatFromSequence <axis: int = 0> (m)""",
            "double[N, 3] x",
            "double[] y, seq(double[]) q, seq(double[]) r, seq(double[]) m",
        ),
        {"x": normal(3, 3)},
    )
    assert left(gradient) >= {"SplitToSequence", "SequenceInsert"}


@pytest.mark.parametrize("taken", [True, False])
def test_sequences_of_control_flow_that_are_outputs_stay(taken: bool) -> None:
    text = graph(
        """q = If (p) <
            then_branch = f () => (seq(double[]) a) { s = Sin (x) a = SequenceConstruct (x, s) },
            else_branch = g () => (seq(double[]) b) { e = Exp (x) b = SequenceConstruct (e, x) }>
        o = If (p) <
            then_branch = f () => (optional(double[]) a) { s = Sin (x) a = Optional (s) },
            else_branch = g () => (optional(double[]) b) {
                b = Optional <type: type_proto = double[2, 3]> ()
            }>
        start = SequenceConstruct (w)
        h, z = Loop (n, true, x, start) <body = f (int64 i, bool c, double[2, 3] s, seq(double[]) z0)
            => (bool d, double[2, 3] t, seq(double[]) z1) {
                d = Identity (c) t = Sin (s) z1 = SequenceInsert (z0, t) }>
        present = OptionalHasElement (o)
        y1 = SequenceAt (q, one)
        y2 = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (z)
        y3 = If (present) <
            then_branch = f () => (double[] a) { a = OptionalGetElement (o) },
            else_branch = g () => (double[] b) { b = Identity (x) }>
        y4 = Mul (y1, y2)
        y = Mul (y3, y4)""",
        "double[2, 3] x, double[2, 3] w, bool p, int64 n",
        "double[] y, seq(double[]) q, seq(double[]) z, bool present",
    )
    assert_keeps_its_outputs(text, {**PAIR, "p": np.array(taken), "n": np.array(2)})


def test_sequences_off_the_path_stay() -> None:
    """Those of integers, and those that nothing differentiated depends on."""
    gradient = assert_keeps_its_outputs(
        graph(
            """s = Shape (x)
            q = SplitToSequence (s)
            n = SequenceAt (q, zero)
            t = Tile (x, s)
            r = SequenceConstruct (t, x)
            z = SequenceAt (r, one)
            y = Sin (x)""",
            "double[2, 3] x",
            "double[] y, int64[] n, double[] z",
        ),
        {"x": normal(2, 3)},
    )
    assert left(gradient) == {"SplitToSequence", "SequenceConstruct", "SequenceAt"}


def test_elements_keep_their_names() -> None:
    text = graph(
        """q = SequenceConstruct (x, w)
        first = SequenceAt (q, zero)
        again = SequenceAt (q, zero)
        s = SplitToSequence (first)
        row = SequenceAt (s, one)
        same = SequenceAt (s, one)
        p = Mul (row, again)
        y = Mul (p, same)"""
    )
    model = parse(text)
    for name in ("first", "again", "row", "same"):
        gradient = quiet_vjp(model, [name, "x"], ["y"])
        assert f"{name}_grad" in {output.name for output in gradient.graph.output}
        assert "x_grad" in {output.name for output in quiet_vjp(model, ["x"], [name]).graph.output}
    assert quiet_vjp(model, ["x"], ["y"], stop=["q"]).graph.output


SEQUENCE_MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "test_sequence_model1": {"X": (2, 3, 4), "Y": (1, 3, 4), "Z": (3, 3, 4)},
    "test_sequence_model2": {"X": (2, 3, 4), "Y": (2, 3, 4), "Z": (2, 3, 4)},
    "test_sequence_model3": {"X": (2, 3, 4), "Y": (2, 3, 4), "Z": (2, 3, 4)},
    "test_sequence_model4": {"X": (2, 3, 4), "Y": (2, 3, 4), "Z": (2, 3, 4)},
    "test_sequence_model5": {"X": (2, 3, 4), "Y": (2, 3, 4), "Z": (2, 3, 4)},
    "test_sequence_model7": {"X": (2, 3, 4)},
}


@functools.cache
def sequence_models() -> dict[str, str]:
    """Where the models of onnx's own cases of sequences are."""
    cases = onnx.backend.test.loader.load_model_tests(kind="simple")
    return {case.name: f"{case.model_dir}/model.onnx" for case in cases}


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_model_of_the_specification(name: str) -> None:
    """Their positions are inputs that have a default."""
    text = onnx.printer.to_text(onnx.load(sequence_models()[name]))
    text = re.sub(r"\bfloat\[", "double[", text)
    model = onnx.parser.parse_model(text.replace("SequenceEmpty ()", "SequenceEmpty <dtype: int = 11> ()"))
    inputs = {x: normal(*shape) for x, shape in SEQUENCE_MODELS[name].items()}
    check(model, inputs, shapes=("static",))
