"""Networks compiled by PyTorch, and on CUDA captured as graphs: `load(..., compile=True)`.

The first sound of each length then takes longer, minutes where nothing is in PyTorch's cache on disk, and the
later ones less time: kernels are fused, and a step costs the processor one call. The second length is
compiled for any length.

What a captured graph has made lies in the graph's own memory, where its next run writes too; so it is copied
out. Nothing in these networks may depend on values of tensors, or a graph would be wrong: `fullgraph` makes
PyTorch refuse.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WHAT = {"unet": "forward", "vae": "decode", "hifigan": "forward"}  # network -> what of it takes the time


def compiled(network: nn.Module, name: str, device: torch.device, backend: str = "inductor") -> nn.Module:
    """The same network, compiled at its first call where it is one that takes time."""
    if name in WHAT:
        graphs = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
        method = getattr(network, WHAT[name])
        setattr(network, WHAT[name], _once_more_each_call(method, mode=graphs, backend=backend))
    return network


def _once_more_each_call(function: Callable[..., Tensor], **how) -> Callable[..., Tensor]:
    run = torch.compile(function, fullgraph=True, **how)

    def call(*given: Tensor, **named: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run(*given, **named).clone()

    return call
