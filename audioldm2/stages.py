"""The stages of a loaded model, each a method.

encode_audio    waveform -> latent                    VAE encoder                   (encoding_stages.py)
encode_prompt   prompt   -> Conditioning              CLAP, T5, projection, GPT-2   (encoding_stages.py)
hear            waveform -> GPT-2's vectors           AudioMAE                      (encoding_stages.py)
denoise         noise    -> latent                    UNet under a sampler          (sampling/)
invert          latent   -> noise                     UNet under a sampler          (sampling/inversion.py)
decode          latent   -> log-mel spectrogram       VAE decoder                   (runtime/tiling.py)
vocode          log-mel  -> waveform                  HiFi-GAN                      (runtime/tiling.py)
score           waveform -> how well it fits          CLAP                          (clap_score.py)

`pipeline.AudioLDM2` calls them in order. More than a third of the file is docstrings: these methods are the
public face.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.denoiser import InWindows, make_denoiser, make_windowed_denoiser
from audioldm2.edit_options import InversionOptions
from audioldm2.editing.text_edit import first_step_left
from audioldm2.encoding_stages import EncodingStages, inference
from audioldm2.errors import ArgumentError, require_texts
from audioldm2.models.unet import GPT2, T5, UNet
from audioldm2.options import SamplingOptions, from_keywords, takes_options
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.tokenizers import ClapTokenizer
from audioldm2.prompt.words import for_clap
from audioldm2.runtime import looping, memory, tiling
from audioldm2.sampling.inversion import Inversion, invert, require_invertible
from audioldm2.sampling.samplers import SAMPLERS, Denoiser, Generators, Noise, generator_noise
from audioldm2.sampling.walk import fresh_noise
from audioldm2.sampling.windows import Windows, anchors

# Called with the step (from 1), its diffusion time and the estimate of the clean latent; False stops.
OnStep = Callable[[int, float, Tensor], object]


class Stages(EncodingStages):
    """The networks of a loaded model, and what each stage does with them."""

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
