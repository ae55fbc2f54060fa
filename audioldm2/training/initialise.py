"""Weights to begin with: what each kind of network starts from in the work that it comes from.

Everything that is not named here starts as PyTorch fills it: weights and biases of linear layers and
convolutions uniform within 1 / sqrt(inputs), norms at one and zero.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.models import NETWORKS
from audioldm2.training.randomness import chance

LIFT = 2.0  # of features that are to stay above 0
CONTRASTIVE_SCALE = math.log(1 / 0.07)  # CLIP's start, and CLAP's


def initialise(name: str, config: Any, seed: int = 0) -> nn.Module:
    """The network called `name`, on the CPU, filled to be trained from scratch; a seed gives it again."""
    with chance(torch.device("cpu"), f"initial weights of {name}", seed):
        network = NETWORKS[name][0](config)
        with torch.no_grad():
            FILLS.get(name, _as_pytorch)(network)
    return network.eval()


def _as_pytorch(network: nn.Module) -> None:
    """The VAE starts so in Rombach et al. 2022; the phoneme encoder is not trained here."""


def _transformer(network: nn.Module) -> None:
    """Truncated normal, biases 0: BERT (arXiv 1810.04805), GPT-2 and Swin (arXiv 2103.14030).

    Its width is 0.02 there. A narrow network needs more for what its layers say to be heard beside what it is
    added to: one over the root of its own width.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            width = module.embedding_dim if isinstance(module, nn.Embedding) else min(module.weight.shape)
            nn.init.trunc_normal_(module.weight, std=0.02 if width >= 512 else width**-0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _clap(network: nn.Module) -> None:
    """A transformer with a contrastive head that keeps differences between inputs as large as they are."""
    _transformer(network)
    for module in (network.proj_in, network.proj_out):
        _keep_size(module.weight, inputs=module.in_features)
    nn.init.constant_(network.logit_scale, CONTRASTIVE_SCALE)


def _gpt2(network: nn.Module) -> None:
    """What is added to the residual stream starts the smaller, the more blocks add (Radford et al. 2019)."""
    _transformer(network)
    for block in network.blocks:
        for added in (block.attn.out, block.ff_out):
            added.weight /= math.sqrt(2 * len(network.blocks))


def _projection(network: nn.Module) -> None:
    """The four framing vectors differ from each other; they are ones in upstream, which a norm cannot see."""
    _transformer(network)
    for key, parameter in network.named_parameters():
        if key.endswith(("_sos", "_eos")):
            nn.init.trunc_normal_(parameter, std=0.02)


def _t5(network: nn.Module) -> None:
    """As Mesh TensorFlow did: scores are not divided by sqrt(head_dim), so queries start smaller."""
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
    """Every residual begins as nothing, and the predicted noise as zero (Ho et al. 2020; upstream's too)."""
    for key, parameter in network.named_parameters():
        if key.rpartition(".")[0].endswith(("conv_out", "proj_out")):
            nn.init.zeros_(parameter)


def _hifigan(network: nn.Module) -> None:
    """Residual branches start near nothing (0.01, as in HiFi-GAN); what they are added to keeps its size.

    HiFi-GAN gives 0.01 to the upsampling too. With weight norm and 512 channels that is no harm; a narrow
    vocoder without it would start so quiet that hardly a gradient gets through. And too loud is as bad: where
    the last tanh saturates there is none either. Log-mels are around -5, so the last convolution is quiet;
    where the network whitens them first, by what sounds with pauses have, it may be louder.
    """
    if network.config.normalize_before:
        nn.init.constant_(network.mean, -7.0)
        nn.init.constant_(network.scale, 3.5)
    for stage in network.stages:
        for module in stage.branches.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=0.01)
        upsample = stage.upsample
        _keep_size(upsample.weight, inputs=upsample.weight[:, 0].numel() / upsample.stride[0])
    _keep_size(network.conv_out.weight, inputs=network.conv_out.weight[0].numel())
    network.conv_out.weight *= 0.1 if network.config.normalize_before else 0.03
    nn.init.zeros_(network.conv_out.bias)
    if network.config.upsample_rates[0] == 1:
        _adds_up(network)


def _adds_up(network: nn.Module) -> None:
    """Let all that follows the layers at the frame rate begin as linear, which is what adding up lines is.

    Biases lift its features to where leaky ReLUs change nothing; weights sum to 0 over what comes in, so that
    nothing of the lift is heard.
    """
    for i, stage in enumerate(network.stages[1:], start=1):
        nn.init.constant_(stage.upsample.bias, LIFT)
        for module in stage.branches.modules():
            if isinstance(module, nn.Conv1d):
                module.weight -= module.weight.mean(dim=1, keepdim=True)
                nn.init.zeros_(module.bias)
        if i == 1:
            stage.upsample.weight *= 0.1  # lines are several times as loud as the lift (`LINE_LOUDNESS`)
        else:
            stage.upsample.weight -= stage.upsample.weight.mean(dim=0, keepdim=True)
    network.conv_out.weight -= network.conv_out.weight.mean(dim=1, keepdim=True)


def _keep_size(weight: Tensor, inputs: float) -> None:
    """As loud out as in, where the activation lets half of the power through (He et al. 2015)."""
    nn.init.normal_(weight, std=math.sqrt(2 / inputs))


FILLS = {
    "clap_text": _clap,
    "t5": _t5,
    "projection": _projection,
    "gpt2": _gpt2,
    "unet": _unet,
    "hifigan": _hifigan,
    "clap_audio": _clap,
}
