"""What a caller may ask for. Each option stands here once: its default, its rule, its flag and its help.

`AudioLDM2.generate` and `denoise` take these fields as keywords, the command line builds its flags from them,
and the record beside a sound lists them. A new option is a field here, the code that reads it, and a line of
the README.

The file is a little long because an option stands nowhere else.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from audioldm2 import option_rules
from audioldm2.audio import MAX_SECONDS
from audioldm2.errors import (
    ArgumentError,
    require_bool,
    require_choice,
    require_number,
    require_texts,
    require_whole,
)
from audioldm2.prompt.encode import UNCONDITIONAL
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

LARGEST_SEED = 2**63 - 1
SPEECH_OPTIONS = ("transcription", "phonemes")  # of which a speech model requires one
SOUND_PROMPT_OPTIONS = ("audio_prompt", "audio_prompt_sample_rate", "heard")
OVERLAP = 0.2  # of neighbouring windows, unless asked otherwise
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Rule = Callable[[str, Any], Any]  # name and value -> the value, normalised; raises ArgumentError


def option(
    default: Any,
    rule: Rule,
    help: str = "",
    *,
    also: str = "",
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    values: int | None = None,
    second: str | None = None,
    first: tuple[str, str] | None = None,
    common: bool = False,
) -> Any:
    """A field of an options class.

    Args:
        default: its value where the caller says nothing.
        rule: checks and normalises one value.
        help: one line, for `--help` and for the docstrings of `generate` and `denoise`.
        also: ends that line in the docstrings: what the library takes beside the values of the flag.
        flag: its flag on the command line; None for an option of the library alone.
        metavar: the placeholder for its value in `--help`.
        parse: text to value; by default that of the field's type.
        values: how many values the flag takes, where more than one.
        second: the option that the second value of the flag sets, where two options share the flag.
        first: flag and help of the first of a pair, where `flag` sets the second.
        common: whether a first-time user needs it, so that `--help` lists it among the first.
    """
    about = {"rule": rule, "help": help, "also": also, "flag": flag, "metavar": metavar, "parse": parse}
    about |= {"values": values, "second": second, "first": first, "common": common}
    return field(default=default, metadata=about)


def _texts(name: str, value: Any) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else require_texts(name, value)


def require_unconditional(name: str, value: Any) -> str | None:
    return None if value is None else require_choice(name, value, UNCONDITIONAL)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = require_number(name, value)
    if not 0 < seconds <= MAX_SECONDS:
        raise ArgumentError(name, value, f"be above 0 and at most {MAX_SECONDS:g} seconds")
    return seconds


def _overlap(name: str, value: Any) -> float:
    share = require_number(name, value)
    if not 0 < share <= 0.5:
        raise ArgumentError(name, value, "be above 0 and at most 0.5, of a window")
    return share


def _seed(name: str, value: Any) -> int | list[int] | None:
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [require_whole(f"{name}[{i}]", each, 0, LARGEST_SEED) for i, each in enumerate(value)]
    return require_whole(name, value, 0, LARGEST_SEED)


def _seed_of_text(text: str) -> int | None:
    return None if text == "random" else int(text)


def _path(text: str) -> Path | str:
    return Path(text) if text else text  # an empty text would be the current folder


def _interval(name: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value if isinstance(value, (list, tuple)) else ()
    if len(pair) == 2:
        low = require_number(f"{name}[0]", pair[0])
        # The largest float in place of infinity, which JSON cannot hold.
        high = min(require_number(f"{name}[1]", pair[1], finite=False), sys.float_info.max)
        if 0 <= low < high:
            return low, high
    wanted = "be two numbers (lo, hi) with 0 <= lo < hi: guidance is on where lo < noise / signal <= hi"
    raise ArgumentError(name, value, wanted)


def require_float_tensor(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    wanted = "be a float tensor (prompts * waveforms, channels, time, mel)"
    if not isinstance(value, Tensor):
        raise ArgumentError(name, value, wanted, given=f"is a {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise ArgumentError(name, value, wanted, given=f"has dtype {value.dtype}")
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        raise ArgumentError(name, value, wanted, given="is sparse, nested or without data")
    if not value.isfinite().all():
        raise ArgumentError(name, value, "hold finite values only", given="holds NaN or infinite values")
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingOptions:
    """How noise becomes a latent: the options of `AudioLDM2.denoise`. Raises ArgumentError."""

    num_inference_steps: int = option(
        25, partial(require_whole, least=1), "denoising steps", flag="--steps", metavar="N", common=True
    )
    guidance_scale: float = option(
        3.5, require_number, "how strongly to follow the prompt; 1 or less switches guidance off",
        flag="--guidance", metavar="X", common=True,
    )  # fmt: skip
    sampler: str = option(
        "dpmpp_2m", partial(require_choice, choices=SAMPLERS), "the sampler; 'list' describes them all",
        flag="--sampler", metavar="NAME",
    )  # fmt: skip
    eta: float = option(
        0.0, require_number, "noise that the ddim sampler adds at each step, from 0 to 1",
        flag="--eta", metavar="X",
    )  # fmt: skip
    karras: bool = option(
        False, require_bool, "space the noise levels as Karras et al. 2022 do", flag="--karras"
    )
    guidance_interval: tuple[float, float] | None = option(
        None, _interval,
        "guide only where LO < sigma <= HI, sigma being noise over signal (Kynkaanniemi et al. 2024)",
        flag="--guidance-interval", metavar="LO HI", parse=float, values=2,
    )  # fmt: skip
    guidance_rescale: float = option(
        0.0, partial(require_number, least=0, most=1),
        "how far guidance keeps the spread of the prediction, from 0 to 1 (Lin et al. 2023)",
        flag="--guidance-rescale", metavar="X",
    )  # fmt: skip
    window_seconds: float | None = option(
        None, _seconds,
        "denoise in windows of this many seconds, in the memory of a few windows, however long the sound is",
        flag="--window", metavar="S",
    )  # fmt: skip
    overlap: float = option(
        OVERLAP, _overlap, "how much of a window, or of a loop, overlaps the next, up to 0.5",
        flag="--overlap", metavar="X",
    )  # fmt: skip
    loop: bool = option(
        False, require_bool,
        "make a seamless loop; its length becomes a whole number of latent frames (published models: 40 ms)",
        flag="--loop", common=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, each.metadata["rule"](each.name, getattr(self, each.name)))

    @property
    def guided(self) -> bool:
        """Whether guidance is on: scales up to 1 switch it off, as in the reference."""
        return self.guidance_scale > 1

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Raise ArgumentError unless the sampler can walk this schedule with these options."""
        SAMPLERS[self.sampler].check(schedule, self.num_inference_steps, self.eta, self.karras)


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationOptions(SamplingOptions):
    """What `AudioLDM2.generate` takes beside the prompts. Raises ArgumentError."""

    negative_prompt: str | list[str] | None = option(
        None, _texts, "what guidance leads away from: one text for all prompts, or one per prompt",
        flag="--negative-prompt", metavar="TEXT", common=True,
    )  # fmt: skip
    transcription: str | list[str] | None = option(
        None, _texts,
        "the words that a speech model speaks, in the voice that the prompt describes: one text for all "
        "prompts, or one per prompt",
        flag="--transcription", metavar="TEXT", common=True,
    )  # fmt: skip
    phonemes: str | list[str] | None = option(
        None, _texts,
        "the same as phonemes (IPA, as espeak writes them), in place of a transcription",
        flag="--phonemes", metavar="IPA",
    )  # fmt: skip
    audio_prompt: Path | Tensor | list[Path | Tensor] | None = option(
        None, option_rules.sounds,
        "a sound file as the prompt, beside the text or without one: the result resembles it",
        also="; floats (samples,) do as well. One for all prompts, or a list with one per prompt",
        flag="--audio-prompt", metavar="FILE", parse=_path,
    )  # fmt: skip
    audio_prompt_sample_rate: int | None = option(
        None, option_rules.sample_rate,
        "of `audio_prompt` where it is not a file, Hz; by default the model's",
    )  # fmt: skip
    heard: int | None = option(
        None, option_rules.heard,
        "how many of the vectors that GPT-2 would write come from the sound prompt, one for each 1.28 s in "
        "the published models, 20 ms in those that speak; GPT-2 adds the others (default: all)",
        flag="--heard", metavar="N",
    )  # fmt: skip
    unconditional: str | None = option(
        None, require_unconditional,
        "how an empty negative prompt is encoded: 'reference', by all text networks, as in diffusers; "
        "'trained', with zeros for GPT-2's vectors, as upstream trained (default: the model's own)",
        flag="--unconditional", metavar="HOW",
    )  # fmt: skip
    audio_length_in_s: float | None = option(
        None, _seconds,
        "length in seconds; by default that of the training clips (published models: 10)",
        also=", or that of `latents`", flag="--duration", metavar="S", common=True,
    )  # fmt: skip
    num_waveforms_per_prompt: int = option(
        1, partial(require_whole, least=1), "sounds per prompt; more than one are ranked by CLAP, best first",
        flag="--candidates", metavar="N", common=True,
    )  # fmt: skip
    seed: int | list[int] | None = option(
        0, _seed, "the same seed gives the same sound, alone or in a batch; 'random' draws one",
        flag="--seed", metavar="N", parse=_seed_of_text, common=True,
    )  # fmt: skip
    latents: Tensor | None = option(
        None,
        require_float_tensor,
        "starting noise (prompts * waveforms, channels, time, mel) in place of the seed's",
    )
    audio: Path | Tensor | None = option(
        None, option_rules.sound,
        "a sound file to begin with; the result is as long", also="; floats (samples,) do as well",
        flag="--audio", metavar="FILE", parse=_path, common=True,
    )  # fmt: skip
    audio_sample_rate: int | None = option(
        None, option_rules.sample_rate, "of `audio` where it is not a file, Hz; by default the model's"
    )
    strength: float | None = option(
        None, option_rules.strength,
        "how far to leave the audio, from 0 to 1 (default: 0.5; 1 where only a part is remade)",
        flag="--strength", metavar="X", parse=float, common=True,
    )  # fmt: skip
    mask_start_seconds: tuple[float, ...] | None = option(
        None, option_rules.positions,
        "the part of the audio that is remade, in seconds", also="; a number or a list for each end",
        flag="--mask", metavar="START END", parse=float, values=2, second="mask_end_seconds",
    )  # fmt: skip
    mask_end_seconds: tuple[float, ...] | None = option(
        None, option_rules.positions, "where the part that is remade ends, seconds"
    )
    mask_start_hz: tuple[float, ...] | None = option(
        None, option_rules.positions,
        "the frequencies that are remade, in Hz", also="; a number or a list for each end",
        flag="--mask-hz", metavar="LOW HIGH", parse=float, values=2, second="mask_end_hz",
    )  # fmt: skip
    mask_end_hz: tuple[float, ...] | None = option(
        None, option_rules.positions, "the highest frequency that is remade; a number or a list"
    )
    repaint_mask: Tensor | None = option(
        None, option_rules.repaint_mask,
        "latent cells that are remade: bool (time, mel) or (batch, 1, time, mel), True where to remake",
    )  # fmt: skip
    resample_times: int = option(
        1, partial(require_whole, least=1),
        "take each step this many times, so that the remade part fits the kept one (Lugmayr et al. 2022)",
        flag="--resample-times", metavar="N",
    )  # fmt: skip
    extend_seconds: tuple[float, float] | None = option(
        None, option_rules.extension,
        "seconds to add at the end of the audio", also=", or a pair (before, after)",
        flag="--extend", first=("--extend-before", "seconds to add at its start"), metavar="S", parse=float,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one(self.transcription, self.phonemes)


def require_one(transcription: Any, phonemes: Any) -> None:
    """Raise ArgumentError if what is spoken is given twice."""
    if transcription is not None and phonemes is not None:
        raise ArgumentError("phonemes", phonemes, "be left out with transcription, which says the same")


Options = TypeVar("Options", bound=SamplingOptions)


def from_keywords(kind: type[Options], options: Options | None, keywords: dict[str, Any]) -> Options:
    """Options given whole, by keyword, or whole with some of them replaced by keyword."""
    known = [each.name for each in fields(kind)]
    for name in keywords:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}."
            raise TypeError(f"unknown option '{name}'; {hint}")
    if options is None:
        return kind(**keywords)
    if not isinstance(options, kind):
        raise ArgumentError("options", options, f"be of the type {kind.__name__}")
    return replace(options, **keywords)


