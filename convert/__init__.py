"""Any checkpoint to ours, and ours to the diffusers layout: rows, not code.

Each network has a module with its rows (how keys are named there and here) and `config_from` (how its config.json reads
there and here); `keymap` applies rows, `sources` reads files, this page knows which folder holds what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.errors import WeightsError
from audioldm2.weights import (
    Checkpoint,
    compare_shapes,
    expected_shapes,
    read_json,
)

from . import clap, gpt2, hifigan, keymap, projection, t5, unet, vae
from .configs import demand
from .sources import is_diffusers_layout, read_config, read_state


@dataclass(frozen=True)
class Part:
    """One of our networks in the diffusers layout."""

    folder: str
    config_from: Callable[[dict], Any]
    rows: Callable[[Any], list[keymap.Row]]
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict  # before the rows: what rows cannot say


PARTS: dict[str, Part] = {
    "clap_text": Part("text_encoder", clap.text_config_from, clap.text_rows),
    "t5": Part("text_encoder_2", t5.config_from, t5.rows),
    "projection": Part("projection_model", projection.config_from, projection.rows),
    "gpt2": Part("language_model", gpt2.config_from, gpt2.rows, gpt2.without_prefix),
    "unet": Part("unet", unet.config_from, unet.rows),
    "vae": Part("vae", vae.config_from, vae.rows),
    "hifigan": Part("vocoder", hifigan.config_from, hifigan.rows, hifigan.fold_weight_norm),
    "clap_audio": Part("text_encoder", clap.audio_config_from, clap.audio_rows),
}


def read_diffusers(
    folder: Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    heads: str = "config",
    prefer_half: bool = False,
) -> Checkpoint:
    """A folder in the diffusers layout as a Checkpoint of our networks, memory-mapped; nothing is written.

    source, revision: what to call the checkpoint's origin (default: the folder's path).
    heads:            "config": the UNet's heads as its config says and the reference reads; "trained": 32 wide, as
                      the published weights were trained (see "Differences from the reference" in the README).
    prefer_half:      take the fp16 variant where there is one.
    Raises WeightsError, naming the folder and the first offending keys.
    """
    if not is_diffusers_layout(folder):
        raise WeightsError(
            f"{folder} is not a checkpoint: it has neither a model_index.json (diffusers layout) nor a config.json of a "
            "converted model. Give the folder that holds 'unet', 'vae' and the others, or a hub id."
        )
    if heads not in ("config", "trained"):
        raise ValueError(f"heads is {heads!r}; it has to be 'config' or 'trained'.")
    index = read_json(folder / "model_index.json")
    demand(index, "_class_name", "AudioLDM2Pipeline")

    configs, states = {}, {}
    for name, part in PARTS.items():
        theirs = read_config(folder / part.folder, part.folder)
        config = unet.config_from(theirs, heads) if name == "unet" else part.config_from(theirs)
        configs[name] = config
        states[name] = partial(_open_state, name, config, folder / part.folder, prefer_half)
    return Checkpoint(
        configs=configs,
        states=states,
        schedule=schedule_from(read_json(folder / "scheduler" / "scheduler_config.json")),
        clap_mel=clap_mel_from(folder / "feature_extractor" / "preprocessor_config.json"),
        tokenizers={"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"},
        source=source or str(folder),
        revision=revision,
    )


def _open_state(name: str, config: Any, folder: Path, prefer_half: bool) -> dict[str, Tensor]:
    return convert_state(name, config, read_state(folder, prefer_half), str(folder))


def convert_state(name: str, config: Any, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """One network's tensors under our keys, checked against the network that its config describes."""
    part = PARTS[name]
    state = part.prepare(dict(state))
    moves = keymap.plan(state, part.rows(config), where)
    converted = keymap.convert(state, moves)
    shapes = {key: tensor.shape for key, tensor in converted.items()}
    compare_shapes(shapes, expected_shapes(name, config), where)
    return converted


def schedule_from(source: dict) -> dict[str, Any]:
    """The fields of `samplers.NoiseSchedule` in a scheduler's config, whichever scheduler it is for."""
    demand(source, "prediction_type", "epsilon")
    demand(source, "trained_betas", None)
    demand(source, "rescale_betas_zero_snr", False)
    demand(source, "beta_schedule", "scaled_linear", "linear")
    return {
        ours: source[theirs]
        for ours, theirs in (
            ("kind", "beta_schedule"),
            ("beta_start", "beta_start"),
            ("beta_end", "beta_end"),
            ("steps", "num_train_timesteps"),
            ("steps_offset", "steps_offset"),
        )
        if theirs in source
    }


def clap_mel_from(path: Path) -> dict[str, Any]:
    """The fields of `audio.MelSettings` in the config of CLAP's feature extractor; none where there is no such file."""
    if not path.is_file():
        return {}
    source = read_json(path)
    demand(source, "feature_extractor_type", "ClapFeatureExtractor")
    published = {"truncation": "rand_trunc", "padding": "repeatpad", "max_length_s": 10, "top_db": None}
    other = {name: source[name] for name, value in published.items() if source.get(name, value) != value}
    if other:
        warnings.warn(
            f"{path} says {other}; candidates are ranked as the published models rank, with "
            f"{ {name: published[name] for name in other} }.",
            stacklevel=2,
        )
    return {
        ours: source[theirs]
        for ours, theirs in (
            ("sample_rate", "sampling_rate"),
            ("n_fft", "fft_window_size"),
            ("hop", "hop_length"),
            ("mels", "feature_size"),
            ("f_min", "frequency_min"),
            ("f_max", "frequency_max"),
        )
        if theirs in source
    }
