"""The side of onnxruntime-training: runs in its own virtual environment, asked over standard input.

It builds the gradient graph of the loss Σ y·dy with `GradientGraphBuilder` and runs it in an
`InferenceSession` of the training build. Only that build, onnx and numpy are needed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi._pybind_state import GradientGraphBuilder

# Its own names end in "_grad".
COTANGENT = "cotangent_of_y"


def with_loss(model: onnx.ModelProto, cotangent: Any) -> onnx.ModelProto:
    """`model` with the scalar output Σ y·dy, and the optional outputs that its gradient rules need."""
    graph = model.graph
    helper = onnx.helper
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            node.output.extend([f"{node.name}_mean", f"{node.name}_inverse"])
        elif node.op_type == "BatchNormalization":
            # It has no gradient for inference: the batch's own statistics are the nearest it can do.
            node.domain, node.op_type = "com.microsoft", "BatchNormInternal"
            node.attribute.append(helper.make_attribute("training_mode", 1))
            added = ("running_mean", "running_variance", "saved_mean", "saved_inverse")
            node.output.extend(f"{node.name}_{output}" for output in added)
    graph.input.append(helper.make_tensor_value_info(COTANGENT, onnx.TensorProto.FLOAT, cotangent.shape))
    graph.node.append(helper.make_node("Mul", ["y", COTANGENT], ["product"], "product"))
    graph.node.append(helper.make_node("ReduceSum", ["product"], ["loss"], "loss", keepdims=0))
    graph.output.append(helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, []))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def gradient_session(
    model: onnx.ModelProto, names: list[str], cotangent: Any, threads: int
) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """A session of the gradient graph, and the names of its gradients."""
    with_outputs = with_loss(model, cotangent)
    builder = GradientGraphBuilder(with_outputs.SerializeToString(), {"loss"}, set(names), "loss")
    builder.build()
    gradient = onnx.load_from_string(builder.get_model())
    wanted = [f"{name}_grad" for name in names]
    given = {output.name for output in gradient.graph.output}
    for name in wanted:
        if name not in given:
            gradient.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        gradient.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, wanted


def main() -> None:
    """Answer `results` and `time <repetitions> <cpu|wall>`, one line each, until the input ends."""
    request = json.loads(sys.argv[1])
    folder, names = request["folder"], request["names"]
    feeds = dict(np.load(os.path.join(folder, "feeds.npz")))
    try:
        model = onnx.load(os.path.join(folder, "model.onnx"))
        session, wanted = gradient_session(model, names, feeds[COTANGENT], request["threads"])
        values = {v.name: feeds[v.name] for v in session.get_inputs()}
        kept = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a) for n, a in values.items()}
        binding = session.io_binding()
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)

        def step() -> None:
            for name in wanted:
                binding.bind_output(name)
            session.run_with_iobinding(binding)

        step()
    except Exception as error:
        print(json.dumps({"error": str(error).strip().splitlines()[0][:160]}), flush=True)
        return
    for line in sys.stdin:
        kind, *rest = line.split()
        if kind == "results":
            path = os.path.join(folder, "results.npz")
            step()
            arrays = [output.numpy() for output in binding.get_outputs()]
            np.savez(path, **dict(zip(names, arrays)))  # noqa: B905
            print(json.dumps({"path": path}), flush=True)
        else:
            clock = time.process_time if rest[1] == "cpu" else time.perf_counter
            repetitions = int(rest[0])
            started = clock()
            for _ in range(repetitions):
                step()
            print(json.dumps({"seconds": (clock() - started) / repetitions}), flush=True)


if __name__ == "__main__":
    main()
