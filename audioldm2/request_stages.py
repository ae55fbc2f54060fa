"""What each stage does for a request: all its prompts, candidates, windows, edits and sound prompts.

`pipeline.AudioLDM2` calls them in order; `stages.py` has the same stages for tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.audio import SAMPLE_RATE
from audioldm2.denoiser import InWindows
from audioldm2.editing.text_edit import TextEdit
from audioldm2.options import SamplingOptions
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.timeline import parts
from audioldm2.prompt.words import for_clap
from audioldm2.request import Request
from audioldm2.sampling.samplers import generator_noise
from audioldm2.sound_prompt import cut
from audioldm2.stages import OnStep, Stages


@dataclass(frozen=True, eq=False)
class EncodedRequest:
    """The prompts of a request, encoded; of an edit by text also its source prompt, and how that guides."""

    prompts: Conditioning
    source: tuple[Conditioning, SamplingOptions] | None = None


class RequestStages(Stages):
    """The stages of a loaded model for a `Request`."""

    def _with_cut_sound_prompts(self, request: Request) -> Request:
        """The request with the part of each sound prompt that AudioMAE reads. Raises as `generate` does."""
        if request.sound_prompts is None:
            return request
        heard = self.vectors_heard(request.options.heard)
        sounds = cut(request.sound_prompts, self.networks.configs["audiomae"])
        return replace(request, sound_prompts=sounds, options=replace(request.options, heard=heard))

    def _encode_request(self, request: Request, loa: Tensor | None) -> EncodedRequest:
        """The prompts of a request, with the LOA of their sounds (prompts, vectors, dim) where there is one.

        All texts are encoded together, so that equal texts have equal tensors. The negative prompt belongs to
        the result of an edit: its source prompt is guided away from "".
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
        if source is None:
            return EncodedRequest(encoded)
        return EncodedRequest(encoded[:-1], (encoded[-1], source))

    def _denoise_request(
        self,
        request: Request,
        encoded: EncodedRequest,
        given: Tensor | None,
        begin: Callable[[str], None],
        on_step: OnStep | None,
    ) -> Tensor:
        """Latents of all sounds, from noise or from the latent (1, ...) of a given sound, in slices."""
        options, edit, windows = request.options, request.edit, None
        conditioning, at_once = encoded.prompts, self._sounds_at_once(request)
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
            z = self._denoise(
                conditioning if windows else conditioning[rows],
                noise[rows],
                options,
                generator_noise(generators[rows]),
                t_start=None,
                on_step=on_step,
                edited=partial(edit.denoise, given=given, rows=rows) if edit and given is not None else None,
                source=encoded.source,
                windows=windows,
            )
            denoised.append(z)
        return torch.cat(denoised)

    def _noise(self, request: Request, generators: list[torch.Generator]) -> Tensor:
        """What each seed draws first, whatever PyTorch's default device and dtype."""
        shape = self.sound.latents(1, request.latent_frames)
        draws = [torch.randn(shape, generator=g, device="cpu", dtype=torch.float32) for g in generators]
        return torch.cat(draws)

    def _sounds_at_once(self, request: Request) -> int:
        """How many sounds fit into memory together. Raises ArgumentError where not even one does."""
        name = "audio" if request.edit else "audio_length_in_s"
        return self._at_once(request.options, request.latent_frames, request.seconds, request.windows, name)

    def _vocode_request(self, request: Request, mel: Tensor) -> Tensor:
        """Waveforms (sounds, samples) on the CPU, of the length that was asked for and, of an edit, at the
        level of the given sound.
        """
        audio = self.vocode(mel, loop=request.options.loop).float().cpu()
        if request.edit is not None:
            return request.edit.finish(audio)
        return audio if request.options.loop else audio[:, : self.sound.samples(request.seconds)]

    def _score_request(self, request: Request, audio: Tensor) -> Tensor:
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
