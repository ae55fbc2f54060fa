"""For the tests of training: a few captioned sounds, tiny networks, stages with quick recipes."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import AudioLDM2, Result
from audioldm2.audio import SAMPLE_RATE, write_wav
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training import STAGES, Stage, judging
from audioldm2.training.audiomae import with_new_audiomae
from audioldm2.training.new_model import configs_from, from_scratch
from audioldm2.training.recipe import override

CAPTIONS = (
    "a low tone", "a high tone", "the wind blows", "a fast drum beat", "rain falls on a roof",
    "a dog barks twice", "a bell rings", "birds sing in the trees", "an engine runs", "a clock ticks slowly",
)  # fmt: skip
SIZES = {  # as narrow as possible; each network has every kind of layer, but the denoiser has one level
    "clap_text": {"dim": 32, "depth": 1, "heads": 2, "ff_dim": 64, "projection_dim": 32},
    "t5": {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "ff_dim": 64},
    "projection": {"clap_dim": 32, "t5_dim": 32, "gpt2_dim": 32},
    "gpt2": {"dim": 32, "depth": 1, "heads": 2, "new_vectors": 4},
    "unet": {
        "channels": [16], "heads": [1], "transformers": [["gpt2_attn", "t5_attn"]],
        "gpt2_dim": 32, "t5_dim": 32,
    },
    "vae": {"channels": [8, 8, 16], "norm_groups": 4},
    "hifigan": {"channels": 64, "upsample_rates": [8, 5, 4], "upsample_kernels": [16, 11, 8], "slope": 0.1,
                "branch_kernels": [3], "branch_dilations": [[1, 3]]},
    "clap_audio": {"dim": 16, "depths": [1, 2], "heads": [2, 4], "patch_size": 16, "patch_stride": 16,
                   "projection_dim": 32},
}  # fmt: skip
QUICK = {  # recipes that reach every part of a stage within a few steps
    "vae": {"learning_rate": 3e-3, "warmup": 0, "adversary_start": 2, "adversary_width": 8},
    "vocoder": {
        "learning_rate": 3e-3, "warmup": 0, "additive_until": 0, "adversary_start": 2, "adversary_width": 4,
        "floor": 0.0, "mel_weight": 45.0, "stft_weights": [1, 1, 1], "adversary_scales": 0,
        "additive_weight": 0.0, "partials_until": 0, "optimizer": "adamw", "bf16": False, "window": 0.0,
        "mel_learning_rate": 0.0,
    },
    "clap": {"learning_rate": 1e-3, "warmup": 0},
    "audiomae": {"learning_rate": 3e-3, "warmup": 0, "pool": 0, "mask": 0.75},
    "loa": {"learning_rate": 3e-3, "warmup": 0, "pool": 0},
    "ldm": {"learning_rate": 3e-3, "warmup": 0, "min_snr": None},
    "lora": {"learning_rate": 3e-3, "pool": 0, "ema": 0.0, "min_snr": None, "rank": 2},
    "word": {"learning_rate": 3e-2, "pool": 0, "min_snr": None, "word": "<zorp>", "vectors": 2},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    """Samples are of two clips and take two steps, unless a test says how many."""
    generate = AudioLDM2.generate

    @wraps(generate)
    def quickly(model: AudioLDM2, *given: Any, **named: Any) -> Result:
        return generate(model, *given, **named if "options" in named else {"num_inference_steps": 2} | named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "SAMPLE_CLIPS", 2)
        patch.setattr(AudioLDM2, "generate", quickly)
        yield


READ_SOUNDS = ("audiomae", "loa")  # stages that a model without AudioMAE has no use for
DEVICE = torch.device("cpu")  # of stages


def stage_of(name: str, checkpoint: Checkpoint, **values: object) -> Stage:
    """A stage on DEVICE with its recipe from QUICK, overridden by `values`."""
    if name in READ_SOUNDS:
        checkpoint = hearing(checkpoint)
    recipe = override(STAGES[name].recipes["small"], QUICK[name] | values, "the test's recipe")
    return STAGES[name](checkpoint, recipe, DEVICE)


def hearing(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with an untrained AudioMAE that reads 1.28 s, unless it has one."""
    if "audiomae" in checkpoint.configs:
        return checkpoint
    short = replace(checkpoint, seconds=1.28)
    return replace(with_new_audiomae(short, 0), seconds=checkpoint.seconds)


def parameter_copies(networks: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Copies of all parameters, by network and key."""
    return {
        name: {key: tensor.detach().clone() for key, tensor in network.named_parameters()}
        for name, network in networks.items()
    }


def sound(index: int, seconds: float = 0.8) -> Tensor:
    """A tone over a little noise; each index has its own pitch and loudness."""
    t = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(index))
    tone = torch.sin(2 * math.pi * 150 * 1.4**index * t)
    return (0.1 + 0.02 * index) * tone + 0.01 * noise


def clips(count: int, seconds: float = 0.8) -> tuple[Tensor, list[str]]:
    """A batch of clips (count, samples) and their captions."""
    return torch.stack([sound(index, seconds) for index in range(count)]), list(CAPTIONS[:count])


class Clips:
    """A dataset with the same clips at every step."""

    def __init__(self, seconds: float = 0.8):
        self.seconds = seconds

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        return clips(size, self.seconds)

    def captions(self) -> list[str]:
        return list(CAPTIONS)


def write_sounds(folder: Path) -> Path:
    """Writes a user's folder: ten sounds of different lengths, and captions.csv."""
    folder.mkdir()
    rows = ["file,caption"]
    for index, caption in enumerate(CAPTIONS):
        write_wav(folder / f"{index}.wav", sound(index, 0.5 + 0.1 * index), SAMPLE_RATE)
        rows.append(f"{index}.wav,{caption}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_sizes(path: Path) -> Path:
    """Writes SIZES as a JSON file."""
    path.write_text(json.dumps(SIZES))
    return path


def untrained(folder: Path) -> Checkpoint:
    """A checkpoint of untrained networks; its vocabularies are written into `folder`."""
    return from_scratch(configs_from(SIZES, "SIZES"), CAPTIONS, folder)
