"""What the tests of training share: a few sounds with captions, and networks that learn in seconds."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from audioldm2.audio import SAMPLE_RATE, write_wav
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training.scratch import configs_from, from_scratch

CAPTIONS = (
    "a low tone", "a high tone", "the wind blows", "a fast drum beat", "rain falls on a roof",
    "a dog barks twice", "a bell rings", "birds sing in the trees", "an engine runs", "a clock ticks slowly",
)  # fmt: skip
SIZES = {  # the published geometry, as narrow as it goes
    "clap_text": {"dim": 32, "depth": 1, "heads": 2, "ff_dim": 64, "projection_dim": 32},
    "t5": {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "ff_dim": 64},
    "projection": {"clap_dim": 32, "t5_dim": 32, "gpt2_dim": 32},
    "gpt2": {"dim": 32, "depth": 1, "heads": 2, "new_vectors": 4},
    "unet": {
        "channels": [16, 32],
        "heads": [1, 2],
        "transformers": [[], ["self_attn", "gpt2_attn", "t5_attn"]],
        "gpt2_dim": 32,
        "t5_dim": 32,
    },
    "vae": {"channels": [8, 8, 16], "norm_groups": 4},
    "hifigan": {"channels": 64, "upsample_rates": [8, 5, 4], "upsample_kernels": [16, 11, 8], "slope": 0.1,
                "branch_kernels": [3], "branch_dilations": [[1, 3]]},
    "clap_audio": {"dim": 16, "depths": [1, 2], "heads": [2, 4], "patch_size": 16, "patch_stride": 16,
                   "projection_dim": 32},
}  # fmt: skip


def sound(place: int, seconds: float = 0.8) -> Tensor:
    """A tone over a little noise; each place has its own pitch and loudness."""
    t = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(place))
    tone = torch.sin(2 * math.pi * 150 * 1.4**place * t)
    return (0.1 + 0.02 * place) * tone + 0.01 * noise


def clips(count: int, seconds: float = 0.8) -> tuple[Tensor, list[str]]:
    """A batch of clips (count, samples) and their captions."""
    return torch.stack([sound(place, seconds) for place in range(count)]), list(CAPTIONS[:count])


class Clips:
    """The same clips at every step."""

    def __init__(self, seconds: float = 0.8):
        self.seconds = seconds

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        return clips(size, self.seconds)

    def captions(self) -> list[str]:
        return list(CAPTIONS)


def write_sounds(folder: Path) -> Path:
    """A user's folder: ten sounds of different lengths and rates, and captions.csv."""
    folder.mkdir()
    rows = ["file,caption"]
    for place, caption in enumerate(CAPTIONS):
        write_wav(folder / f"{place}.wav", sound(place, 0.5 + 0.1 * place), SAMPLE_RATE)
        rows.append(f"{place}.wav,{caption}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_sizes(path: Path) -> Path:
    path.write_text(json.dumps(SIZES))
    return path


def untrained(folder: Path) -> Checkpoint:
    """A checkpoint of untrained networks; `folder` takes its vocabularies."""
    return from_scratch(configs_from(SIZES, "SIZES"), CAPTIONS, folder)
