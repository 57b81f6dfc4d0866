"""What is compared: one gradient step of a network, by this project, by its peers, and the forward pass."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import onnx_grad
from benchmarks.layers import Array, TorchLayers
from benchmarks.networks import Network

ORT_TRAINING_WORKER = Path(__file__).with_name("ort_training.py")

Clock = Callable[[], float]


class AbsentPeerError(Exception):
    """The peer is not installed, or refuses the network; the message says which."""


@dataclass(frozen=True)
class Task:
    """A network and what is differentiated.

    Attributes:
        network: The network.
        wrt: `"weights"`, which are graph inputs then, or `"input"`, and the weights are constants.
        threads: How many threads each side may use.
        dynamic_batch: Whether the batch is a symbol in the model.
        arena: Whether ONNX Runtime keeps freed memory for itself, as it does by default.
    """

    network: Network
    wrt: str
    threads: int
    dynamic_batch: bool = False
    arena: bool = True

    def model(self) -> onnx.ModelProto:
        """The forward model."""
        return self.network.onnx(self.wrt == "weights", self.dynamic_batch)

    def names(self) -> list[str]:
        """What is differentiated with respect to."""
        return list(self.network.weights()) if self.wrt == "weights" else ["x"]

    def feeds(self) -> dict[str, Array]:
        """The inputs of the forward model."""
        weights = self.network.weights() if self.wrt == "weights" else {}
        return {"x": self.network.example(), **weights}

    def cotangent(self) -> Array:
        """A cotangent of `y`."""
        shape = [d.dim_value for d in self.model().graph.output[0].type.tensor_type.shape.dim]
        shape[0] = self.network.shape[0]
        return np.random.default_rng(2).standard_normal(shape, dtype=np.float32)


class Side:
    """One of those compared: `step` runs once, `results` are its gradients."""

    step: Callable[[], object]

    def results(self) -> list[Array]:
        """The gradients in the order of `Task.names`; empty where there are none."""
        return []

    def seconds(self, repetitions: int, clock: Clock) -> float:
        """The time of one step, on average."""
        started = clock()
        for _ in range(repetitions):
            self.step()
        return (clock() - started) / repetitions

    def clear(self) -> None:
        """Let go of the results of the last step."""

    def close(self) -> None:
        """Let go of what the side holds."""


class Session(Side):
    """A model on stock ONNX Runtime, its inputs bound and its outputs allocated by the runtime."""

    def __init__(
        self, model: onnx.ModelProto, feeds: dict[str, Array], gradients: Sequence[str], task: Task
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        options.enable_cpu_mem_arena = task.arena
        options.log_severity_level = 3
        # Otherwise its threads go on spinning, which whoever is measured next pays for.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self.session.get_outputs()]
        self._gradients = list(gradients)
        wanted = {value.name for value in self.session.get_inputs()}
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
            if name in wanted
        }
        self._binding = self.session.io_binding()
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)

    def step(self) -> None:
        for name in self._names:
            self._binding.bind_output(name)
        self.session.run_with_iobinding(self._binding)

    def clear(self) -> None:
        self._binding.clear_binding_outputs()

    def results(self) -> list[Array]:
        self.step()
        outputs = dict(zip(self._names, self._binding.get_outputs(), strict=True))
        return [outputs[name].numpy() for name in self._gradients]


def forward(task: Task) -> Side:
    """The forward pass alone."""
    return Session(task.model(), task.feeds(), [], task)


def ours(task: Task) -> Side:
    """The gradient graph of this project."""
    names = task.names()
    model = onnx_grad.vjp(task.model(), names)
    feeds = {**task.feeds(), "y_grad": task.cotangent()}
    return Session(model, feeds, [f"{name}_grad" for name in names], task)


class _Torch(Side):
    def __init__(self, task: Task) -> None:
        self._layers = TorchLayers(requires_grad=task.wrt == "weights")
        torch = self._layers.torch
        torch.set_num_threads(task.threads)
        self._grad, self._define = torch.autograd.grad, task.network.define
        self._x = torch.tensor(task.network.example(), requires_grad=task.wrt == "input")
        self._dy = torch.tensor(task.cotangent())
        self._define(self._layers, self._x)
        self._wrt = list(self._layers.weights.values()) if task.wrt == "weights" else [self._x]
        self._turned = self._layers.turned if task.wrt == "weights" else []

    def step(self) -> Any:
        self._layers.restart()
        y = self._define(self._layers, self._x)
        return self._grad(y, self._wrt, self._dy)

    def results(self) -> list[Array]:
        gradients = [gradient.numpy() for gradient in self.step()]
        return [g.T if i in self._turned else g for i, g in enumerate(gradients)]


def torch(task: Task) -> Side:
    """PyTorch's eager step: forward and backward."""
    _need("torch")
    return _Torch(task)


