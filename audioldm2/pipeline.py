"""A prompt to a waveform, and a sound to another: `generate` and `edit` call the stages in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm2 import clap_score, language_of_audio, ops
from audioldm2.adapters.model import Adaptable
from audioldm2.audio import SAMPLE_RATE
from audioldm2.denoiser import InWindows
from audioldm2.edit_options import EditOptions, edit_options
from audioldm2.editing.text_edit import TextEdit
from audioldm2.encoding_stages import inference
from audioldm2.errors import ArgumentError
from audioldm2.options import (
    GenerationOptions,
    SamplingOptions,
    from_keywords,
    takes_options,
)
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.timeline import parts
from audioldm2.prompt.words import for_clap
from audioldm2.request import Request
from audioldm2.result import Result
from audioldm2.runtime import dtypes, memory
from audioldm2.sampling.samplers import generator_noise
from audioldm2.sound_prompt import cut
from audioldm2.stages import OnStep, Stages


class AudioLDM2(Adaptable, Stages):
    """A loaded model; `audioldm2.load` returns one. Several threads may use it at once."""

    @inference
    @takes_options(GenerationOptions)
    def generate(
        self,
        prompt: str | Sequence[Any] | None = None,
        *,
        options: GenerationOptions | None = None,
        on_step: OnStep | None = None,
        on_stage: Callable[[str], object] | None = None,
        **keywords: Any,
    ) -> Result:
        """Generate sounds from prompts.

        Args:
            prompt: a text or a list of texts. Or a timeline, a list of (text, start, end) in seconds, which
                is one sound; or a list of timelines that end together. With a sound prompt it may be left
                out: the text is then empty, and candidates are ranked by CLAP's cosine of the two sounds.
            options: the options below in one object; keywords replace some of them.
            on_step: called as on_step(step, t, x0) after each step; returning False stops and keeps x0.
            on_stage: called with the name of each stage as it begins. Sounds that do not fit into memory
                together are denoised in slices; each slice begins the stage and counts its steps anew.
            {options}

        Raises:
            ArgumentError: an argument is not allowed; raised before any network runs.
            ValueError: the model cannot read a sound as a prompt, or cannot rank candidates.
            OSError: the file of `audio`, or of a sound prompt, cannot be opened.
        """
        chosen = from_keywords(GenerationOptions, options, keywords)
        request = Request.resolve(prompt, chosen, self.sound, self.schedule)
        if self.speaks and request.timelines is not None:
            allowed = "be a text or texts: a speech model speaks in one voice"
            raise ArgumentError("prompt", prompt, allowed, given="is a timeline")
        spoken = self.spoken(len(request.prompts), chosen.transcription, chosen.phonemes)
        by = self.pronounced_by(request.transcriptions or ())
        request = self._ready_to_hear(replace(request, phonemes=spoken, pronounced_by=by))
        return self._sounds(request, on_step, on_stage)

    @inference
    @takes_options(EditOptions)
    def edit(
        self,
        audio: Any,
        prompt: str | Sequence[str],
        *,
        options: EditOptions | None = None,
        on_step: OnStep | None = None,
        on_stage: Callable[[str], object] | None = None,
        **keywords: Any,
    ) -> Result:
        """Edit a sound by text: what the source prompt says of it becomes what the prompt says.

        The result is as long and as loud as the sound. It keeps what the prompts share and what neither of
        them mentions. With equal prompts, equal scales and no negative prompt, the latent of the sound comes
        back: bit for bit with the method 'direct', up to rounding errors with 'ddpm'.

        Methods and their sources: `sampling.inversion`.

        Args:
            audio: a file, or floats (samples,).
            prompt: what the sound becomes: a text or a list of texts.
            options: the options below in one object; keywords replace some of them.
            on_step: as in `generate`, for the steps of the edit; inverting the sound (ddpm) reports none.
            on_stage: as in `generate`.
            {options}

        Raises:
            ArgumentError: an argument is not allowed; raised before any network runs.
            OSError: the file of `audio` cannot be opened.
        """
        chosen = edit_options(options, keywords)
        if self.speaks:
            given = f"is to be edited by {self.source or 'this model'}, a speech model"
            raise ArgumentError("audio", audio, "be edited by a model of sounds or music", given=given)
        request = Request.resolve_edit(audio, prompt, chosen, self.sound, self.schedule)
        return self._sounds(request, on_step, on_stage)

    def _ready_to_hear(self, request: Request) -> Request:
        """The request with what AudioMAE reads of its sound prompts. Raises as `generate` does."""
        if request.sound_prompts is None:
            return request
        heard = self.vectors_heard(request.options.heard)
        sounds = cut(request.sound_prompts, self.networks.configs["audiomae"])
        return replace(request, sound_prompts=sounds, options=replace(request.options, heard=heard))

    def _sounds(
        self, request: Request, on_step: OnStep | None, on_stage: Callable[[str], object] | None
    ) -> Result:
        """The stages of a request, in order."""
        self = self.as_it_is_now()  # adapters that are loaded meanwhile are for the next request
        own = request.options.unconditional or self.unconditional
        request = replace(request, options=replace(request.options, unconditional=own))
        if request.candidates > 1:
            self._require_clap()

        def begin(stage: str) -> None:
            memory.trim_heap()  # what the stage before has left
            if on_stage is not None:
                on_stage(stage)

        edit, given = request.edit, None
        if edit is not None:
            if edit.denoises:
                self._sounds_at_once(request)  # a sound that is too long is refused before any network runs
            begin("encoding the sound")
            given = self._encode(edit.log_mel(), "audio")
        if edit is not None and given is not None and not edit.denoises:
            z = given.repeat(len(request.generators()), 1, 1, 1)
        else:
            z = self._denoise_request(request, given, begin, on_step)
        begin("decoding")
        mel = self.decode(z, loop=request.options.loop)
        begin("vocoding")
        audio = self.vocode(mel, loop=request.options.loop).float().cpu()
        if not request.options.loop:
            audio = edit.finish(audio) if edit else audio[:, : self.sound.samples(request.seconds)]

        scores = None
        if request.candidates > 1:
            begin("ranking")
            scores = self._scores(request, audio)
        return Result.ranked(audio, z, mel, scores, self.sample_rate, request, self.describe())

    def _denoise_request(
        self,
        request: Request,
        given: Tensor | None,
        begin: Callable[[str], None],
        on_step: OnStep | None,
    ) -> Tensor:
        """The latents of a request, from noise or from the latent (1, ...) of a given sound, in slices."""
        options, edit, windows = request.options, request.edit, None
        at_once = self._sounds_at_once(request)
        loa = None
        if request.heard_sounds is not None:
            begin("hearing the sound")
            loa = language_of_audio.loa_of(self.networks, request.heard_sounds)
        begin("encoding the prompt")
        conditioning, source = self._encode_request(request, loa)
        generators = request.generators()
        noise = options.latents if options.latents is not None else self._noise(request, generators)
        if request.windows is None:
            conditioning = conditioning.repeat(request.candidates)
        else:  # all sounds in one walk: a call of the network takes windows of one
            windows, at_once = InWindows(request.windows, request.shares(self.sound), at_once), len(noise)
        denoised = []
        for first in range(0, len(noise), at_once):
            begin("denoising")
            rows = slice(first, first + at_once)
            drawn = generator_noise(generators[rows])
            edited = partial(edit.denoise, given=given, rows=rows) if edit and given is not None else None
            encoded = conditioning if windows else conditioning[rows]
            z = self._denoise(encoded, noise[rows], options, drawn, None, on_step, edited, source, windows)
            denoised.append(z)
        return torch.cat(denoised)

    def _encode_request(
        self, request: Request, loa: Tensor | None
    ) -> tuple[Conditioning, tuple[Conditioning, SamplingOptions] | None]:
        """The prompts of a request with LOA of their sounds (prompts, vectors, dim), where there are any; of
        an edit by text also its source prompt, with how that guides.

        These are encoded together, so that equal texts have equal tensors. The negative prompt belongs to the
        result: the source prompt is guided away from "".
        """
        options, edit = request.options, request.edit
        texts, against, source = request.texts(), request.texts(negative=True), None
        if isinstance(edit, TextEdit):
            source = edit.options.source()
            texts, against = [*texts, edit.source_prompt], [*against, ""]
        if loa is not None:  # all texts of a timeline have the sound
            loa = loa[[prompt for prompt, timeline in enumerate(request.spans) for _ in timeline]]
        guided = options.guided or (source is not None and source.guided)
        encoded = self.encode_prompt(
            texts,
            against if guided else None,
            phonemes=request.phonemes,
            guided=guided,
            unconditional=options.unconditional,
            loa=loa,
            heard=None if loa is None else options.heard,
        )
        return (encoded, None) if source is None else (encoded[:-1], (encoded[-1], source))

    def _scores(self, request: Request, audio: Tensor) -> Tensor:
        """CLAP's cosine of each sound (sounds, samples) and its text, or its sound prompt where that is all
        there is; of a timeline, the mean over its parts.
        """
        tokenizer, rate, heard = self._require_clap(), self.sample_rate, request.heard_sounds
        timelines = [each for each in request.spans for _ in range(request.candidates)]
        texts, waves, counts = parts(timelines, audio, rate)
        alike = [row for row, text in enumerate(texts) if heard and not text.strip()]
        others = sorted(set(range(len(texts))) - set(alike))
        scores = torch.full((len(texts),), torch.nan, dtype=torch.float32, device="cpu")
        if others:
            read = [for_clap(texts[row], self.words) for row in others]
            of_texts = [waves[row] for row in others]
            scores[others], _ = clap_score.score_sounds(
                self.networks, tokenizer, self.clap_mel, read, of_texts, rate
            )
        if heard and alike:
            levelled = {each: each.normalized for each in dict.fromkeys(heard)}
            sounds = [levelled[each] for each in heard for _ in range(request.candidates)]
            like = [sound for sound, count in zip(sounds, counts, strict=True) for _ in range(count)]
            scores[alike] = clap_score.score_likeness(
                self.networks,
                self.clap_mel,
                [like[row] for row in alike],
                SAMPLE_RATE,
                [waves[row] for row in alike],
                rate,
            )
        return torch.stack([of_parts.mean() for of_parts in scores.split(counts)])

    def _noise(self, request: Request, generators: list[torch.Generator]) -> Tensor:
        """What each seed draws first, whatever PyTorch's default device and dtype."""
        shape = self.sound.latents(1, request.latent_frames)
        draws = [torch.randn(shape, generator=g, device="cpu", dtype=torch.float32) for g in generators]
        return torch.cat(draws)

    def _sounds_at_once(self, request: Request) -> int:
        name = "audio" if request.edit else "audio_length_in_s"
        return self._at_once(request.options, request.latent_frames, request.seconds, request.windows, name)

    def describe(self) -> dict[str, Any]:
        """What this model is, for the record beside a sound."""
        return {
            "model": self.source,
            "converted_from": self.origin,
            "revision": self.revision,
            "heads": list(self.networks.configs["unet"].heads),
            "device": str(self.device),
            "dtype": dtypes.describe(self.networks.dtypes),
            "dtype_chosen_because": self.dtype_comparison and str(self.dtype_comparison),
            "ops": self.networks.ops or ops.mode(),
            "adapters": self.describe_adapters(),
            "words": [each.describe() for each in self.words],
        }

    def __repr__(self) -> str:
        words = dtypes.describe(self.networks.dtypes)
        return f"<AudioLDM2 from {self.source or 'memory'}, {words} on {self.device}>"
