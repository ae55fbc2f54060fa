"""The networks, one a file, each with its configuration on top."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from audioldm2.models.audiomae import AudioMAE, AudioMAEConfig
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
    "audiomae": (AudioMAE, AudioMAEConfig),
}
OPTIONAL = ("phonemes", "audiomae")  # those that the published models of sounds and music do without


class _Unfilled(TorchFunctionMode):
    """Modules do not fill themselves.

    Nothing can be filled on the meta device, but PyTorch imports its compiler to fill it with normal numbers,
    which takes longer than everything else of loading a small model: 1.3 s of 1.5.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_on_meta(name: str, config: Any) -> nn.Module:
    """The network called `name`, in evaluation mode, without memory for its weights: assign them later."""
    with torch.device("meta"), _Unfilled():
        return NETWORKS[name][0](config).eval()


@lru_cache(maxsize=2 * len(NETWORKS))  # two checkpoints' worth: with low_memory each stage asks again
def expected_shapes(name: str, config: Any) -> dict[str, torch.Size]:
    """The state-dict keys of a network and their shapes."""
    return {key: tensor.shape for key, tensor in build_on_meta(name, config).state_dict().items()}
