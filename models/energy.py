"""The energy of a cloud of particles, as a learned sum over pairs: ``python -m models.energy``.

Its negative gradient with respect to the positions is the force on each particle. Lengths and
energies are in reduced units: the potential which it learns has a well of depth 1 at distance 1.1.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

from models import FOLDER
from models.exporters import export_both, load_weights
from models.projection import Projection

CUTOFF = 2.5
PARTICLES = 8
BOX = 2.4
CLOSEST = 0.75


def morse(distance: Tensor) -> Tensor:
    """What is learned: ``(1 - exp(-3 (r - 1.1)))² - 1``, taken smoothly to zero at ``CUTOFF``."""
    return ((1.0 - torch.exp(-3.0 * (distance - 1.1))) ** 2 - 1.0) * envelope(distance)


def envelope(distance: Tensor) -> Tensor:
    """``(1 - (r / CUTOFF)²)³`` within the cutoff, zero beyond; twice differentiable."""
    inside = torch.relu(1.0 - (distance / CUTOFF) ** 2)
    return inside * inside * inside


def distances(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Distances ``[..., n, n]``, and which belong to a pair ``[n, n]``: all but the diagonal.

    The diagonal is set to one *before* the root: the derivative of a root at zero is infinite, and
    masking its result afterwards would make NaN of it.
    """
    difference = positions.unsqueeze(-2) - positions.unsqueeze(-3)
    squared = (difference * difference).sum(dim=-1)
    particle = torch.arange(positions.shape[-2])
    pair = particle.unsqueeze(0) != particle.unsqueeze(1)
    return torch.where(pair, squared, 1.0).sqrt(), pair


def total(pair_energy: Tensor, pair: Tensor) -> Tensor:
    """Sums ``[..., n, n]`` over pairs, each of which is there twice."""
    return 0.5 * torch.where(pair, pair_energy, 0.0).sum(dim=(-2, -1))


class Energy(nn.Module):
    """``positions [particles, 3]`` to ``energy []``.

    ``E = 1/2 Σ_{i≠j} φ(|x_i - x_j|)``, where ``φ`` is a small network on Gaussians of the distance,
    times the envelope. Leading dimensions of ``positions`` are independent clouds.
    """

    centers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.6, CUTOFF, 16))
        self.hidden1 = Projection(16, 24)
        self.hidden2 = Projection(24, 24)
        self.readout = Projection(24, 1)

    def pair_energy(self, distance: Tensor) -> Tensor:
        """``φ`` of every distance, same shape."""
        features = torch.exp(-20.0 * (distance.unsqueeze(-1) - self.centers) ** 2)
        hidden = silu(self.hidden2(silu(self.hidden1(features))))
        pair_energy: Tensor = self.readout(hidden).squeeze(-1) * envelope(distance)
        return pair_energy

    def forward(self, positions: Tensor) -> Tensor:
        distance, pair = distances(positions)
        return total(self.pair_energy(distance), pair)


def clouds(count: int, random: torch.Generator) -> Tensor:
    """Random clouds ``[count, PARTICLES, 3]`` in a box, with no pair closer than ``CLOSEST``."""
    found = torch.empty(0, PARTICLES, 3)
    while len(found) < count:
        drawn = BOX * torch.rand(8 * count, PARTICLES, 3, generator=random)
        distance, pair = distances(drawn)
        found = torch.cat([found, drawn[(distance.masked_fill(~pair, 1.0) > CLOSEST).all(dim=(1, 2))]])
    return found[:count]


def reference(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energies ``[clouds]`` and forces ``[clouds, particles, 3]`` of the Morse potential."""
    positions = positions.clone().requires_grad_()
    distance, pair = distances(positions)
    energy = total(morse(distance), pair)
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -gradient


def train(module: Energy, positions: Tensor, steps: int) -> None:
    """Fits energies and forces by the sum of their mean squared errors; a step sees every cloud."""
    energy, force = reference(positions)
    positions = positions.clone().requires_grad_()
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        predicted = module(positions)
        (gradient,) = torch.autograd.grad(predicted.sum(), positions, create_graph=True)
        torch.autograd.backward(mse_loss(predicted, energy) + mse_loss(-gradient, force))
        optimizer.step()
        schedule.step()


def force_error(module: Energy, positions: Tensor) -> tuple[float, float]:
    """Root mean square of the error of a force component, and of the component itself."""
    _, force = reference(positions)
    positions = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(positions).sum(), positions)
    return (force + gradient).square().mean().sqrt().item(), force.square().mean().sqrt().item()


def load(path: Path = FOLDER / "energy.onnx") -> Energy:
    """The module with the weights of the shipped file."""
    return load_weights(Energy(), path)


def main(folder: Path = FOLDER) -> None:
    """Trains, exports and prints the error of the forces on clouds not trained on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    training, test = clouds(128, random), clouds(64, random)
    module = Energy()
    train(module, training, steps=400)
    error, size = force_error(module, test)
    print(f"energy: root mean square force error {error:.3f}, of {size:.3f}")
    export_both(
        module,
        inputs={"positions": test[0]},
        dynamic_inputs={"positions": {0: "particles"}},
        outputs={"energy": {}},
        stem="energy",
        folder=folder,
    )


if __name__ == "__main__":
    main()
