"""One step of a pole balanced on a cart, written with onnx.helper: ``python -m models.cartpole``.

What a control engineer asks of such a model are derivatives: of the next state by state and force
(the matrices A and B of a linearization), of the cost by the force (trajectory optimization), and
of either by the physical parameters, which are initializers (system identification).
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models import FOLDER

PARAMETERS = {
    "cart_mass": 1.0,  # kg
    "pole_mass": 0.1,  # kg
    "half_length": 0.5,  # m, from pivot to the centre of the pole
    "gravity": 9.81,  # m/s²
    "time_step": 0.02,  # s
    "four_thirds": 4.0 / 3.0,  # a rod's moment of inertia about its end, over mass × half_length²
    "state_cost": np.diag([1.0, 0.1, 10.0, 0.1]),  # Q of the quadratic cost
    "force_cost": [[0.001]],  # R
}


def equations() -> list[NodeProto]:
    """The nodes of the motion and of its cost.

    Without friction, with ``θ`` from upright, ``M`` cart, ``m`` pole, ``l`` half length, after
    R. V. Florian, "Correct equations for the dynamics of the cart-pole system" (2007)::

        p  = (F + m l θ'² sin θ) / (M + m)
        θ" = (g sin θ - p cos θ) / (l (4/3 - m cos² θ / (M + m)))
        x" = p - m l θ" cos θ / (M + m)

    Velocities are stepped first, then positions with the new velocities (semi-implicit Euler).
    """

    def node(operator: str, inputs: str, outputs: str, **attributes: int) -> NodeProto:
        name, *_ = results = outputs.split()
        made = helper.make_node(operator, inputs.split(), results, name=name)
        made.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        return made

    return [
        node("Split", "state", "position velocity angle rate", axis=1, num_outputs=4),
        node("Sin", "angle", "sine"),
        node("Cos", "angle", "cosine"),
        node("Add", "cart_mass pole_mass", "total_mass"),
        node("Mul", "pole_mass half_length", "pole_moment"),
        # p
        node("Mul", "rate rate", "rate_squared"),
        node("Mul", "rate_squared sine", "centrifugal"),
        node("Mul", "pole_moment centrifugal", "pole_force"),
        node("Add", "force pole_force", "total_force"),
        node("Div", "total_force total_mass", "push"),
        # θ"
        node("Mul", "gravity sine", "fall"),
        node("Mul", "push cosine", "drag"),
        node("Sub", "fall drag", "torque"),
        node("Mul", "cosine cosine", "cosine_squared"),
        node("Div", "pole_mass total_mass", "pole_share"),
        node("Mul", "pole_share cosine_squared", "coupling"),
        node("Sub", "four_thirds coupling", "relative_inertia"),
        node("Mul", "half_length relative_inertia", "inertia"),
        node("Div", "torque inertia", "angular_acceleration"),
        # x"
        node("Mul", "angular_acceleration cosine", "horizontal"),
        node("Mul", "pole_moment horizontal", "reaction"),
        node("Div", "reaction total_mass", "recoil"),
        node("Sub", "push recoil", "acceleration"),
        # the step
        node("Mul", "time_step acceleration", "velocity_change"),
        node("Add", "velocity velocity_change", "next_velocity"),
        node("Mul", "time_step angular_acceleration", "rate_change"),
        node("Add", "rate rate_change", "next_rate"),
        node("Mul", "time_step next_velocity", "position_change"),
        node("Add", "position position_change", "next_position"),
        node("Mul", "time_step next_rate", "angle_change"),
        node("Add", "angle angle_change", "next_angle"),
        node("Concat", "next_position next_velocity next_angle next_rate", "next_state", axis=1),
        # the cost, summed over the batch
        node("MatMul", "next_state state_cost", "weighted_state"),
        node("Mul", "next_state weighted_state", "state_terms"),
        node("ReduceSum", "state_terms", "cost_of_state", keepdims=0),
        node("MatMul", "force force_cost", "weighted_force"),
        node("Mul", "force weighted_force", "force_terms"),
        node("ReduceSum", "force_terms", "cost_of_force", keepdims=0),
        node("Add", "cost_of_state cost_of_force", "cost"),
    ]


def build() -> onnx.ModelProto:
    """``state [batch, 4]`` and ``force [batch, 1]`` to ``next_state [batch, 4]`` and ``cost []``.

    A state is position (m), velocity (m/s), angle from upright (rad) and angular rate (rad/s); the
    force on the cart is in newtons. All are float32. The cost is ``Σ x'ᵀ Q x' + Fᵀ R F`` over the
    batch, where ``x'`` is the next state.
    """

    def tensor(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        equations(),
        "cartpole",
        inputs=[tensor("state", ["batch", 4]), tensor("force", ["batch", 1])],
        outputs=[tensor("next_state", ["batch", 4]), tensor("cost", [])],
        initializer=[
            numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)
            for name, value in PARAMETERS.items()
        ],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
        producer_name="onnx.helper",
    )


def main(folder: Path = FOLDER) -> None:
    """Writes the file."""
    onnx.save(build(), folder / "cartpole.onnx")
    print("cartpole: built")


if __name__ == "__main__":
    main()
