"""A prompt to a waveform, and a sound to another: `generate` and `edit` call the stages in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from audioldm2 import language_of_audio, ops
from audioldm2.adapters.model import Adaptable
from audioldm2.edit_options import EditOptions, edit_options
from audioldm2.encoding_stages import inference
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions, from_keywords, takes_options
from audioldm2.request import Request
from audioldm2.request_stages import RequestStages
from audioldm2.result import Result
from audioldm2.runtime import dtypes, memory
from audioldm2.stages import OnStep


class AudioLDM2(Adaptable, RequestStages):
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
        request = self._with_cut_sound_prompts(replace(request, phonemes=spoken, pronounced_by=by))
        return self._run(request, on_step, on_stage)

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
        return self._run(request, on_step, on_stage)

    def _run(
        self, request: Request, on_step: OnStep | None, on_stage: Callable[[str], object] | None
    ) -> Result:
        """The stages of a request, in order."""
        self = self.as_it_is_now()  # adapters that are loaded meanwhile are for the next request
        own = request.options.unconditional or self.unconditional
        request = replace(request, options=replace(request.options, unconditional=own))
        if request.candidates > 1:
            self._require_clap()
        if request.denoises:
            self._sounds_at_once(request)  # a sound that is too long is refused before any network runs

        def begin(stage: str) -> None:
            memory.trim_heap()  # what the stage before has left
            if on_stage is not None:
                on_stage(stage)

        given = loa = scores = None
        if request.edit is not None:
            begin("encoding the sound")
            given = self._encode(request.edit.log_mel(), "audio")
        if given is None or request.denoises:
            if request.heard_sounds is not None:
                begin("hearing the sound")
                loa = language_of_audio.loa_of(self.networks, request.heard_sounds)
            begin("encoding the prompt")
            encoded = self._encode_request(request, loa)
            z = self._denoise_request(request, encoded, given, begin, on_step)
        else:  # an edit of strength 0
            z = given.repeat(request.sounds, 1, 1, 1)
        begin("decoding")
        mel = self.decode(z, loop=request.options.loop)
        begin("vocoding")
        audio = self._vocode_request(request, mel)
        if request.candidates > 1:
            begin("ranking")
            scores = self._score_request(request, audio)
        return Result.ranked(audio, z, mel, scores, self.sample_rate, request, self.describe())

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
