"""The smallest graph in which an operand is stretched: ``python -m models.broadcast_add``."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from models import FOLDER


def build() -> onnx.ModelProto:
    """``z = a + b``, float32, ``a [batch, 3]`` and ``b [3]``: ``b`` is repeated ``batch`` times."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["z"], name="add")],
        "broadcast_add",
        inputs=[
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]),
        ],
        outputs=[helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3])],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
        producer_name="onnx.helper",
    )


def main(folder: Path = FOLDER) -> None:
    """Writes the file."""
    onnx.save(build(), folder / "broadcast_add.onnx")
    print("broadcast_add: built")


if __name__ == "__main__":
    main()
