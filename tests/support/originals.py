"""Tiny original `.pth` files as training leaves them, made by our own classes alone.

Every parameter is random and stored under its original name (`original_names`), among everything else that
such a file holds: the average of the UNet's weights, the noise schedule, second copies of CLAP and T5,
tables, masks and the decoder of AudioMAE.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.convert import original_table
from audioldm2.errors import WeightsError
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from tests.support.checkpoints import random_state
from tests.support.original_names import COPIES, PLACES, State, spread

# Sizes ------------------------------------------------------------------------------------------------------

SCALING_FACTOR = float(torch.tensor(0.4342))  # the file has it in float32
CLAP = {
    "clap_text": ClapTextConfig(vocabulary=300, dim=128, depth=2, heads=2, ff_dim=20, projection_dim=10),
    "clap_audio": ClapAudioConfig(
        patch_size=16,
        patch_stride=16,
        dim=8,
        depths=(1, 2),
        heads=(2, 4),
        window=4,
        ff_ratio=2.0,
        projection_dim=10,
    ),
}
T5_ENCODER = {"t5": T5Config(vocabulary=200, dim=14, depth=2, heads=3, head_dim=4, ff_dim=18)}
GPT = {"gpt2": GPT2Config(dim=128, depth=1, heads=2, max_positions=150)}
UNET = UNetConfig(
    latent_channels=3, channels=(32, 64), heads=(1, 2), transformers=((), (SELF, GPT2, T5)), layers=1,
    gpt2_dim=128, t5_dim=14,
)  # fmt: skip
AT_16_KHZ = {
    "vae": VAEConfig(latent_channels=3, channels=(32, 32, 64), layers=1, scaling_factor=SCALING_FACTOR),
    "hifigan": HiFiGANConfig(mels=16, channels=32, branch_kernels=(3, 5), branch_dilations=((1, 3), (1, 3))),
}
AUDIOMAE = AudioMAEConfig(dim=128, depth=2, heads=2, frames=128, averaged=2, pool=(1, 8))
AUDIOLDM_2 = CLAP | T5_ENCODER | GPT | AT_16_KHZ | {
    "projection": ProjectionConfig(10, 14, 128), "audiomae": AUDIOMAE,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "base": AUDIOLDM_2 | {"unet": UNET},
    "large": AUDIOLDM_2 | {
        "unet": replace(
            UNET, channels=(32, 32), heads=(1, 1), transformers=((), (SELF, GPT2, T5, LAST_SELF)), depth=2,
            layers=2,
        )
    },
    "48k": CLAP | {
        "unet": UNetConfig(
            latent_channels=3, channels=(32, 32, 64), heads=(1, 1, 2), layers=1, film_dim=10,
            transformers=((), (SELF, LAST_SELF), (SELF, LAST_SELF)),
        ),
        "vae": VAEConfig(latent_channels=3, channels=(32,) * 4, layers=1, scaling_factor=SCALING_FACTOR),
        "hifigan": HiFiGANConfig(
            mels=64, sample_rate=48000, channels=32, upsample_rates=(6, 5, 4, 2, 2),
            upsample_kernels=(12, 10, 8, 4, 4), branch_kernels=(3, 5), branch_dilations=((1, 3), (1,)),
        ),
    },
    "t5": CLAP | T5_ENCODER | AT_16_KHZ | {
        "unet": replace(UNET, transformers=((), (SELF, T5)), gpt2_dim=UNetConfig.gpt2_dim)
    },
    "speech": CLAP | AT_16_KHZ | {
        "phonemes": PhonemesConfig(dim=12, depth=2, ff_dim=10),
        "projection": ProjectionConfig(10, 12, 128, positions=30),
        "gpt2": GPT2Config(dim=128, depth=1, heads=2, max_positions=600, new_vectors=512),
        "unet": replace(UNET, transformers=((), (SELF, GPT2)), t5_dim=UNetConfig.t5_dim),
        "audiomae": replace(AUDIOMAE, frames=1024, pool=(1, 1)),
    },
}  # fmt: skip

# Whole files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """The contents of a file, and what has to come out of it."""

    configs: dict[str, Any]
    states: dict[str, State]  # our tensors of each network
    average: State  # our tensors of the UNet, averaged over its training
    table: State  # every tensor of the file, under the original's name
    unused: set[str]  # names in the table that none of our networks has


@cache
def make(kind: str) -> Original:
    """Return a random original of a kind, the same each time: copy its table to change it."""
    with torch.random.fork_rng():
        torch.manual_seed(list(CONFIGS).index(kind))
        configs, places = CONFIGS[kind], PLACES[kind]
        states = {network: random_state(network, config) for network, config in configs.items()}
        for key, tensor in states["clap_text"].items():  # or all texts would get almost the same vector
            tensor *= 0.1 if key.endswith("bias") else 1
        states["hifigan"] |= {
            key: torch.full((configs["hifigan"].mels,), float(key == "scale")) for key in ("mean", "scale")
        }
        average = {key: tensor + 0.1 * torch.randn(tensor.shape) for key, tensor in states["unet"].items()}
        used: State = {}
        for network, config in configs.items():
            used |= spread(network, config, states[network], places)
        table = schedule_buffers() | {"scale_factor": torch.tensor(SCALING_FACTOR)} | used
        table |= average_of_unet(spread("unet", configs["unet"], average, places))
        table |= unused_of_clap(configs["clap_audio"])
        for network, place in places.items():
            table |= UNUSED.get(network, lambda place, table: {})(place, table)
        for copy, place in COPIES[kind].items():
            table |= copied(table, place, copy)
    return Original(configs, states, average, table, set(table) - set(used))


def schedule_buffers() -> State:
    """Return the buffers of the published schedule: 1000 steps, the roots of beta evenly spaced."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    now = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1), now[:-1]])
    variance = betas * (1 - before) / (1 - now)
    buffers = {
        "logvar": torch.zeros(1000),
        "betas": betas,
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": now.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - now).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - now).log(),
        "sqrt_recip_alphas_cumprod": (1 / now).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - now),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - now),
    }
    return {name: tensor.float() for name, tensor in buffers.items()}


