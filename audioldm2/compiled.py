"""Networks compiled by PyTorch, and on CUDA captured as graphs: `load(..., compile=True)`.

The first sound of each length then takes longer, minutes where nothing is in PyTorch's cache on disk, and the
later ones less time: kernels are fused, and a step costs the processor one call. The second length is
compiled for any length (GPT-2's first is).

What a captured graph has made lies in the graph's own memory, where its next run writes too; so it is copied
out. Nothing in these networks may depend on values of tensors, or a graph would be wrong: `fullgraph` makes
PyTorch refuse.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Network -> what of it takes the time. Of GPT-2, its eight steps as one graph.
WHAT = {"gpt2": "generate", "unet": "forward", "vae": "decode", "hifigan": "forward"}
# On a CPU, GPT-2 would take minutes to compile and then 0.3 s in place of 0.35; on a GPU, starting a thousand
# small kernels is what takes the time.
ONLY_ON_CUDA = {"gpt2"}
# Networks whose inputs nearly always have another length: they are compiled for any length at once.
ANY_LENGTH = {"gpt2"}


def compiled(network: nn.Module, name: str, device: torch.device, backend: str = "inductor") -> nn.Module:
    """The same network, compiled at its first call where it is one that takes time."""
    if name in WHAT and (device.type == "cuda" or name not in ONLY_ON_CUDA):
        lengths = True if name in ANY_LENGTH else None  # None: for any from the second length on
        graphs = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
        method = getattr(network, WHAT[name])
        setattr(
            network, WHAT[name], _once_more_each_call(method, mode=graphs, backend=backend, dynamic=lengths)
        )
    return network


def _once_more_each_call(function: Callable[..., Tensor], **how) -> Callable[..., Tensor]:
    run = torch.compile(function, fullgraph=True, **how)

    def call(*given: Tensor, **named: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run(*given, **named).clone()

    return call