def takes_options(kind: type[SamplingOptions]) -> Callable[[Callable], Callable]:
    """Show the fields of an options class in the signature and the docstring of a function with `**keywords`.

    The function itself is unchanged; `help()`, notebooks and `inspect.signature` see the keywords one by one.
    """

    def describe(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shown_fields = [
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
            )
            for each in fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shown_fields])  # type: ignore[attr-defined]
        lines = [
            f"            {each.name}: {each.metadata['help']}{each.metadata['also']}{_default(each)}."
            for each in fields(kind)
        ]
        function.__doc__ = (function.__doc__ or "").replace("            {options}", "\n".join(lines))
        return function

    return describe


def _default(of: Field) -> str:
    return "" if of.default in (None, False, MISSING) else f" (default: {of.default})"


def negatives(value: str | Sequence[str] | None, prompts: int) -> list[str]:
    """A negative prompt for each prompt: None means the empty text, and a single one serves all."""
    return for_each("negative_prompt", value, prompts) or [""] * prompts


def for_each(name: str, value: str | Sequence[str] | None, prompts: int) -> list[str] | None:
    """One text for each prompt: a single one serves all, None stays None. Raises ArgumentError."""
    found = _texts(name, value)
    if found is None:
        return None
    if isinstance(found, str):
        return [found] * prompts
    if len(found) != prompts:
        raise ArgumentError(
            name, value, "have one for each prompt, or be one text for all",
            given=f"has {len(found)} entries for {prompts} prompts",
        )  # fmt: skip
    return found
