"""A checkpoint in memory: each network's config, how to open its tensors, and what belongs to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.audio import CLAP_MEL, DEFAULT_SECONDS, MAX_SECONDS, MelSettings
from audioldm2.checkpoints import validate
from audioldm2.checkpoints.tensor_files import shapes_of
from audioldm2.errors import WeightsError
from audioldm2.models.config_rules import LARGEST_SIZE
from audioldm2.prompt.encode import UNCONDITIONAL
from audioldm2.prompt.phonemes import PhonemeTokenizer
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.sampling.schedule import NoiseSchedule

TOKENIZERS = {"clap_tokenizer": ClapTokenizer, "t5_tokenizer": T5Tokenizer}  # sub-folder -> its reader
TEXT_ENCODERS = {"clap_tokenizer": "clap_text", "t5_tokenizer": "t5"}  # tokenizer -> the network it serves


@dataclass
class Checkpoint:
    """A whole model on disk, or on its way there.

    Which networks it has depends on the contexts of its denoiser. All of it can be pickled: what opens the
    tensors of a file is a module-level function with its arguments.
    """

    configs: dict[str, Any]  # network -> its config dataclass
    states: dict[str, Callable[[], dict[str, Tensor]]]  # network -> opens its tensors, mapped and checked
    schedule: dict[str, Any]  # fields of `NoiseSchedule`; what is left out is as published
    clap_mel: dict[str, Any]  # fields of `MelSettings` for CLAP's audio branch; the same
    tokenizers: dict[str, Path]  # those of TOKENIZERS that its text encoders need -> folder with the files
    source: str  # hub id, folder or file it came from
    revision: str | None = None  # commit of a hub repository
    seconds: float = DEFAULT_SECONDS  # length of a sound when the caller names none
    unconditional: str = "reference"  # how an empty negative prompt is encoded: `prompt.encode.UNCONDITIONAL`
    normalized: bool = True  # whether it learnt sounds at a peak of 0.5, as upstream trains
    symbols: tuple[str, ...] | None = None  # of a speech model: the symbol of each phoneme id
    pronunciations: dict[str, str] | None = None  # the same: word -> phonemes, where it has a list of its own


def tokenizers_of(configs: Mapping[str, Any]) -> list[str]:
    """Return the names of the tokenizers that the text encoders of a checkpoint need."""
    return [name for name in TOKENIZERS if TEXT_ENCODERS[name] in configs]


def check(checkpoint: Checkpoint, where: str) -> None:
    """Check that all networks can exist and fit together, and that the settings beside them are possible.

    No weight is read.

    Args:
        checkpoint: what to check. Its configs have checked themselves when they were built.
        where: the file or folder that the configs come from.

    Raises:
        WeightsError: something does not fit.
    """
    for name, config in checkpoint.configs.items():
        shapes_of(name, config, where)
    schedule_of(checkpoint, where)
    clap_mel_of(checkpoint, where)
    validate.check_together(checkpoint.configs, where)
    if not 0 < checkpoint.seconds <= MAX_SECONDS:
        raise WeightsError(
            f"'seconds' in {where} is {checkpoint.seconds}; it has to be above 0 and at most {MAX_SECONDS}."
        )
    if checkpoint.unconditional not in UNCONDITIONAL:
        raise WeightsError(
            f"'unconditional' in {where} is {checkpoint.unconditional!r}; it has to be one of "
            f"{', '.join(UNCONDITIONAL)}."
        )
    phonemes, symbols = checkpoint.configs.get("phonemes"), checkpoint.symbols
    if phonemes is not None and len(symbols or ()) != phonemes.vocabulary:
        raise WeightsError(
            f"{where} has {len(symbols or ())} phoneme symbols, but its encoder has a vocabulary of "
            f"{phonemes.vocabulary}. Do they belong together?"
        )
    with validate.naming_fields(where):
        phoneme_tokenizer_of(checkpoint)


def phoneme_tokenizer_of(checkpoint: Checkpoint) -> PhonemeTokenizer | None:
    """Return what turns phonemes into the ids that a speech model reads; None for another model."""
    if "phonemes" not in checkpoint.configs:
        return None
    return PhonemeTokenizer(checkpoint.symbols or (), checkpoint.configs["projection"].positions)


def schedule_of(checkpoint: Checkpoint, where: str) -> NoiseSchedule:
    """Return the noise schedule that the denoiser was trained on; WeightsError if it is impossible."""
    schedule = validate.build(NoiseSchedule, checkpoint.schedule, f"'schedule' in {where}", NoiseSchedule())
    if schedule.steps > LARGEST_SIZE:  # it is laid out in memory
        raise WeightsError(
            f"steps of 'schedule' in {where} is {schedule.steps}; it has to be {LARGEST_SIZE} at most."
        )
    return schedule


def clap_mel_of(checkpoint: Checkpoint, where: str) -> MelSettings:
    """Return the log-mel front end that CLAP's audio branch was trained with; WeightsError if impossible."""
    return validate.build(MelSettings, checkpoint.clap_mel, f"'clap_mel' in {where}", CLAP_MEL)
