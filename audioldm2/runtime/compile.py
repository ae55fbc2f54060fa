"""Networks compiled by PyTorch: `load(..., compile=True)`.

The first sound takes longer, minutes where nothing is in PyTorch's cache on disk, and later ones less:
kernels are fused. A second length is compiled for any length. `torch.nn.Module.compile` compiles a network in
place; what it cannot compile runs as written.
"""

import warnings

import torch
from torch import nn

# Network -> what of it takes the time. On a CPU only the denoiser is worth it: GPT-2 takes minutes to compile
# and then 0.3 s in place of 0.35, the decoder as long as before, the vocoder longer.
PARTS = {"unet": "", "gpt2": "", "vae": "decoder", "hifigan": ""}
PARTS_ON_CPU = {"unet": ""}


def compile_network(network: nn.Module, name: str, device: torch.device) -> None:
    """Have the part of a network that takes the time compiled at its first call.

    Warns (RuntimeWarning) and leaves the network as it is where PyTorch has no compiler to work with.
    """
    parts = PARTS_ON_CPU if device.type == "cpu" else PARTS
    if name not in parts:
        return
    reason = _why_not(device)
    if reason:
        warnings.warn(
            f"'{name}' runs uncompiled, with the same result: {reason}", RuntimeWarning, stacklevel=2
        )
        return
    # GPT-2 is called with another length each time: its graph is compiled for any from the start.
    network.get_submodule(parts[name]).compile(dynamic=True if name == "gpt2" else None)


def _why_not(device: torch.device) -> str | None:
    """Why PyTorch cannot compile here, for want of a C++ compiler or of Triton; None if it can."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(1, device=device))
    except Exception as error:  # PyTorch's versions raise many kinds
        return " ".join(str(error).split("\n")[:2]) or type(error).__name__
    return None
