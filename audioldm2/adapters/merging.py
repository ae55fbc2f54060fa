"""Folds adapters into the weights of a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from audioldm2.adapters.adapter import Adapter, of_network
from audioldm2.adapters.lora import NETWORKS, LowRank
from audioldm2.checkpoints.checkpoint import Checkpoint


def merged(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> Checkpoint:
    """A checkpoint that computes without adapters what another computes with them, and says which it has.

    Weights that change are float32, whatever they were, so that merging itself rounds nothing to half
    precision. They are computed when the checkpoint's tensors are opened.
    """
    states, adapters = dict(checkpoint.states), tuple(adapters)
    for name in NETWORKS:
        layers = of_network(adapters, name)
        if layers:
            states[name] = partial(_merged_state, states[name], layers)
    known = tuple(each.describe() for each in adapters)
    return replace(checkpoint, states=states, merged=(*checkpoint.merged, *known))


def _merged_state(
    open_state: Callable[[], dict[str, Tensor]], adapters: list[tuple[Mapping[str, LowRank], float]]
) -> dict[str, Tensor]:
    state = dict(open_state())
    for layers, weight in adapters:
        for path, low in layers.items():
            base = state[f"{path}.weight"].to(torch.float32)
            state[f"{path}.weight"] = base + weight * low.product
    return state
