"""Training on stock ONNX Runtime: losses, optimizers, the trainer, checkpoints, and the tuned model back."""

from onnx_grad.training.artifacts import Artifacts, read_artifacts, write_artifacts
from onnx_grad.training.evaluation_graph import evaluation_model
from onnx_grad.training.log import plot_curves
from onnx_grad.training.loop import loop_program
from onnx_grad.training.lora import LoRA, lora_model
from onnx_grad.training.loss_graph import LossSpec, Tensors, Term
from onnx_grad.training.losses import (
    L1,
    LOSSES,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    Huber,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihood,
)
from onnx_grad.training.metrics import METRICS
from onnx_grad.training.optimizer_graph import OptimizerNotes, ParameterGroup, optimizer_model
from onnx_grad.training.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, Lion, Optimizer, RMSprop
from onnx_grad.training.schedules import SCHEDULES, Constant, Linear, Schedule, StepDecay
from onnx_grad.training.schedules import Cosine as CosineSchedule
from onnx_grad.training.state import StepResult, TrainingState
from onnx_grad.training.step_graph import step_model
from onnx_grad.training.stopping import EarlyStopping
from onnx_grad.training.trainer import Trainer
from onnx_grad.training.training_graph import TrainingNotes, training_model
from onnx_grad.training.weights import with_weights

__all__ = [
    "L1",
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Artifacts",
    "BinaryCrossEntropy",
    "Constant",
    "Cosine",
    "CosineSchedule",
    "CrossEntropy",
    "EarlyStopping",
    "Huber",
    "Linear",
    "Lion",
    "LoRA",
    "Loss",
    "LossSpec",
    "MeanSquaredError",
    "NegativeLogLikelihood",
    "Optimizer",
    "OptimizerNotes",
    "ParameterGroup",
    "RMSprop",
    "Schedule",
    "StepDecay",
    "StepResult",
    "Tensors",
    "Term",
    "Trainer",
    "TrainingNotes",
    "TrainingState",
    "evaluation_model",
    "loop_program",
    "lora_model",
    "optimizer_model",
    "plot_curves",
    "read_artifacts",
    "step_model",
    "training_model",
    "with_weights",
    "write_artifacts",
]
