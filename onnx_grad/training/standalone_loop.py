"""Trains with the artifacts that onnx_grad wrote. Needs onnxruntime and numpy, and nothing else."""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime

FOLDER = "artifacts"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--artifacts", default=FOLDER, type=pathlib.Path)
parser.add_argument("--data", required=True, help="an .npz file with arrays named after the inputs")
parser.add_argument("--eval", help="another one, to evaluate on")
parser.add_argument("--out", default="trained.safetensors")
parser.add_argument("--epochs", default=10, type=int)
parser.add_argument("--batch-size", default=32, type=int)
parser.add_argument("--lr", default=1e-3, type=float)
parser.add_argument("--seed", default=0, type=int)

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16"}


def read_safetensors(path):
    """The tensors of a file by name: a length, a header in JSON, and their bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat = np.frombuffer(content[start + first : start + last], TYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """The inverse."""
    codes = {name: code for code, name in TYPES.items()}
    header, end = {}, 0
    for name, array in tensors.items():
        place = [end, end := end + array.nbytes]
        header[name] = {"dtype": codes[str(array.dtype)], "shape": array.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    with pathlib.Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())


def batches(path, about, size, rng=None):
    """Batches of the arrays in an .npz file, shuffled where there is a generator."""
    content = np.load(path)
    arrays = {name: content[name].astype(spec["type"]) for name, spec in about["batch"].items()}
    count = len(next(iter(arrays.values())))
    order = np.arange(count) if rng is None else rng.permutation(count)
    for start in range(0, count, size):
        yield {name: array[order[start : start + size]] for name, array in arrays.items()}


def initial_state(about, weights):
    """Weights, the state of the optimizer, and the count of updates."""
    state = dict(weights)
    for name, slot in about["state"].items():
        parameter = weights[slot["parameter"]]
        state[name] = parameter if slot["start"] == "parameter" else np.full_like(parameter, slot["start"])
    return {**state, about["step"]: np.asarray(0)}


def evaluate(session, about, state, data):
    """The mean loss, and how often the largest output is the label."""
    taken = {value.name for value in session.get_inputs()}
    examples = loss = right = labels = 0
    for batch in data:
        feeds = {name: value for name, value in {**state, **batch}.items() if name in taken}
        of_batch, *outputs = session.run([about["loss"], *about["targets"]], feeds)
        size = len(next(iter(batch.values())))
        examples, loss = examples + size, loss + size * float(of_batch)
        for output, target in zip(outputs, about["targets"].values(), strict=True):
            if batch[target].dtype == np.int64:
                right += (output.argmax(1) == batch[target]).sum()
                labels += batch[target].size
    return f"evaluation loss {loss / examples:.4f}" + (f", accuracy {right / labels:.2%}" if labels else "")


def main():
    """Run a step, let what it gives be the next state, repeat."""
    options = parser.parse_args()
    about = json.loads((options.artifacts / "artifacts.json").read_text())
    weights = read_safetensors(options.artifacts / about["tensors"])
    state = initial_state(about, weights)
    step, evaluation = (
        onnxruntime.InferenceSession(options.artifacts / about["models"][name])
        for name in ("step", "evaluation")
    )
    rate = {about["learning_rate"]: np.asarray(options.lr, np.float32)}
    updates = {**about["updates"], **about["statistics"]}
    masks = np.random.default_rng(options.seed)
    for epoch in range(options.epochs):
        losses = []
        rng = np.random.default_rng([options.seed, epoch])
        for batch in batches(options.data, about, options.batch_size, rng):
            seed = {about["seed"]: np.asarray(masks.integers(2**62))} if about["seed"] else {}
            loss, *new = step.run([about["loss"], *updates.values()], {**batch, **state, **rate, **seed})
            state = dict(zip(updates, new, strict=True))
            losses.append(float(loss))
        line = f"epoch {epoch + 1}: loss {np.mean(losses):.4f}"
        if options.eval:
            data = batches(options.eval, about, options.batch_size)
            line += ", " + evaluate(evaluation, about, state, data)
        print(line, flush=True)
    write_safetensors(options.out, {name: state[name] for name in weights})


if __name__ == "__main__":
    main()