def average_of_unet(table: State) -> State:
    """Return the running average under its names, which lack every dot but the first."""
    names = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor for key, tensor in table.items()
    }
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(665000, dtype=torch.int32)}
    return {f"model_ema.{name}": tensor for name, tensor in counters.items()} | names


def unused_of_clap(config: ClapAudioConfig) -> State:
    """Return what only the first CLAP has: front end, classifier, masks, counters; larger when published."""
    branch, tokens = "clap.model.audio_branch", config.window**2
    table = {
        f"{branch}.spectrogram_extractor.stft.conv_real.weight": torch.randn(5, 1, 8),
        f"{branch}.spectrogram_extractor.stft.conv_imag.weight": torch.randn(5, 1, 8),
        f"{branch}.logmel_extractor.melW": torch.rand(5, 4),
        f"{branch}.bn0.num_batches_tracked": torch.tensor(1234),
        f"{branch}.tscam_conv.weight": torch.randn(7, 16, 2, 3),
        f"{branch}.tscam_conv.bias": torch.randn(7),
        f"{branch}.head.weight": torch.randn(7, 7),
        f"{branch}.head.bias": torch.randn(7),
        "clap.model.text_branch.embeddings.position_ids": torch.arange(514)[None],
        "clap.mel_transform.spectrogram.window": torch.hann_window(8),
        "clap.mel_transform.mel_scale.fb": torch.rand(5, 4),
    }
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"{branch}.layers.{stage}.blocks.{block}"
            table[f"{name}.attn.relative_position_index"] = torch.randint(49, (tokens, tokens))
            if block % 2:  # every second block shifts its windows
                table[f"{name}.attn_mask"] = torch.randint(2, (4, tokens, tokens)) * -100.0
    for which in ("text", "audio"):
        for layer in (0, 3):
            name = f"clap.model.{which}_transform.sequential.{layer}"
            table |= {f"{name}.weight": torch.randn(10, 10), f"{name}.bias": torch.randn(10)}
    return table


