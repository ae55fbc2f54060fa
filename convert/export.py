"""Writes the diffusers layout: the rows of `diffusers` read backwards, and the configs that go with them."""

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
from audioldm2.checkpoints.tensor_files import naming_folder, save_safetensors
from audioldm2.errors import WeightsError, some
from audioldm2.files import atomic_folder
from audioldm2.models import NETWORKS
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer

from . import clap, gpt2, hifigan, keymap, phonemes, projection, t5, unet, vae
from .diffusers import CLAP_MEL, PARTS

DIFFUSERS_FOLDERS = ("projection_model", "unet", "vae")  # the others are classes of transformers
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
SPEECH_CLASSES = {
    "text_encoder_2": ["transformers", "VitsModel"],
    "tokenizer_2": ["transformers", "VitsTokenizer"],
}


def require_exportable(checkpoint: Checkpoint) -> None:
    """Raise WeightsError if the reference's pipeline cannot hold a checkpoint."""
    is_speech = "phonemes" in checkpoint.configs
    whole = PARTS.keys() - {"t5" if is_speech else "phonemes"}
    if set(checkpoint.configs) != whole:
        raise WeightsError(
            f"{checkpoint.source} has the networks {sorted(checkpoint.configs)}; the diffusers layout is "
            f"that of AudioLDM2Pipeline, which needs {sorted(whole)}. Keep it in the converted format."
        )
    if is_speech and checkpoint.configs["phonemes"].vocabulary != len(phonemes.SYMBOLS):
        raise WeightsError(
            f"{checkpoint.source} has {checkpoint.configs['phonemes'].vocabulary} phoneme symbols; the "
            f"reference ends every text with the last of {len(phonemes.SYMBOLS)}, whatever the model. "
            "Keep it in the converted format."
        )
    needed = storage.tokenizers_of(checkpoint.configs)
    absent = [name for name in needed if name not in checkpoint.tokenizers]
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
    on_network: Callable[[str, int, int], object] = storage.ignore_network,
) -> None:
    """Write a checkpoint in the diffusers layout, whole or not at all.

    Arguments and errors are those of `storage.write`. The UNet's heads are written as one number per level,
    which the reference reads as we do.
    """
    require_exportable(checkpoint)
    configs = checkpoint.configs
    is_speech = "phonemes" in configs
    second = phonemes.config_to(configs["phonemes"]) if is_speech else t5.config_to(configs["t5"])
    contents = {
        "text_encoder": clap.config_to(configs["clap_text"], configs["clap_audio"]),
        "text_encoder_2": second,
        "projection_model": projection.config_to(configs["projection"]),
        "language_model": gpt2.config_to(configs["gpt2"]),
        "unet": unet.config_to(configs["unet"]),
        "vae": vae.config_to(configs["vae"]),
        "vocoder": hifigan.config_to(configs["hifigan"]),
    }
    schedule = storage.schedule_of(checkpoint, checkpoint.source)
    clap_mel = storage.clap_mel_of(checkpoint, checkpoint.source)
    storage.require_tokenizers(checkpoint)
    if force:
        storage.require_replaceable(folder)
    with atomic_folder(folder, force=force) as draft, naming_folder(folder):
        for name, content in contents.items():
            (draft / name).mkdir()
            _write_json(draft / name / "config.json", content)
            state: dict[str, Tensor] = {}
            for ours in NETWORKS:
                if ours in configs and PARTS[ours].folder == name:
                    state |= _back(ours, checkpoint, dtype)
            on_network(name, len(state), sum(tensor.nbytes for tensor in state.values()))
            stem = "diffusion_pytorch_model" if name in DIFFUSERS_FOLDERS else "model"
            save_safetensors(state, draft / name / f"{stem}.safetensors", folder)
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
        front_end = {theirs: getattr(clap_mel, ours) for ours, theirs, *_ in CLAP_MEL}
        _write_json(
            draft / "feature_extractor" / "preprocessor_config.json",
            {
                "feature_extractor_type": "ClapFeatureExtractor",
                "processor_class": "ClapProcessor",
                **front_end,
            }
            | {"truncation": "rand_trunc", "padding": "repeatpad", "max_length_s": 10, "top_db": None},
        )
        folders = {"clap_tokenizer": "tokenizer", "t5_tokenizer": "tokenizer_2"}
        for ours, theirs in ((name, folders[name]) for name in storage.tokenizers_of(configs)):
            tokenizer = storage.TOKENIZERS[ours].from_folder(checkpoint.tokenizers[ours])
            storage.copy_tokenizer(ours, checkpoint.tokenizers[ours], draft / theirs)
            _write_max_length(draft / theirs, tokenizer)
            whole = draft / theirs / "tokenizer.json"
            if ours == "t5_tokenizer" and not whole.is_file():
                _write_tokenizer_json(tokenizer, whole)
        if is_speech:
            files = phonemes.tokenizer_to(checkpoint.symbols or (), configs["projection"].positions)
            for file, content in files.items():
                _write_json(draft / "tokenizer_2" / file, content)
        index = {
            "_class_name": "AudioLDM2Pipeline",
            "_diffusers_version": "0.20.0",
        }  # the first version that reads it
        _write_json(draft / "model_index.json", index | CLASSES | (SPEECH_CLASSES if is_speech else {}))


def _back(name: str, checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return one network's tensors under the layout's keys, by the rows read backwards."""
    part, config = PARTS[name], checkpoint.configs[name]
    state = storage.prepare(name, checkpoint.states[name](), dtype, checkpoint.source)
    moves = keymap.plan(state, keymap.reverse(part.rows(config)), checkpoint.source)
    exported = part.finish(keymap.convert(state, moves), config)
    return {key: tensor.contiguous() for key, tensor in exported.items()}


def _write_tokenizer_json(tokenizer: T5Tokenizer, path: Path) -> None:
    """Write tokenizer.json beside the spiece.model, which transformers reads only with protobuf installed."""
    splitter = Tokenizer.from_str(tokenizer.splitter.to_str())
    ends = ("</s>", tokenizer.SPECIALS["</s>"])
    splitter.post_processor = TemplateProcessing("$A </s>", "$A </s> $B </s>", [ends])
    splitter.save(str(path))


def _write_max_length(folder: Path, tokenizer: ClapTokenizer | T5Tokenizer) -> None:
    """Write the limit of tokens to the file that the reference requires; ours have it by default."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    _write_json(path, settings | {"model_max_length": tokenizer.max_length})


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
