"""The stages of a loaded model, each a method.

encode_audio    waveform -> latent                    VAE encoder                   (editing/)
encode_prompt   prompt   -> Conditioning              CLAP, T5, projection, GPT-2   (prompt/encode.py)
denoise         noise    -> latent                    UNet under a sampler          (sampling/)
invert          latent   -> noise                     UNet under a sampler          (sampling/inversion.py)
decode          latent   -> log-mel spectrogram       VAE decoder                   (runtime/tiling.py)
vocode          log-mel  -> waveform                  HiFi-GAN                      (runtime/tiling.py)
score           waveform -> how well it fits          CLAP                          (clap_score.py)

`pipeline.AudioLDM2` calls them in order. More than a third of the file is docstrings: these methods are the
public face.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.audio import CLAP_MEL, DEFAULT_SECONDS, MelSettings
from audioldm2.denoiser import InWindows, make_denoiser, make_windowed_denoiser
from audioldm2.edit_options import InversionOptions
from audioldm2.editing.input_sound import log_mels
from audioldm2.editing.text_edit import first_step_left
from audioldm2.errors import ArgumentError, require_texts
from audioldm2.models.unet import GPT2, T5, UNet
from audioldm2.options import (
    SamplingOptions,
    for_each,
    from_keywords,
    negatives,
    require_one,
    require_unconditional,
    takes_options,
)
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import encode
from audioldm2.prompt.phonemes import PhonemeTokenizer
from audioldm2.prompt.pronunciation import pronounce
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.prompt.words import Word, for_clap
from audioldm2.runtime import dtypes, looping, memory, tiling
from audioldm2.runtime.placement import Networks
from audioldm2.sampling.inversion import Inversion, invert, require_invertible
from audioldm2.sampling.samplers import SAMPLERS, Denoiser, Generators, Noise, generator_noise
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.walk import fresh_noise
from audioldm2.sampling.windows import Windows, anchors
from audioldm2.sound_shape import SoundShape

# Called with the step (from 1), its diffusion time and the estimate of the clean latent; False stops.
OnStep = Callable[[int, float, Tensor], object]


def inference(method: Callable) -> Callable:
    """No gradients, and no autocast that a caller has around it: dtypes are those that `load` chose."""

    @functools.wraps(method)
    def run(self: "Stages", *args: Any, **named: Any) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **named)

    return run


class Stages:
    """The networks of a loaded model, and what each stage does with them."""

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
    ) -> Conditioning:
        """Encode prompts for the denoiser, each with its negative prompt unless `guided` is False.

        Args:
            prompt: a text or a list of texts.
            negative_prompt: one for all prompts, or one per prompt; None means "".
            transcription: of a speech model: what the voice says, one for all prompts, or one per prompt.
            phonemes: the same as phonemes, in place of a transcription.
            unconditional: how an empty negative prompt is encoded, "reference" or "trained" (see
                `prompt.encode`); by default as the model was trained here, else "reference".

        Raises:
            ArgumentError: an argument is not allowed, among them a transcription for a model that cannot
                speak, and none for one that does; raised before any network runs.
        """
        unconditional = require_unconditional("unconditional", unconditional) or self.unconditional
        prompts = require_texts("prompt", prompt)
        against = negatives(negative_prompt, len(prompts)) if guided else None
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
        return [pronounce(each, self.pronunciations) for each in found]

    @takes_options(SamplingOptions)
    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        *,
        options: SamplingOptions | None = None,
        generator: Generators | None = None,
        noise: Noise | None = None,
        t_start: float | None = None,
        on_step: OnStep | None = None,
        **keywords: Any,
    ) -> Tensor:
        """Denoise latents into clean ones.

        Args:
            conditioning: encoded prompts. Guidance (a scale above 1) requires their negative part.
            latents: noise (batch, channels, time, mel); the batch is a multiple of the conditioning's, and
                the rows of each prompt stand together.
            options: the options below in one object; keywords replace some of them.
            generator: noise of stochastic samplers: one for the batch, or one per row.
            noise: a callable noise(x, step) in place of the generator.
            t_start: start midway: skip the steps at times above it. `latents` are then those of the first
                time left, sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (see `sampling.samplers.times`).
            on_step: as in `generate`.
            {options}

        Returns:
            Clean latents, float32 (batch, channels, time, mel).

        Raises:
            ArgumentError: an argument is not allowed; raised before the network runs.
        """
        chosen = from_keywords(SamplingOptions, options, keywords)
        conditioning, windows = self._fitting(conditioning, latents, chosen)
        noise = generator_noise(generator) if noise is None and generator is not None else noise
        return self._denoise(conditioning, latents, chosen, noise, t_start, on_step, windows=windows)

    @inference
    @takes_options(InversionOptions)
    def invert(
        self,
        latents: Tensor,
        conditioning: Conditioning,
        *,
        options: InversionOptions | None = None,
        generator: Generators | None = None,
        noise: Noise | None = None,
        **keywords: Any,
    ) -> Inversion:
        """Recover the noise with which `denoise` ends at given latents (edit-friendly DDPM inversion).

        With the same sampler, steps and eta, this is an edit under another prompt, and the latents again
        under the same prompt and scale:

            model.denoise(conditioning, inversion.x, t_start=inversion.t_start, noise=inversion.noise, ...)
            + inversion.residual

        Args:
            latents: clean latents (batch, channels, time, mel), as `encode_audio` returns them; the batch is
                a multiple of the conditioning's, and the rows of each prompt stand together.
            conditioning: the encoded source prompts.
            options: the options below in one object; keywords replace some of them.
            generator: draws the noise of the path: one for the batch, or one per row.
            noise: a callable noise(z, step) in place of the generator.
            {options}

        Returns:
            See `sampling.inversion.Inversion`.

        Raises:
            ArgumentError: an argument is not allowed; raised before the network runs.
        """
        chosen = from_keywords(InversionOptions, options, keywords)
        conditioning, windows = self._fitting(conditioning, latents, chosen)
        walk = chosen.walk(self.schedule)
        first = first_step_left(walk, chosen.skip)
        require_invertible(walk)
        noise = generator_noise(generator) if noise is None and generator is not None else noise
        with self.networks.running("unet") as unet:
            conditioning = conditioning.to(self.device, self.networks.dtypes["unet"])
            latents = latents.to(self.device, torch.float32)
            denoiser, _ = self._denoiser(unet, conditioning, chosen, latents, None, windows)
            return invert(denoiser, latents, walk, noise or fresh_noise(), first=first)

    @inference
    def _denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        options: SamplingOptions,
        noise: Noise | None,
        t_start: float | None,
        on_step: OnStep | None,
        edited: Callable[..., Tensor] | None = None,
        source: tuple[Conditioning, SamplingOptions] | None = None,
        windows: InWindows | None = None,
    ) -> Tensor:
        with self.networks.running("unet") as unet:
            conditioning = conditioning.to(self.device, self.networks.dtypes["unet"])
            latents = latents.to(self.device, torch.float32)
            denoiser, noise = self._denoiser(unet, conditioning, options, latents, noise, windows)
            if edited is not None and source is not None:
                rows, scale = source
                rows = rows.repeat(len(windows.shares) if windows else len(latents))
                rows = rows.to(self.device, self.networks.dtypes["unet"])
                explained, _ = self._denoiser(unet, rows, scale, latents, None, windows)
                edited = partial(edited, source=explained)
            if edited is not None:
                return edited(denoiser, latents, step_noise=noise, on_step=on_step)
            return SAMPLERS[options.sampler](
                denoiser,
                latents,
                self.schedule,
                options.num_inference_steps,
                eta=options.eta,
                karras=options.karras,
                noise=noise,
                t_start=t_start,
                on_step=on_step,
            )

    def _denoiser(
        self,
        unet: UNet,
        conditioning: Conditioning,
        options: SamplingOptions,
        latents: Tensor,
        noise: Noise | None,
        windows: InWindows | None,
    ) -> tuple[Denoiser, Noise | None]:
        """The denoiser of whole sounds or in windows, and the noise of its steps."""
        if windows is None:
            return make_denoiser(unet, conditioning, self.schedule, options), noise
        return make_windowed_denoiser(unet, conditioning, self.schedule, options, windows, latents, noise)

    @inference
    def decode(self, z: Tensor, *, loop: bool = False) -> Tensor:
        """Log-mel spectrograms (batch, time, mels) of clean latents (batch, channels, time, mel).

        loop: the first frame follows the last one.
        """
        self.sound.require_map("z", z)
        with self.networks.running("vae") as vae:
            z = z.to(self.device, self.networks.dtypes["vae"])
            return (looping.decode_loop(vae, z, anchors(z)) if loop else tiling.decode(vae, z)).squeeze(1)

    @inference
    def vocode(self, mel: Tensor, *, loop: bool = False) -> Tensor:
        """Waveforms (batch, samples) in [-1, 1] of log-mel spectrograms (batch, time, mels).

        loop: the first frame follows the last one; samples are then a whole number of frames.
        """
        self.sound.require_map("mel", mel)
        with self.networks.running("hifigan") as vocoder:
            mel = mel.to(self.device, self.networks.dtypes["hifigan"])
            return looping.vocode_loop(vocoder, mel) if loop else tiling.vocode(vocoder, mel)

    @inference
    def score(self, text: str | Sequence[str], audio: Any, sample_rate: int | None = None) -> Tensor:
        """How well sounds fit texts: CLAP's cosine of each sound and its text, -1 to 1.

        Args:
            text: one for all sounds, or one per sound.
            audio: floats (samples,) or (sounds, samples), a tensor or an array, or a list of sounds. CLAP
                reads clips over 10 s in windows that cover all of them (see `clap_score`).
            sample_rate: of the audio, Hz; by default the model's own.

        Returns:
            float32 (sounds,).

        Raises:
            ArgumentError: an argument is not allowed; a sound without samples, or with NaN, is named by its
                row.
        """
        tokenizer = self._require_clap()
        rate = self.sample_rate if sample_rate is None else sample_rate
        read = [for_clap(each, self.words) for each in require_texts("text", text)]
        texts = read[0] if isinstance(text, str) else read
        return clap_score.score(self.networks, tokenizer, self.clap_mel, texts, audio, rate)

    def _fitting(
        self, conditioning: Conditioning, latents: Tensor, options: SamplingOptions
    ) -> tuple[Conditioning, InWindows | None]:
        """The conditioning with a row for each latent, or for each sound with the windows that share it.

        Raises ArgumentError where arguments do not fit.
        """
        options.check_schedule(self.schedule)
        self.sound.require_latents(latents, len(conditioning))
        self._require_widths(conditioning)
        if options.guided and conditioning.negative is None:
            wanted = "have one for a guidance_scale above 1: make it with encode_prompt(..., guided=True)"
            raise ArgumentError("conditioning", conditioning, wanted, given="has no negative part")
        windows = self.sound.windows(options, latents.shape[2])
        if windows.whole:
            return conditioning.repeat(latents.shape[0] // len(conditioning)), None
        at_once = self._at_once(options, windows.frames, self.sound.seconds(windows.frames), windows)
        return conditioning, InWindows.by_one_prompt(windows, len(conditioning), at_once)

    def _require_widths(self, conditioning: Conditioning) -> None:
        """Conditioning may come from a file, and so from another model."""
        config = self.networks.configs["unet"]
        wanted = {"clap_vector": config.film_dim}
        wanted |= {"gpt2_context": config.gpt2_dim} if GPT2 in config.roles else {}
        wanted |= {"text_context": config.t5_dim} if T5 in config.roles else {}
        for part in filter(None, (conditioning, conditioning.negative)):
            given = {name: each.shape[-1] for name, each in part.tensors.items() if name != "t5_mask"}
            if any(width and given.get(name) != width for name, width in wanted.items()):
                allowed = f"have {_widths(wanted)}: make it with this model's encode_prompt"
                raise ArgumentError("conditioning", conditioning, allowed, given=f"has {_widths(given)}")

    def _require_clap(self) -> ClapTokenizer:
        """CLAP's tokenizer, of a model that can score sounds; an error for another."""
        absent = sorted({"clap_text", "clap_audio"} - self.networks.configs.keys())
        if absent or self.clap_tokenizer is None:
            absent = absent or ["clap_tokenizer"]
            raise ValueError(
                f"sounds cannot be scored with {self.source or 'this model'}: it has no {absent[0]}. "
                "Ask for one waveform a prompt."
            )
        clap_score.require_front_end(
            self.networks.configs["clap_audio"], self.clap_mel, self.source or "this model"
        )
        return self.clap_tokenizer

    def _at_once(
        self,
        options: SamplingOptions,
        frames: int,
        seconds: float,
        windows: Windows | None,
        name: str = "audio_length_in_s",
    ) -> int:
        """How many sounds, or windows of one sound, a call of the network denoises.

        Raises ArgumentError, which names the argument that decides the length, where not even one fits.
        """
        needed = memory.bytes_for_one_sound(
            self.networks.configs["unet"],
            frames if windows is None else windows.length,
            self.sound.mels // self.sound.downsampling,
            options.guided,
            self.networks.dtypes["unet"],
        )
        if windows is None:
            return memory.sounds_at_once(needed, self.device, seconds, name)
        name = name if options.window_seconds is None else "window_seconds"
        return memory.windows_at_once(needed, self.device, self.sound.seconds(windows.length), name)


def _widths(dims: dict[str, int]) -> str:
    return ", ".join(f"{name} {dim} wide" for name, dim in dims.items() if dim)