def onnx_ad(task: Task) -> Side:
    """The peer `onnx-ad`; its models take several cotangents at once along a last axis, here one."""
    _need("onnx_ad")
    from onnx_ad import reverse

    names = task.names()
    try:
        model = reverse(task.model(), inputs=names, outputs=["y"], layout="onnx")
        side = Session(
            model,
            {**task.feeds(), "adj_y": task.cotangent()[..., None]},
            [f"adj_{name}" for name in names],
            task,
        )
    except Exception as error:
        raise AbsentPeerError(f"onnx-ad refuses: {_first_line(error)}") from error
    return side


def onnxsim(task: Task) -> Side:
    """The gradient builder of the peer `onnxsim`; it needs constants as nodes' own and static shapes."""
    _need("onnxsim")
    from onnxsim.graph_grad import build_backward
    from onnxsim.qat_graph import GraphBuilder

    model = onnx.shape_inference.infer_shapes(task.model(), data_prop=True)
    graph = model.graph
    shapes: dict[str, list[int]] = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes.update({tensor.name: list(tensor.dims) for tensor in graph.initializer})
    try:
        builder = GraphBuilder("gradient_")
        builder.nodes.extend(graph.node)
        builder.initializer.extend(graph.initializer)
        found = build_backward(builder, list(graph.node), shapes, {"y": "y_grad"}, task.names())
        gradient = onnx.ModelProto()
        gradient.CopyFrom(model)
        del gradient.graph.node[:], gradient.graph.initializer[:], gradient.graph.output[:]
        gradient.graph.node.extend(builder.nodes)
        gradient.graph.initializer.extend(builder.initializer)
        gradient.functions.extend(builder.functions)
        domains = {function.domain for function in builder.functions}
        gradient.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in domains)
        tensor = onnx.helper.make_tensor_value_info
        gradient.graph.input.append(tensor("y_grad", onnx.TensorProto.FLOAT, shapes["y"]))
        outputs = [found[name] for name in task.names()]
        gradient.graph.output.extend(tensor(name, onnx.TensorProto.FLOAT, None) for name in outputs)
        return Session(gradient, {**task.feeds(), "y_grad": task.cotangent()}, outputs, task)
    except Exception as error:
        raise AbsentPeerError(f"onnxsim refuses: {_first_line(error)}") from error


class _Worker(Side):
    """onnxruntime-training in the Python of its own virtual environment."""

    def __init__(self, python: Path, task: Task) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnx-grad-benchmark-")
        folder = Path(self._folder.name)
        (folder / "model.onnx").write_bytes(task.model().SerializeToString())
        np.savez(folder / "feeds.npz", **{**task.feeds(), "cotangent_of_y": task.cotangent()})
        request = {"folder": str(folder), "names": task.names(), "threads": task.threads}
        self._process = subprocess.Popen(
            [str(python), str(ORT_TRAINING_WORKER), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._results = self._ask("results")
        if "error" in self._results:
            self.close()
            raise AbsentPeerError(f"onnxruntime-training refuses: {self._results['error']}")

    def step(self) -> None:
        self._ask("time 1 wall")

    def seconds(self, repetitions: int, clock: Clock) -> float:
        kind = "cpu" if clock is time.process_time else "wall"
        return float(self._ask(f"time {repetitions} {kind}")["seconds"])

    def results(self) -> list[Array]:
        arrays = np.load(self._results["path"])
        return [arrays[name] for name in arrays.files]

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _ask(self, question: str) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise AbsentPeerError("onnxruntime-training: no connection")
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            said = self._process.stderr.read() if self._process.stderr is not None else ""
            raise AbsentPeerError(f"onnxruntime-training failed: {said.strip().splitlines()[-1:]}")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded


def ort_training(python: Path) -> Callable[[Task], Side]:
    """The gradient graph of onnxruntime-training, run by the interpreter `python`."""

    def side(task: Task) -> Side:
        if not python.exists():
            raise AbsentPeerError(f"there is no {python}")
        return _Worker(python, task)

    return side


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise AbsentPeerError(f"{module} is not installed")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