def unused_of_t5(place: str, table: State) -> State:
    """Return the embedding under its second name: one tensor, two keys."""
    return {f"{place}.encoder.embed_tokens.weight": table[f"{place}.shared.weight"]}


def unused_of_gpt2(place: str, table: State) -> State:
    return {f"{place}.wte.weight": torch.randn(11, table[f"{place}.wpe.weight"].shape[1])}


def unused_of_phonemes(place: str, table: State) -> State:
    return {f"{place}.proj.weight": torch.randn(24, 12, 1), f"{place}.proj.bias": torch.randn(24)}


def unused_of_audiomae(place: str, table: State) -> State:
    """Return the decoder that AudioMAE was trained with."""
    return {
        f"{place}.mask_token": torch.randn(1, 1, 6),
        f"{place}.decoder_embed.weight": torch.randn(6, 128),
        f"{place}.decoder_pos_embed": torch.randn(1, 65, 6),
        f"{place}.decoder_blocks.0.norm1.weight": torch.randn(6),
        f"{place}.decoder_blocks.7.attn.qkv.weight": torch.randn(18, 6),
        f"{place}.decoder_norm.bias": torch.randn(6),
        f"{place}.decoder_pred.weight": torch.randn(256, 6),
    }


UNUSED = {
    "t5": unused_of_t5,
    "gpt2": unused_of_gpt2,
    "phonemes": unused_of_phonemes,
    "audiomae": unused_of_audiomae,
}


def copied(table: State, place: str, copy: str) -> State:
    """Return a copy of a network in memory of its own, with CLAP's tables."""
    found = {}
    for begin in (place, f"{place.removesuffix('model')}mel_transform"):
        end = begin.replace(place.removesuffix("model"), copy.removesuffix("model"))
        found |= {f"{end}.{key.removeprefix(f'{begin}.')}": tensor.clone()
                  for key, tensor in table.items() if key.startswith(f"{begin}.")}  # fmt: skip
    return found


def save(file: Path, table: Mapping[str, Any]) -> Path:
    """Save a table as the trainer does, with its counters beside it; returns the file."""
    torch.save({"epoch": 12, "global_step": 665000, "state_dict": dict(table)}, file)
    return file


def table_of(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the table of a kind's file without the average, with some keys changed; `...` removes one."""
    table = {key: each for key, each in make(kind).table.items() if not key.startswith("model_ema.")}
    return {key: tensor for key, tensor in (table | changes).items() if tensor is not ...}


def convert_file(file: Path, **arguments: Any) -> dict[str, State]:
    """Return each network's tensors in a file, prepared as they would be written."""
    checkpoint = convert.read_original(file, **arguments)
    return {
        name: storage.prepare(name, open_state(), None, str(file))
        for name, open_state in checkpoint.states.items()
    }


def conversion_error(file: Path, **arguments: Any) -> str:
    """Return the message of the WeightsError that converting a file raises; any other outcome fails."""
    with pytest.raises(WeightsError) as caught:
        convert_file(file, **arguments)
    message = str(caught.value)
    assert str(file) in message and message.endswith((".", "?")), message
    return message


@contextmanager
def in_memory(table: Mapping[str, Any]) -> Iterator[None]:
    """While the block lasts, any original file holds this table: to write and read one takes longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original_table, "read_torch_file", lambda path: {"state_dict": dict(table)})
        yield


def convert_table(table: Mapping[str, Any], **arguments: Any) -> dict[str, State]:
    """Return each network's tensors in a table, prepared as they would be written."""
    with in_memory(table):
        return convert_file(Path("file.pth"), **arguments)


def table_error(table: Mapping[str, Any], **arguments: Any) -> str:
    """Return the message of the WeightsError that converting a table raises."""
    with in_memory(table):
        return conversion_error(Path("file.pth"), **arguments)
