"""A tiny speech model with random weights, and words that it knows without espeak."""

# ruff: noqa: RUF001 - phonemes look like letters

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from audioldm2.checkpoints import storage
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.unet import GPT2, SELF
from convert.phonemes import SYMBOLS
from scripts.make_random_checkpoint import TINY, random_state

PRONUNCIATIONS = {"one": "wˈʌn", "two": "tˈuː", "three": "θɹˈiː", "seven": "sˈɛvən", "yes": "jˈɛs"}
SECONDS = 1.28


def write_speech_model(folder: Path, tiny_folder: Path) -> Path:
    """Write the model in the converted format.

    Args:
        folder: to write.
        tiny_folder: a converted folder of `TINY`, for its tokenizers.
    """
    sizes = storage.read(tiny_folder).configs
    configs = {
        "clap_text": sizes["clap_text"],
        "phonemes": PhonemesConfig(dim=20, depth=2, heads=2, ff_dim=24),
        "projection": replace(TINY["projection"], t5_dim=20, positions=310),
        "gpt2": replace(TINY["gpt2"], max_positions=1024, new_vectors=8),
        "unet": replace(TINY["unet"], transformers=((), (), (SELF, GPT2)), t5_dim=20),
        **{name: TINY[name] for name in ("vae", "hifigan", "clap_audio")},
    }
    checkpoint = replace(
        storage.read(tiny_folder),
        configs=configs,
        states={
            name: partial(random_state, name, config, place, torch.float32)
            for place, (name, config) in enumerate(configs.items())
        },
        tokenizers={"clap_tokenizer": tiny_folder / "clap_tokenizer"},
        symbols=tuple(SYMBOLS),
        pronunciations=PRONUNCIATIONS,
        seconds=SECONDS,
    )
    storage.write(checkpoint, folder)
    return folder
