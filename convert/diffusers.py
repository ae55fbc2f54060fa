"""Reads the diffusers layout: one folder a network, each with its config.json. (`export` writes it.)

CLAP's two branches share a folder. The second text encoder is T5, or the phoneme encoder in speech models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.audio import DEFAULT_SECONDS
from audioldm2.checkpoints import storage, validate
from audioldm2.checkpoints.storage import Checkpoint, check, read_json
from audioldm2.errors import WeightsError, require_choice

from . import clap, gpt2, hifigan, keymap, phonemes, projection, t5, unet, vae
from .configs import field, require_value
from .sources import Opened, Reading, State, is_diffusers_layout, read_config, read_state, unchanged


@dataclass(frozen=True)
class Part:
    """One of our networks in the diffusers layout."""

    folder: str
    config_from: Callable[[dict], Any]
    rows: Callable[[Any], list[keymap.Row]]
    prepare: Callable[[State], State] = dict  # before the rows: what rows cannot express
    finish: Callable[[State, Any], State] = unchanged  # the same after the rows of an export


PARTS: dict[str, Part] = {
    "clap_text": Part("text_encoder", clap.text_config_from, clap.text_rows, finish=clap.with_text_buffers),
    "t5": Part("text_encoder_2", t5.config_from, t5.rows, t5.with_one_embedding),
    "phonemes": Part("text_encoder_2", phonemes.config_from, phonemes.rows),
    "projection": Part("projection_model", projection.config_from, projection.rows),
    "gpt2": Part("language_model", gpt2.config_from, gpt2.rows, gpt2.without_prefix, gpt2.with_language_head),
    "unet": Part("unet", unet.config_from, unet.rows),
    "vae": Part("vae", vae.config_from, vae.rows),
    "hifigan": Part("vocoder", hifigan.config_from, hifigan.rows, hifigan.fold_weight_norm),
    "clap_audio": Part(
        "text_encoder", clap.audio_config_from, clap.audio_rows, finish=clap.with_audio_buffers
    ),
}


def read_diffusers(
    folder: Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    heads: str = "config",
    prefer_half: bool = False,
) -> Checkpoint:
    """Read a folder in the diffusers layout as a Checkpoint of our networks, memory-mapped; writes nothing.

    Args:
        folder: the folder.
        source: the name of the checkpoint's origin (default: the folder's path).
        revision: the commit of its origin.
        heads: "config": the UNet's heads as its config says and the reference reads; "trained": 32 wide, as
            the published weights were trained (see "Differences from the reference" in the README).
        prefer_half: take the fp16 variant where there is one.

    Raises:
        ArgumentError: `heads` is neither, or the UNet's levels cannot be cut into heads 32 wide.
        WeightsError: the folder is not such a checkpoint; names the file and the first keys.
    """
    if not is_diffusers_layout(folder):
        raise WeightsError(
            f"{folder} is not a checkpoint: it has neither a model_index.json (diffusers layout) "
            "nor a config.json of a converted model, nor a single original .pth file. "
            "Give the folder that holds 'unet', 'vae' and the others, or a hub id."
        )
    require_choice("heads", heads, ("config", "trained"))
    index = folder / "model_index.json"
    with _naming(index):
        require_value(read_json(index), "_class_name", "AudioLDM2Pipeline")

    is_speech = read_config(folder / "text_encoder_2", "text_encoder_2").get("model_type") == "vits"
    configs: dict[str, Any] = {}
    states: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for name, part in PARTS.items():
        if name == ("t5" if is_speech else "phonemes"):
            continue
        theirs = read_config(folder / part.folder, part.folder)
        file = folder / part.folder / "config.json"
        with _naming(file), validate.naming_fields(f"'{name}' in {file}"):
            config = unet.config_from(theirs, heads) if name == "unet" else part.config_from(theirs)
        if name == "gpt2" and is_speech and config.new_vectors == gpt2.GPT2Config.new_vectors:
            config = replace(config, new_vectors=phonemes.NEW_VECTORS)  # it says nothing, or the default
        if name == "unet" and heads == "trained":
            unet.require_trained_heads(config)
        configs[name] = config
        opener = partial(_open, name, config, folder / part.folder, prefer_half)
        states[name] = Reading(name, config, str(folder / part.folder), opener)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    with _naming(scheduler):
        schedule = schedule_from(read_json(scheduler))
    front_end = folder / "feature_extractor" / "preprocessor_config.json"
    with _naming(front_end):
        clap_mel = clap_mel_from(front_end)
    tokenizers = {"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"}
    symbols, seconds = None, DEFAULT_SECONDS
    if is_speech:
        seconds = phonemes.SECONDS
        vocabulary = folder / "tokenizer_2" / "vocab.json"
        with _naming(vocabulary):
            symbols = phonemes.symbols_from(read_json(vocabulary), configs["phonemes"].vocabulary)
    checkpoint = Checkpoint(
        configs=configs,
        states=states,
        schedule=schedule,
        clap_mel=clap_mel,
        tokenizers={name: tokenizers[name] for name in storage.tokenizers_of(configs)},
        source=source or str(folder),
        revision=revision,
        seconds=seconds,
        symbols=symbols,
    )
    check(checkpoint, str(folder))
    return checkpoint


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before an error about its contents."""
    try:
        yield
    except WeightsError as error:
        if str(path) in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error


