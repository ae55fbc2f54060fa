"""Ours to the diffusers layout: the rows of `diffusers` read backwards, and the configs that go with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint, read_json
from audioldm2.errors import WeightsError, some
from audioldm2.files import atomic_folder
from audioldm2.models import NETWORKS
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer

from . import clap, gpt2, hifigan, keymap, projection, t5, unet, vae
from .diffusers import CLAP_MEL, PARTS

OF_DIFFUSERS = ("projection_model", "unet", "vae")  # the others are transformers' and named as it does
CLASSES = {
    "text_encoder": ["transformers", "ClapModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "projection_model": ["audioldm2", "AudioLDM2ProjectionModel"],
    "language_model": ["transformers", "GPT2LMHeadModel"],
    "unet": ["audioldm2", "AudioLDM2UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vocoder": ["transformers", "SpeechT5HifiGan"],
    "tokenizer": ["transformers", "RobertaTokenizerFast"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "feature_extractor": ["transformers", "ClapFeatureExtractor"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def demand_exportable(checkpoint: Checkpoint) -> None:
    """Raise WeightsError where the reference's pipeline has no place for a checkpoint."""
    whole = PARTS.keys() - {"phonemes"}
    if set(checkpoint.configs) != whole:
        raise WeightsError(
            f"{checkpoint.source} has the networks {sorted(checkpoint.configs)}; the diffusers layout is "
            f"that of AudioLDM2Pipeline, which needs {sorted(whole)}. Keep it in the converted format."
        )
    absent = [name for name in storage.TOKENIZERS if name not in checkpoint.tokenizers]
    if absent:
        raise WeightsError(
            f"{checkpoint.source} has no {some(absent)}, which the diffusers layout needs. "
            "Give a folder with them: --tokenizers FOLDER."
        )


def write_diffusers(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_network: Callable[[str, int, int], object] = lambda name, tensors, size: None,
) -> None:
    """Write a checkpoint in the diffusers layout, whole or not at all; the arguments are `storage.write`'s.

    The UNet's heads are written as numbers a level, so the reference computes what we do.
    """
    demand_exportable(checkpoint)
    configs = checkpoint.configs
    contents = {
        "text_encoder": clap.config_to(configs["clap_text"], configs["clap_audio"]),
        "text_encoder_2": t5.config_to(configs["t5"]),
        "projection_model": projection.config_to(configs["projection"]),
        "language_model": gpt2.config_to(configs["gpt2"]),
        "unet": unet.config_to(configs["unet"]),
        "vae": vae.config_to(configs["vae"]),
        "vocoder": hifigan.config_to(configs["hifigan"]),
    }
    schedule = storage.schedule_of(checkpoint, checkpoint.source)
    hearing = storage.hearing_of(checkpoint, checkpoint.source)
    storage.demand_tokenizers(checkpoint)
    with atomic_folder(folder, force=force) as draft:
        for name, content in contents.items():
            (draft / name).mkdir()
            _write_json(draft / name / "config.json", content)
            state: dict[str, Tensor] = {}
            for ours in NETWORKS:
                if ours in configs and PARTS[ours].folder == name:
                    state |= _back(ours, checkpoint, dtype)
            on_network(name, len(state), sum(tensor.nbytes for tensor in state.values()))
            stem = "diffusion_pytorch_model" if name in OF_DIFFUSERS else "model"
            storage.save(state, draft / name / f"{stem}.safetensors", folder)
            del state  # before the next is read
        _write_json(
            draft / "scheduler" / "scheduler_config.json",
            {
                "_class_name": "DDIMScheduler",
                "beta_schedule": schedule.kind,
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
                "num_train_timesteps": schedule.steps,
                "steps_offset": schedule.steps_offset,
                "prediction_type": "epsilon",
                "timestep_spacing": "leading",
                "set_alpha_to_one": False,
                "clip_sample": False,
            },
        )
        heard = {theirs: getattr(hearing, ours) for ours, theirs, *_ in CLAP_MEL}
        _write_json(
            draft / "feature_extractor" / "preprocessor_config.json",
            {"feature_extractor_type": "ClapFeatureExtractor", "processor_class": "ClapProcessor", **heard}
            | {"truncation": "rand_trunc", "padding": "repeatpad", "max_length_s": 10, "top_db": None},
        )
        for ours, theirs in (("clap_tokenizer", "tokenizer"), ("t5_tokenizer", "tokenizer_2")):
            tokenizer = storage.TOKENIZERS[ours].from_folder(checkpoint.tokenizers[ours])
            storage.copy_tokenizer(ours, checkpoint.tokenizers[ours], draft / theirs)
            _say_length(draft / theirs, tokenizer)
            whole = draft / theirs / "tokenizer.json"
            if ours == "t5_tokenizer" and not whole.is_file():
                _save_whole(tokenizer, whole)
        index = {
            "_class_name": "AudioLDM2Pipeline",
            "_diffusers_version": "0.20.0",
        }  # the first that reads it
        _write_json(draft / "model_index.json", index | CLASSES)


def _back(name: str, checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """One network's tensors under the layout's keys: the rows, read backwards."""
    part, config = PARTS[name], checkpoint.configs[name]
    state = storage.ready(name, checkpoint.states[name](), dtype, checkpoint.source)
    moves = keymap.plan(state, keymap.reverse(part.rows(config)), checkpoint.source)
    made = part.finish(keymap.convert(state, moves), config)
    return {key: tensor.contiguous() for key, tensor in made.items()}


def _save_whole(tokenizer: T5Tokenizer, path: Path) -> None:
    """As tokenizer.json, beside the spiece.model that transformers reads only with protobuf installed."""
    splitter = Tokenizer.from_str(tokenizer.splitter.to_str())
    ends = ("</s>", tokenizer.SPECIALS["</s>"])
    splitter.post_processor = TemplateProcessing("$A </s>", "$A </s> $B </s>", [ends])
    splitter.save(str(path))


def _say_length(folder: Path, tokenizer: ClapTokenizer | T5Tokenizer) -> None:
    """How much of a text is read stands in a file that the reference must have, and we need not."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    _write_json(path, settings | {"model_max_length": tokenizer.max_length})


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
