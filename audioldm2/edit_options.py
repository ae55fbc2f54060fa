"""What a caller of `AudioLDM2.edit` and `invert` may ask for; `options` says how options work."""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor

from audioldm2 import option_rules
from audioldm2.errors import ArgumentError, require_choice, require_number
from audioldm2.options import (
    SOUND_PROMPT_OPTIONS,
    GenerationOptions,
    SamplingOptions,
    from_keywords,
    option,
)
from audioldm2.sampling.inversion import INVERTIBLE
from audioldm2.sampling.repainting import Walk
from audioldm2.sampling.schedule import NoiseSchedule

# Method -> samplers, the default first. On the model in the box ddpm follows the text more surely than direct
# and keeps as much of the sound; dpmpp_2m_sde needs fewer steps for it than ddim.
METHODS = {"ddpm": ["dpmpp_2m_sde", "ddim", "euler_ancestral"], "direct": ["euler"]}
AUTO = "auto"  # the default sampler of a method


def _shared(name: str) -> Any:
    """The option of `generate` with this name."""
    [found] = [each for each in fields(GenerationOptions) if each.name == name]
    return field(default=found.default, metadata=found.metadata)


@dataclass(frozen=True, kw_only=True, eq=False)
class InversionOptions(SamplingOptions):
    """How a latent is inverted: the options of `AudioLDM2.invert`. Raises ArgumentError."""

    sampler: str = option(
        INVERTIBLE[0], partial(require_choice, choices=INVERTIBLE), f"one of {', '.join(INVERTIBLE)}"
    )
    eta: float = option(1.0, require_number, "noise that the ddim sampler adds at each step, above 0 to 1")
    skip: float = option(
        0.0, option_rules.skip,
        "the share of steps that an edit skips, below 1: the more it skips, the closer it stays to the audio",
        flag="--skip", metavar="X",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loop:
            raise ArgumentError("loop", True, "be left out of an edit, whose sound has a start and an end")
        if self.walked_sampler != "ddim" and self.eta not in (0, InversionOptions.eta):
            raise ArgumentError("eta", self.eta, f"be left out for {self.walked_sampler}, which takes none")

    @property
    def walked_sampler(self) -> str:
        return self.sampler

    @property
    def walked_eta(self) -> float:
        return self.eta if self.walked_sampler == "ddim" else 0.0

    def walk(self, schedule: NoiseSchedule) -> Walk:
        """The path of the edit. Raises ArgumentError if the sampler cannot walk it with these options."""
        steps = self.num_inference_steps
        return Walk(self.walked_sampler, schedule, steps, self.walked_eta, self.karras)

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        self.walk(schedule)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditOptions(InversionOptions):
    """What `AudioLDM2.edit` takes beside the sound and the prompts. Raises ArgumentError."""

    sampler: str = option(
        AUTO, partial(require_choice, choices=[AUTO, *METHODS["ddpm"], *METHODS["direct"]]),
        f"{AUTO}, or {' or '.join(METHODS['ddpm'])} for the method ddpm",
    )  # fmt: skip
    source_prompt: str | None = option(
        None, option_rules.source_prompt,
        "a description of the audio, which is then edited: from this text to the prompt",
        flag="--source", metavar="TEXT", common=True,
    )  # fmt: skip
    method: str = option(
        "ddpm", partial(require_choice, choices=METHODS),
        "how to edit: 'ddpm' first inverts the audio; 'direct' follows the difference between the two texts",
        flag="--method", metavar="NAME",
    )  # fmt: skip
    source_guidance_scale: float = option(
        2.0, require_number, "how strongly the source follows its text; 1 or less switches guidance off",
        flag="--source-guidance", metavar="X",
    )  # fmt: skip
    negative_prompt: str | list[str] | None = _shared("negative_prompt")
    unconditional: str | None = _shared("unconditional")
    num_waveforms_per_prompt: int = _shared("num_waveforms_per_prompt")
    seed: int | list[int] | None = _shared("seed")
    audio_sample_rate: int | None = _shared("audio_sample_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        samplers = METHODS[self.method]
        if self.sampler not in (AUTO, *samplers):
            allowed = f"be {AUTO} or {', '.join(samplers)} for the method {self.method}"
            raise ArgumentError("sampler", self.sampler, allowed)

    @property
    def walked_sampler(self) -> str:
        return METHODS[self.method][0] if self.sampler == AUTO else self.sampler

    def target(self) -> GenerationOptions:
        """The options of `generate` that an edit has too, with the sampler and eta that it uses."""
        names = [each.name for each in fields(GenerationOptions) if hasattr(self, each.name)]
        walked = {"sampler": self.walked_sampler, "eta": self.walked_eta}
        return GenerationOptions(**{name: getattr(self, name) for name in names} | walked)

    def source(self) -> SamplingOptions:
        """How the noise is predicted that the source prompt explains."""
        target = self.target()
        shared = {each.name: getattr(target, each.name) for each in fields(SamplingOptions)}
        return SamplingOptions(**shared | {"guidance_scale": self.source_guidance_scale})


def edit_options(options: EditOptions | None, keywords: dict[str, Any]) -> EditOptions:
    """`from_keywords` for an edit, with a sentence for the options that only `generate` has."""
    own = {each.name for each in fields(EditOptions)}
    for each in fields(GenerationOptions):
        if each.name in keywords and each.name not in own:
            refuse(each.name, keywords[each.name])
    return from_keywords(EditOptions, options, keywords)


def refuse(name: str, value: Any) -> None:
    """Raise the ArgumentError for an option of `generate` that an edit does not have."""
    given = "is set" if isinstance(value, Tensor) or name == "audio_prompt" else None
    why = "is from a text to a text" if name in SOUND_PROMPT_OPTIONS else "edits the whole sound"
    raise ArgumentError(name, value, f"be left out of an edit, which {why}", given=given)