def _open(name: str, config: Any, folder: Path, prefer_half: bool) -> Opened:
    return open_state(name, config, read_state(folder, prefer_half), str(folder))


def open_state(name: str, config: Any, state: Mapping[str, Tensor], where: str) -> Opened:
    """Return one network's tensors under the source's keys, and where each goes."""
    part = PARTS[name]
    with _naming(Path(where)):
        state = part.prepare(dict(state))
    return state, keymap.plan(state, part.rows(config), where)


def convert_state(name: str, config: Any, state: Mapping[str, Tensor], where: str) -> State:
    """Return one network's tensors under our keys, checked against the network that its config describes."""
    return Reading(name, config, where, partial(open_state, name, config, state, where))()


def schedule_from(source: dict) -> dict[str, Any]:
    """Return the fields of `NoiseSchedule` from the config of any scheduler."""
    require_value(source, "prediction_type", "epsilon")
    require_value(source, "trained_betas", None)
    require_value(source, "rescale_betas_zero_snr", False)
    require_value(source, "beta_schedule", "scaled_linear", "linear")
    absent = {"clip_sample": True, "set_alpha_to_one": True} if _is_ddim(source) else {}
    _warn_unfollowed(
        absent | source,
        {
            "timestep_spacing": "leading",
            "set_alpha_to_one": False,
            "clip_sample": False,
            "thresholding": False,
        },
        "sounds are sampled",
    )
    return {
        "kind": field(source, "beta_schedule", str),
        "beta_start": field(source, "beta_start", float),
        "beta_end": field(source, "beta_end", float),
        "steps": field(source, "num_train_timesteps", int),
        "steps_offset": field(source, "steps_offset", int, 0),
    }


def _is_ddim(source: dict) -> bool:
    return source.get("_class_name", "DDIMScheduler") == "DDIMScheduler"


CLAP_MEL = (  # our field, the source's, its type, the reference's default
    ("sample_rate", "sampling_rate", int, 48000),
    ("n_fft", "fft_window_size", int, 1024),
    ("hop", "hop_length", int, 480),
    ("mels", "feature_size", int, 64),
    ("f_min", "frequency_min", float, 0.0),
    ("f_max", "frequency_max", float, 14000.0),
)


def clap_mel_from(path: Path) -> dict[str, Any]:
    """Return the fields of `MelSettings` from the config of CLAP's feature extractor; {} without the file."""
    if not path.is_file():
        return {}
    source = read_json(path)
    require_value(source, "feature_extractor_type", "ClapFeatureExtractor")
    _warn_unfollowed(
        {"truncation": "fusion"} | source,
        {"truncation": "rand_trunc", "padding": "repeatpad", "max_length_s": 10, "top_db": None},
        "candidates are ranked",
    )
    return {ours: field(source, theirs, kind, absent) for ours, theirs, kind, absent in CLAP_MEL}


def _warn_unfollowed(source: dict, published: dict[str, Any], what: str) -> None:
    """Warn about settings that are not followed: those that differ from the published models'.

    Args:
        source: the config, over the reference's defaults.
        published: the values that are followed.
        what: what happens with these settings, for the sentence.
    """
    other = {name: source[name] for name, value in published.items() if source.get(name, value) != value}
    if other:
        kept = {name: published[name] for name in other}
        warnings.warn(
            f"the checkpoint says {other}; {what} as with the published models: {kept}.",
            stacklevel=2,
        )
