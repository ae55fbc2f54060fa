"""Initial weights: each kind of network starts as in the work that it comes from.

Layers that no rule below covers keep PyTorch's defaults: weights and biases of linear layers and convolutions
uniform within 1 / sqrt(fan in), norms at one and zero.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models import NETWORKS
from audioldm2.training.randomness import forked_rng

POSITIVE_BIAS = 2.0  # shifts features into the linear range of leaky ReLUs
CONTRASTIVE_SCALE = math.log(1 / 0.07)  # as in CLIP and CLAP


def initialize(name: str, config: Any, seed: int = 0) -> nn.Module:
    """Builds the network `name` on the CPU with initial weights that depend on the seed alone.

    Args:
        name: a key of `NETWORKS`.
        config: of that network.
        seed: of the random weights.

    Returns:
        The network in eval mode.
    """
    with forked_rng(torch.device("cpu"), f"initial weights of {name}", seed):
        network = NETWORKS[name][0](config)
        with torch.no_grad():
            INITIALIZERS.get(name, _pytorch_defaults)(network)
    return network.eval()


def _pytorch_defaults(network: nn.Module) -> None:
    """The VAE of Rombach et al. 2022 starts like this."""


def _transformer(network: Any) -> None:
    """Truncated normal, biases 0: BERT (arXiv 1810.04805), GPT-2 and Swin (arXiv 2103.14030).

    Those papers use a standard deviation of 0.02. In a narrow network, layers would then contribute almost
    nothing to the residual stream, so it starts at 1 / sqrt(width).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            width = module.embedding_dim if isinstance(module, nn.Embedding) else min(module.weight.shape)
            nn.init.trunc_normal_(module.weight, std=0.02 if width >= 512 else width**-0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _clap(network: Any) -> None:
    """A transformer whose contrastive head preserves the variance of its input."""
    _transformer(network)
    for module in (network.proj_in, network.proj_out):
        _preserve_variance(module.weight, fan_in=module.in_features)
    nn.init.constant_(network.logit_scale, CONTRASTIVE_SCALE)


def _phonemes(network: Any) -> None:
    """As in VITS (arXiv 2106.06103): the embedding times sqrt(dim) has unit variance."""
    nn.init.normal_(network.embedding.weight, std=network.embedding.embedding_dim**-0.5)
    for block in network.blocks:
        for distances in (block.attn.distance_key, block.attn.distance_value):
            nn.init.normal_(distances, std=distances.shape[1] ** -0.5)


def _gpt2(network: Any) -> None:
    """Residual branches shrink with the number of blocks (Radford et al. 2019)."""
    _transformer(network)
    for block in network.blocks:
        for linear in (block.attn.out, block.ff_out):
            linear.weight /= math.sqrt(2 * len(network.blocks))


def _audiomae(network: Any) -> None:
    """As in MAE (arXiv 2111.06377): positions from sines, and patches embedded as by a linear layer."""
    _transformer(network)
    nn.init.xavier_uniform_(network.patch_embed.weight.flatten(1))
    nn.init.zeros_(network.patch_embed.bias)
    nn.init.normal_(network.class_embedding, std=0.02)
    network.position_embedding[:, 1:] = sincos_positions(network.config.dim, network.config.grid)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Returns sines and cosines of each patch's place: (patches, dim), patches numbered in time first.

    Args:
        dim: of a vector, a multiple of 4: a quarter each for sines and cosines of column, then of row.
        grid: rows over time and columns over frequency.

    Source: `get_2d_sincos_pos_embed` of facebookresearch/mae.
    """
    frequency = 10_000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))  # (dim/4,)
    row, column = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = (each.reshape(-1, 1) * frequency for each in (column, row))  # each (patches, dim/4)
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def _projection(network: Any) -> None:
    """The framing vectors start random; upstream starts all four at ones, which a norm cannot tell apart."""
    _transformer(network)
    for key, parameter in network.named_parameters():
        if key.endswith(("_sos", "_eos")):
            nn.init.trunc_normal_(parameter, std=0.02)


def _t5(network: Any) -> None:
    """As in Mesh TensorFlow: T5 does not divide scores by sqrt(head_dim), so queries start smaller."""
    config = network.config
    inner = config.heads * config.head_dim
    stds = {
        "query": (config.dim * config.head_dim) ** -0.5, "key": config.dim**-0.5, "value": config.dim**-0.5,
        "attn.out": inner**-0.5, "gate": config.dim**-0.5, "ff.out": config.ff_dim**-0.5, "embedding": 1.0,
        "distance_bias": config.dim**-0.5,
    }  # fmt: skip
    for key, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=next(std for end, std in stds.items() if key.endswith(end)))


def _unet(network: nn.Module) -> None:
    """Every residual branch and the predicted noise start at zero, as in Ho et al. 2020 and upstream."""
    for key, parameter in network.named_parameters():
        if key.rpartition(".")[0].endswith(("conv_out", "proj_out")):
            nn.init.zeros_(parameter)


def _hifigan(network: Any) -> None:
    """Residual branches start near zero (0.01, as in HiFi-GAN); everything else preserves variance.

    HiFi-GAN starts the upsampling at 0.01 too. Weight norm and 512 channels tolerate that, but a narrow
    vocoder without weight norm would start so quiet that hardly any gradient gets through. Starting too loud
    is as bad, because a saturated tanh has no gradient either: log-mels are around -5, so the last
    convolution starts small. A network that normalizes its input (by the mean and spread of sounds with
    pauses) tolerates more.
    """
    if network.config.normalize_before:
        nn.init.constant_(network.mean, -7.0)
        nn.init.constant_(network.scale, 3.5)
    for stage in network.stages:
        for module in stage.branches.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=0.01)
        upsample = stage.upsample
        _preserve_variance(upsample.weight, fan_in=upsample.weight[:, 0].numel() / upsample.stride[0])
    _preserve_variance(network.conv_out.weight, fan_in=network.conv_out.weight[0].numel())
    network.conv_out.weight *= 0.1 if network.config.normalize_before else 0.03
    nn.init.zeros_(network.conv_out.bias)
    if network.config.upsample_rates[0] == 1:
        _linear_after_first_stage(network)


def _linear_after_first_stage(network: Any) -> None:
    """Makes everything after the frame-rate layers start linear, because summing partials is linear.

    Positive biases keep features in the linear range of leaky ReLUs, and weights that sum to 0 over the input
    channels remove those biases from the output.
    """
    for i, stage in enumerate(network.stages[1:], start=1):
        nn.init.constant_(stage.upsample.bias, POSITIVE_BIAS)
        for module in stage.branches.modules():
            if isinstance(module, nn.Conv1d):
                module.weight -= module.weight.mean(dim=1, keepdim=True)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if i == 1:
            stage.upsample.weight *= 0.1  # partials are several times the bias (`vocoder.PARTIAL_GAIN`)
        else:
            stage.upsample.weight -= stage.upsample.weight.mean(dim=0, keepdim=True)
    network.conv_out.weight -= network.conv_out.weight.mean(dim=1, keepdim=True)


def _preserve_variance(weight: Tensor, fan_in: float) -> None:
    """Output power equals input power if the activation halves it (He et al. 2015)."""
    nn.init.normal_(weight, std=math.sqrt(2 / fan_in))


INITIALIZERS: dict[str, Callable[[nn.Module], None]] = {
    "clap_text": _clap,
    "t5": _t5,
    "projection": _projection,
    "phonemes": _phonemes,
    "audiomae": _audiomae,
    "gpt2": _gpt2,
    "unet": _unet,
    "hifigan": _hifigan,
    "clap_audio": _clap,
}


def denoiser_is_trained(checkpoint: Checkpoint) -> bool:
    """Whether the model has a denoiser that has learnt: a new one starts with a last layer of zeros."""
    return "unet" in checkpoint.states and bool(checkpoint.states["unet"]()["conv_out.weight"].any())
