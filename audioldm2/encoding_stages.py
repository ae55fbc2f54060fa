"""The stages of a loaded model that encode what a caller gives it, each a method.

encode_audio    waveform -> latent             VAE encoder                   (editing/input_sound.py)
encode_prompt   prompt   -> Conditioning       CLAP, T5, projection, GPT-2   (prompt/encode.py)
hear            waveform -> GPT-2's vectors    AudioMAE                      (language_of_audio.py)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import CLAP_MEL, DEFAULT_SECONDS, MelSettings
from audioldm2.editing.input_sound import log_mels
from audioldm2.errors import ArgumentError, require_texts, require_whole
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.models.unet import GPT2, T5
from audioldm2.options import for_each, negatives, require_one, require_unconditional
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import encode
from audioldm2.prompt.openings import openings
from audioldm2.prompt.phonemes import PhonemeTokenizer
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.prompt.words import Word
from audioldm2.runtime import dtypes, memory
from audioldm2.runtime.placement import Networks
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape


def inference(method: Callable) -> Callable:
    """No gradients, and no autocast that a caller has around it: dtypes are those that `load` chose."""

    @functools.wraps(method)
    def run(self: "EncodingStages", *args: Any, **named: Any) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **named)

    return run


class EncodingStages:
    """The networks of a loaded model, with their tokenizers, and what they encode."""

    words: tuple[Word, ...] = ()  # new ones, which prompts may contain

    def __init__(
        self,
        networks: Networks,
        clap_tokenizer: ClapTokenizer | None,
        t5_tokenizer: T5Tokenizer | None,
        schedule: NoiseSchedule,
        clap_mel: MelSettings = CLAP_MEL,
        source: str = "",
        origin: str = "",
        revision: str | None = None,
        default_seconds: float = DEFAULT_SECONDS,
        unconditional: str = "reference",
        dtype_comparison: dtypes.Comparison | None = None,
        phoneme_tokenizer: PhonemeTokenizer | None = None,
        pronunciations: Mapping[str, str] | None = None,
    ):
        vae, vocoder = networks.configs["vae"], networks.configs["hifigan"]
        self.networks = networks
        self.clap_tokenizer = clap_tokenizer
        self.t5_tokenizer = t5_tokenizer
        self.phoneme_tokenizer = phoneme_tokenizer  # of a speech model
        self.pronunciations = pronunciations  # word -> phonemes, where the model has a list of its own
        self.schedule = schedule
        self.clap_mel = clap_mel  # the front end of CLAP's audio branch
        self.source = source  # what it was loaded from
        self.origin, self.revision = origin, revision  # what that was converted from
        self.unconditional = unconditional  # how it encodes an empty negative prompt, unless a request says
        self.dtype_comparison = dtype_comparison  # what decided dtype="auto"
        self.sound = SoundShape(
            vocoder.sample_rate,
            vocoder.hop,
            vae.downsampling,
            vae.latent_channels,
            vocoder.mels,
            default_seconds,
        )

    @property
    def sample_rate(self) -> int:
        """Of the sounds that the model generates, Hz."""
        return self.sound.sample_rate

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.networks.device

    @property
    def speaks(self) -> bool:
        """Whether it is a speech model, which speaks a transcription in the voice that a prompt describes."""
        return self.phoneme_tokenizer is not None

    @property
    def hears(self) -> bool:
        """Whether it has an AudioMAE, and so takes a sound as a prompt."""
        return "audiomae" in self.networks.configs

    @inference
    def encode_audio(self, wave: Any, sample_rate: int | None = None) -> Tensor:
        """Encode sounds as latents: what `decode` and `vocode` turn into sounds again.

        Each sound loses its mean and is scaled to a peak of 0.5, as in training. Silence fills the last
        latent frame. The latent is the mean of the posterior, so the same sound gives the same latent. The
        encoder sees each sound whole, in memory that grows with its length.

        Args:
            wave: floats (samples,) or (sounds, samples), a tensor or an array, at any level.
            sample_rate: of the wave, Hz; by default the model's own. Other rates are resampled.

        Returns:
            float32 (sounds, channels, time, mel), on the model's device.

        Raises:
            ArgumentError: a sound is silent, empty or not finite, or the wave has another shape.
        """
        return self._encode(log_mels(wave, sample_rate, self.sound), "wave")

    def _encode(self, mel: Tensor, name: str) -> Tensor:
        """Latents of log-mel spectrograms (batch, 1, time, mels), one row after the other.

        name: the argument that holds the sound, for the message where it is too long for the memory.
        """
        frames, mels = mel.shape[2:]
        config, dtype = self.networks.configs["vae"], self.networks.dtypes["vae"]
        seconds = frames * self.sound.hop / self.sample_rate
        needed = memory.bytes_to_encode(config, frames, mels, dtype)
        memory.require_to_fit(needed, self.device, seconds, name)
        with self.networks.running("vae") as vae:
            mel = mel.to(self.device, self.networks.dtypes["vae"])
            return torch.cat([vae.encode(row)[0].float() for row in mel.split(1)])

    @inference
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        transcription: str | Sequence[str] | None = None,
        phonemes: str | Sequence[str] | None = None,
        *,
        guided: bool = True,
        unconditional: str | None = None,
        loa: Tensor | None = None,
        heard: int | None = None,
    ) -> Conditioning:
        """Encode prompts for the denoiser, each with its negative prompt unless `guided` is False.

        Args:
            prompt: a text or a list of texts.
            negative_prompt: one for all prompts, or one per prompt; None means "".
            transcription: of a speech model: what the voice says, one for all prompts, or one per prompt.
            phonemes: the same as phonemes, in place of a transcription.
            unconditional: how an empty negative prompt is encoded, "reference" or "trained" (see
                `prompt.encode`); by default as the model was trained here, else "reference".
            loa: a sound as `hear` returns it, (1, 8, 768) for all prompts or (prompts, 8, 768), in place of
                GPT-2's vectors. The denoiser reads the prompt's text beside it.
            heard: how many of these vectors count, from the start; GPT-2 continues them. By default all.

        Raises:
            ArgumentError: an argument is not allowed, among them a transcription for a model that cannot
                speak, and none for one that does; raised before any network runs.
        """
        unconditional = require_unconditional("unconditional", unconditional) or self.unconditional
        prompts = require_texts("prompt", prompt)
        against = negatives(negative_prompt, len(prompts)) if guided else None
        configs = self.networks.configs
        gpt2 = configs["gpt2"] if GPT2 in configs["unet"].roles else None
        given = openings(loa, heard, len(prompts), gpt2)
        spoken = self.spoken(len(prompts), transcription, phonemes)
        ids = None
        if self.phoneme_tokenizer is not None and spoken is not None:
            ids = [self.phoneme_tokenizer.encode(each) for each in spoken]
        return encode(
            self.networks,
            self.clap_tokenizer,
            self.t5_tokenizer,
            prompts,
            against,
            unconditional=unconditional,
            words=self.words,
            phonemes=ids,
            openings=given,
        )

    def spoken(
        self,
        prompts: int,
        transcription: str | Sequence[str] | None = None,
        phonemes: str | Sequence[str] | None = None,
    ) -> list[str] | None:
        """The phonemes that each prompt's voice speaks; None for a model that cannot speak.

        Args:
            prompts: how many there are.
            transcription: one for all prompts, or one per prompt.
            phonemes: the same as phonemes; one of both has to be given, to a speech model alone.

        Raises:
            ArgumentError: none or both are given to a speech model, or one to another model.
        """
        require_one(transcription, phonemes)
        name, given = ("phonemes", phonemes) if transcription is None else ("transcription", transcription)
        who = self.source or "this model"
        if self.speaks and given is None:
            allowed = f"be the words to speak (or phonemes, the same in IPA): {who} is a speech model"
            raise ArgumentError("transcription", None, allowed, given="is missing")
        if not self.speaks and given is not None:
            raise ArgumentError(name, given, f"be left out: {who} is not a speech model")
        found = for_each(name, given, prompts)
        if found is None or transcription is None:
            return found
        from audioldm2.prompt.pronunciation import pronounce  # here, since few models speak

        return [pronounce(each, self.pronunciations) for each in found]

    def pronounced_by(self, transcriptions: Sequence[str]) -> list[str]:
        """What `spoken` takes the phonemes of each transcription from: "table", or espeak and its version."""
        if not transcriptions:
            return []
        from audioldm2.prompt.pronunciation import pronounced_by

        return [pronounced_by(each, self.pronunciations) for each in transcriptions]

    @inference
    def hear(self, wave: Any, sample_rate: int | None = None) -> Tensor:
        """Compute the language of audio (LOA) of sounds: vectors like those that GPT-2 writes for a prompt.

        AudioMAE reads 10.24 s. It is loaded at the first call.

        Args:
            wave: floats (samples,) or (sounds, samples), a tensor or an array, at any level; or a list of
                sounds. Each sounds the same alone and in a batch.
            sample_rate: of the wave, Hz; by default the model's own. Other rates are resampled.

        Returns:
            float32 (sounds, 8, 768) in the published models, on the model's device: a vector for each 1.28 s.

        Raises:
            ArgumentError: a sound is silent, empty or not finite, or the wave has another shape.
            ValueError: the model has no AudioMAE.

        Warns (TruncationWarning) of a sound that is longer than AudioMAE reads.
        """
        from audioldm2 import language_of_audio  # here, since few requests hear a sound

        self._require_audiomae()
        rate = self.sample_rate if sample_rate is None else sample_rate
        return language_of_audio.hear(self.networks, wave, rate)

    def vectors_heard(self, heard: int | None = None) -> int:
        """How many of GPT-2's vectors a sound prompt replaces: `heard`, or all of them by default.

        A speech model has to write some of them: the denoiser finds the words nowhere else.

        Raises:
            ArgumentError: there are fewer, or none is left for the words.
            ValueError: the model has no AudioMAE.
        """
        self._require_audiomae()
        vectors = self.networks.configs["gpt2"].new_vectors
        found = vectors if heard is None else require_whole("heard", heard, 0, vectors)
        if found == vectors and self.speaks and T5 not in self.networks.configs["unet"].roles:
            allowed = f"be from 0 to {vectors - 1}: a speech model speaks the words in the other vectors"
            raise ArgumentError("heard", found, allowed, given=f"is {found}, all vectors of GPT-2")
        return found

    def _require_audiomae(self) -> None:
        """Raise ValueError, which says what to do, for a model that cannot read a sound as a prompt."""
        name, configs = self.source or "this model", self.networks.configs
        if self.hears:
            return
        if "gpt2" not in configs:
            raise ValueError(f"{name} has no GPT-2, so a sound cannot take the place of GPT-2's vectors.")
        if configs["gpt2"].dim == AudioMAEConfig.dim:
            way = (
                "Original files have it, and "
                f"'audioldm2 convert {name} OUT --audiomae audioldm2-full.pth' adds it to another model."
            )
        else:
            way = f"'audioldm2 train --stage audiomae --model {name}' trains one for its GPT-2."
        raise ValueError(f"{name} has no AudioMAE, which reads a sound as a prompt. {way}")
