"""An optimiser for matrices: every direction of a layer is learnt at the same speed.

A gradient is mostly a few directions, those in which the output errs most. Its momentum is replaced by the
nearest matrix whose singular values are all about 1, so that faint directions, such as what tells one high
tone from the next, move as much as loud ones. A small vocoder learns in hundreds of steps what takes it
thousands with AdamW.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of a step from
Liu et al. 2025 (arXiv 2502.16982), so that learning rates are as for AdamW.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at 0: brings small singular values up fastest
SIZE = 0.2  # root mean square of AdamW's steps, in learning rates


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; those after the first are taken as one."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = torch.lerp(parameter.grad, mean, group["momentum"])  # Nesterov's
        direction = orthogonal(ahead.flatten(1))
        size = SIZE * max(direction.shape) ** 0.5  # entries of an orthogonal matrix: 1 / sqrt(longer side)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction.view_as(parameter), alpha=group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix (rows, columns) with orthonormal rows, or columns, whichever are fewer.

    Its singular values come to be between 0.7 and 1.2, by Newton and Schulz's rounds.
    """
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
