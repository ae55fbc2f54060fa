"""Down a gradient, and the average of the way."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.training.muon import Muon
from audioldm2.training.recipe import Recipe


class Descent:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on some networks, with clipped gradients.

    Where the recipe says "muon", matrices and convolutions go by `Muon`, and vectors still by AdamW.
    """

    def __init__(self, networks: Iterable[nn.Module], recipe: Recipe):
        self.parameters = [parameter for network in networks for parameter in network.parameters()]
        self.recipe = recipe
        matrices, vectors = ([p for p in self.parameters if (p.ndim > 1) is many] for many in (True, False))
        rate, decay = recipe.learning_rate, recipe.weight_decay
        if recipe.optimiser == "muon":
            self.optimisers = [
                Muon(matrices, lr=rate, weight_decay=decay),
                torch.optim.AdamW(vectors, lr=rate, betas=recipe.betas, weight_decay=0.0),
            ]
        else:
            groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
            self.optimisers = [torch.optim.AdamW(groups, lr=rate, betas=recipe.betas)]

    def step(self, loss: Tensor, step: int) -> Tensor:
        """One step down the gradient of a loss; returns the gradient's norm as it was before clipping.

        step: from 0 on; it decides the learning rate.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate_at(step)
            optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """Of each optimiser."""
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Raises ValueError for states of other optimisers."""
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


class Average:
    """An exponential moving average of a network's parameters; its other tensors are taken as they are.

    average = decay * average + (1 - decay) * parameter, after each step. The decay after step n, from 1 on,
    is at most (1 + n) / (10 + n), so that the beginning is forgotten soon.
    Source: Rombach et al. 2022 (arXiv 2112.10752), `LitEma` of its code.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay = network, decay
        self.state = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        decay = min(self.decay, (1 + n) / (10 + n))
        parameters = dict(self.network.named_parameters())
        for key, tensor in self.network.state_dict().items():
            if key in parameters:
                self.state[key].lerp_(tensor, 1 - decay)
            else:
                self.state[key].copy_(tensor)
