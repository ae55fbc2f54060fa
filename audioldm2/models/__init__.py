"""The networks, one a file, each with its configuration on top."""

from typing import Any

import torch
from torch import nn

from audioldm2.models.clap_audio import ClapAudio, ClapAudioConfig
from audioldm2.models.clap_text import ClapText, ClapTextConfig
from audioldm2.models.gpt2 import GPT2, GPT2Config
from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.phonemes import PhonemeEncoder, PhonemesConfig
from audioldm2.models.projection import Projection, ProjectionConfig
from audioldm2.models.t5 import T5Config, T5Encoder
from audioldm2.models.unet import UNet, UNetConfig
from audioldm2.models.vae import VAE, VAEConfig

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {  # in the order in which a prompt meets them
    "clap_text": (ClapText, ClapTextConfig),
    "t5": (T5Encoder, T5Config),
    "phonemes": (PhonemeEncoder, PhonemesConfig),
    "projection": (Projection, ProjectionConfig),
    "gpt2": (GPT2, GPT2Config),
    "unet": (UNet, UNetConfig),
    "vae": (VAE, VAEConfig),
    "hifigan": (HiFiGAN, HiFiGANConfig),
    "clap_audio": (ClapAudio, ClapAudioConfig),
}


def build_on_meta(name: str, config: Any) -> nn.Module:
    """The network called `name`, in evaluation mode, without memory for its weights: assign them later."""
    with torch.device("meta"):
        return NETWORKS[name][0](config).eval()
