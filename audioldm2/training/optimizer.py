"""Optimizers with a recipe's settings, and the exponential moving average of weights."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.training.distributed import ALONE, Ranks
from audioldm2.training.muon import Muon
from audioldm2.training.recipe import Recipe
from audioldm2.training.sharding import is_sharded, sharded_as, whole

LEAST_SCALE = 1.0  # of the loss in float16: if it still overflows, the fault is not the scale's


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over some networks, with clipped gradients.

    With `recipe.optimizer == "muon"`, `Muon` updates matrices and convolutions, and AdamW only vectors.

    With `recipe.fp16`, the loss is scaled up so that small gradients do not vanish in float16; a step whose
    gradient overflows is left out, and the scale halved (Micikevicius et al. 2018, arXiv 1710.03740).
    """

    def __init__(self, networks: Iterable[nn.Module], recipe: Recipe) -> None:
        self.ranks: Ranks = ALONE  # over which gradients are averaged
        self.parameters = [parameter for network in networks for parameter in network.parameters()]
        self.recipe = recipe
        self.updates = 0  # begun by this object: tells whether a step that failed had changed parameters
        matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        device = next((parameter.device.type for parameter in self.parameters), "cpu")
        self.scaler = torch.amp.GradScaler(device, enabled=recipe.fp16)  # without fp16, it changes nothing
        lr, decay = recipe.learning_rate, recipe.weight_decay
        betas = (recipe.betas[0], recipe.betas[1])
        if recipe.optimizer == "muon":
            self.optimizers: list[torch.optim.Optimizer] = [
                Muon(matrices, lr=lr, weight_decay=decay),
                torch.optim.AdamW(vectors, lr=lr, betas=betas, weight_decay=0.0),
            ]
        else:
            groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
            self.optimizers = [torch.optim.AdamW(groups, lr=lr, betas=betas)]

    def step(self, loss: Tensor | Iterable[Tensor], step: int) -> Tensor:
        """Backpropagates a loss and updates the parameters, unless the loss or its gradient is not finite.

        Args:
            loss: a scalar, or scalars whose sum is the loss: each is taken and backpropagated before the next
                is, so that only one of their graphs is in memory. Of this rank's clips where there are
                several ranks; these give as many.
            step: counted from 0; it determines the learning rate.

        Returns:
            The norm of the gradient before clipping; 0 where float16 overflowed and the step was left out.

        Raises:
            FloatingPointError: the loss or its gradient is NaN or infinite; no parameter has changed.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate_at(step)
            optimizer.zero_grad()
        for part in [loss] if isinstance(loss, Tensor) else loss:
            _require_finite("the loss", self.ranks.mean(part))
            self.scaler.scale(part).backward()
        self.ranks.average_gradients([each for each in self.parameters if not is_sharded(each)])
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = self._clip()
        if not self.recipe.fp16 or self.scaler.get_scale() < LEAST_SCALE:
            _require_finite("the norm of the gradient", norm)
        self.updates += 1
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return norm.nan_to_num(0.0, 0.0, 0.0)  # 0 of a step that was left out

    def _clip(self) -> Tensor:
        """Clips the gradients; returns their norm before."""
        sharded = [each for each in self.parameters if is_sharded(each)]
        limit = self.recipe.max_grad_norm
        if not sharded:
            return nn.utils.clip_grad_norm_(self.parameters, limit)
        plain = [each for each in self.parameters if not is_sharded(each)]
        parts = [[each.grad for each in part if each.grad is not None] for part in (sharded, plain)]
        norms = [whole(nn.utils.get_total_norm(gradients)) for gradients in parts if gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        scale = min(1.0, limit / (float(norm) + 1e-6))  # as PyTorch's
        for gradient in (*parts[0], *parts[1]):
            gradient.mul_(scale)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """Returns the state of each PyTorch optimizer, and with fp16 of the scale."""
        scale = [self.scaler.state_dict()] if self.recipe.fp16 else []
        return [optimizer.state_dict() for optimizer in self.optimizers] + scale

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned; raises ValueError if the optimizers differ."""
        if self.recipe.fp16:
            *states, scale = states
            self.scaler.load_state_dict(scale)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            entries = {
                index: {key: sharded_as(value, parameters[index]) for key, value in entry.items()}
                for index, entry in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": entries})


def _require_finite(name: str, value: Tensor) -> None:
    if not math.isfinite(number := float(value.detach())):
        raise FloatingPointError(f"{name} is {number}")


class EMA:
    """An exponential moving average of a network's parameters; buffers are copied unaveraged.

    average = decay * average + (1 - decay) * parameter, after every step. The decay after step n, counted
    from 1, is at most (1 + n) / (10 + n), so that the initial weights fade quickly.
    Source: Rombach et al. 2022 (arXiv 2112.10752), `LitEma` in its code.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.state = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Averages in the weights after step n, counted from 1."""
        decay = min(self.decay, (1 + n) / (10 + n))
        parameters = dict(self.network.named_parameters())
        for key, tensor in self.network.state_dict().items():
            if key in parameters:
                self.state[key].lerp_(tensor, 1 - decay)
            else:
                self.state[key].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the network while the block lasts. No weight is copied, only pointers.

        Shards are copied, because FSDP keeps pointers of its own.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for key, tensor in self.network.state_dict(keep_vars=True).items():
            if is_sharded(tensor):
                weights = tensor.detach().clone()
                tensor.detach().copy_(self.state[key])
                self.state[key].copy_(weights)
            else:
                tensor.data, self.state[key] = self.state[key], tensor.data
