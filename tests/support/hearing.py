"""A tiny checkpoint with AudioMAE: random, of 1.28 s and eight vectors."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from audioldm2.checkpoints import storage
from audioldm2.models.audiomae import AudioMAEConfig
from scripts.make_random_checkpoint import random_state

SAMPLES = 128 * 160  # that it reads, at 16 kHz


def add_audiomae(folder: Path, out: Path) -> Path:
    """Write a converted folder once more, with a random AudioMAE that fits its GPT-2; returns the new one."""
    checkpoint = storage.read(folder)
    gpt2 = checkpoint.configs["gpt2"]
    config = AudioMAEConfig(
        dim=gpt2.dim, depth=2, heads=gpt2.heads, frames=128, averaged=2, pool=(8 // gpt2.new_vectors, 8)
    )
    state = partial(random_state, "audiomae", config, 7, torch.float32)
    with_it = replace(
        checkpoint,
        configs=checkpoint.configs | {"audiomae": config},
        states=checkpoint.states | {"audiomae": state},
        audiomae_source="full.pth",
    )
    storage.write(with_it, out)
    return out
