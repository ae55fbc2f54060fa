"""Adapters with random matrices for any model, B too, which training begins with at 0."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from audioldm2.adapters import lora
from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.lora import LowRank
from audioldm2.models import build_on_meta


def random_adapter(
    configs: Mapping[str, Any],
    which: str = "attention",
    *,
    rank: int = 3,
    networks: Sequence[str] = ("unet",),
    seed: int = 0,
    scale: float = 0.5,
    strength: float = 0.3,
) -> Adapter:
    """An adapter of a model with these configs; it moves the output by about `strength` of its size."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, dict[str, LowRank]] = {}
    for name in networks:
        network = build_on_meta(name, configs[name])
        layers[name] = {}
        for path in lora.layers_of(network, name, which):
            outputs, inputs, *kernel = network.get_parameter(f"{path}.weight").shape
            A = torch.randn(rank, inputs, *kernel, generator=generator)
            B = torch.randn(outputs, rank, *[1] * len(kernel), generator=generator)
            layers[name][path] = LowRank(A / A[0].numel() ** 0.5, strength * B, scale)
    return Adapter("random", layers, metadata={"base_model": "tiny", "license": "MIT"})
