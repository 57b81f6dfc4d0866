"""Why some float inputs get no gradient, and why some tags of the specification are not followed.

onnx tags the inputs and outputs of most operators as differentiable or not. The tags are incomplete, and some
leave out tensors that have a derivative. A test holds both lists to be complete and without excess.
"""

from __future__ import annotations

# (operator, input): why it gets no gradient, though it is of a float type.
FROZEN = {
    ("CastLike", "target_type"): "only its type is read",
    ("Dropout", "ratio"): "the mask that it led to was drawn at random",
    ("MaxRoiPool", "rois"): "regions count as fixed, as in torchvision",
    ("OneHot", "indices"): "floats are read as whole numbers",
    ("OneHot", "depth"): "floats are read as whole numbers",
    ("Range", "limit"): "it only decides how many numbers there are",
    ("Resize", "roi"): "it only places the sampling points, which count as fixed, as in PyTorch",
    ("Resize", "scales"): "they only place the sampling points, which count as fixed, as in PyTorch",
    ("RoiAlign", "rois"): "regions count as fixed, as in torchvision",
}

_UNTAGGED = "the specification gives no tags"

# Operator: the inputs and outputs that are tagged otherwise than they are treated here, and why.
DIFFERENCES = {
    "AffineGrid": ("theta", "the grid is linear in it"),
    "Attention": (
        "Q, K, V, attn_mask, past_key, past_value, Y, present_key, present_value, qk_matmul_output",
        _UNTAGGED,
    ),
    "BatchNormalization": ("running_mean, running_var", "when training, they move with the batch"),
    "CausalConvWithState": ("past_state, present_state", "the state is convolved as the input is"),
    "Clip": ("min, max", "the output is a bound, and moves with it, where the input is beyond it"),
    "DFT": ("input, output", "the transform is linear"),
    "DeformConv": ("X, W, offset, B, mask, Y", _UNTAGGED),
    "DequantizeLinear": ("x_scale, y", "y = (x − x_zero_point)·x_scale is linear in the scale"),
    "GRU": ("initial_h", "the states vary with the one that they begin with"),
    "GridSample": ("grid", "interpolated values vary with the points where they are taken"),
    "Hardmax": ("input, output", "it is constant between its jumps"),
    "If": ("outputs", _UNTAGGED),
    "LSTM": ("initial_h, initial_c", "the states vary with those that they begin with"),
    "LayerNormalization": ("X, Scale, B, Y, Mean, InvStdDev", _UNTAGGED),
    "LinearAttention": ("past_state, present_state", "the state is read and written by products"),
    "Loop": ("v_initial, v_final_and_scan_outputs", _UNTAGGED),
    "Mod": ("B", "the remainder is A minus a whole multiple of B"),
    "NegativeLogLikelihoodLoss": ("weight", "the loss is a weighted mean"),
    "OneHot": ("values, output", "the output consists of these values"),
    "Pad": ("constant_value", "the borders consist of it"),
    "RMSNormalization": ("X, scale, Y", _UNTAGGED),
    "RNN": ("initial_h", "the states vary with the one that they begin with"),
    "Range": ("start, delta, output", _UNTAGGED),
    "ReverseSequence": ("input, Y", _UNTAGGED),
    "RoiAlign": ("X, Y", _UNTAGGED),
    "RotaryEmbedding": ("X, cos_cache, sin_cache, Y", _UNTAGGED),
    "STFT": ("signal, window, output", "the transform is linear in each of them"),
    "Scan": ("initial_state_and_scan_inputs, final_state_and_scan_outputs", _UNTAGGED),
    "SoftmaxCrossEntropyLoss": ("weights", "the loss is a weighted mean"),
    "Unique": ("X, Y", "the output consists of elements of X"),
}
