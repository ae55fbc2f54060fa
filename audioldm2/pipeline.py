"""A prompt to a waveform: five stages, each a method, and `generate`, which calls them in turn.

encode_prompt   prompt   -> Conditioning              CLAP, T5, projection, GPT-2   (encoding.py)
denoise         noise    -> latent                    UNet under a sampler          (guidance.py, samplers.py)
decode          latent   -> log-mel spectrogram       VAE decoder
vocode          log-mel  -> waveform                  HiFi-GAN
rank            waveform -> scores, best first        CLAP                          (clap_score.py)

A third of it is the docstrings of the public face.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.audio import CLAP_MEL, USUAL_SECONDS, MelSettings
from audioldm2.models.unet import GPT2, T5
from audioldm2.options import Request, SoundShape, check_denoising, check_noise, negatives, texts, whole
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import encode
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.result import Result
from audioldm2.runtime import dtypes, memory
from audioldm2.runtime.placement import Networks
from audioldm2.runtime.remembered import remembering
from audioldm2.runtime.tiling import decode_in_pieces, vocode_in_pieces
from audioldm2.sampling.guidance import guided
from audioldm2.sampling.samplers import SAMPLERS, Generators, generator_noise
from audioldm2.sampling.schedule import NoiseSchedule

# Called with the step (from 1), its diffusion time and the estimate of the clean latent; False stops.
OnStep = Callable[[int, float, Tensor], object]


class AudioLDM2:
    """A loaded model. Make one with `audioldm2.load`."""

    def __init__(
        self,
        networks: Networks,
        clap_tokenizer: ClapTokenizer | None,
        t5_tokenizer: T5Tokenizer | None,
        schedule: NoiseSchedule,
        hearing: MelSettings = CLAP_MEL,
        source: str = "",
        origin: str = "",
        revision: str | None = None,
        usual_seconds: float = USUAL_SECONDS,
    ):
        vae, vocoder = networks.configs["vae"], networks.configs["hifigan"]
        self.networks = networks
        self.clap_tokenizer = clap_tokenizer
        self.t5_tokenizer = t5_tokenizer
        self.schedule = schedule
        self.hearing = hearing  # of CLAP's audio branch
        self.source = source  # what it was loaded from
        self.origin, self.revision = origin, revision  # what that was converted from
        self.sound = SoundShape(
            vocoder.sample_rate,
            vocoder.hop,
            vae.downsampling,
            vae.latent_channels,
            vocoder.mels,
            usual_seconds,
        )

    @property
    def sample_rate(self) -> int:
        """Samples a second of what the model makes, Hz."""
        return self.sound.sample_rate

    @property
    def device(self) -> torch.device:
        return self.networks.device

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.5,
        num_waveforms_per_prompt: int = 1,
        sampler: str = "dpmpp_2m",
        eta: float = 0.0,
        karras: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = 0,
        latents: Tensor | None = None,
        on_step: OnStep | None = None,
        on_stage: Callable[[str], object] | None = None,
    ) -> Result:
        """Make sounds from prompts.

        prompt:            a text or a list of texts.
        negative_prompt:   what guidance leads away from: one text for all, or one a prompt; none means "".
        audio_length_in_s: seconds; default: the length of `latents` where given, else the model's own (10).
        guidance_scale:    how strongly the prompt is followed; up to 1, guidance is off.
        guidance_interval: guide only where lo < sigma <= hi, sigma being noise over signal
                           (Kynkaanniemi et al. 2024).
        guidance_rescale:  0 to 1, how far guidance keeps the spread of the prediction (Lin et al. 2023).
        num_waveforms_per_prompt: candidates; more than one are ranked by CLAP among themselves, best first.
        sampler:           a name from `audioldm2.SAMPLERS`.
        eta:               noise of the DDIM sampler, 0 to 1.
        karras:            space the noise levels as Karras et al. 2022 do.
        seed:              one for all prompts or one a prompt; candidate i is drawn from seed + i, so a sound
                           is the same alone and in any batch. None draws one, told in `result.seeds`.
        latents:           starting noise (prompts * waveforms, channels, time, mel) in place of the seed's.
        on_step:           called as on_step(step, t, x0) after each step; returning False stops and keeps x0.
        on_stage:          called with the name of each stage as it begins. More sounds than fit into memory
                           at once are denoised in slices; each begins the stage and counts its steps anew.

        Raises ValueError on an argument that cannot be met, before any network runs.
        """
        request = Request.check(
            self.sound,
            self.schedule,
            prompt=prompt,
            negative_prompt=negative_prompt,
            audio_length_in_s=audio_length_in_s,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            sampler=sampler,
            eta=eta,
            karras=karras,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            seed=seed,
            latents=latents,
        )
        if request.candidates > 1:
            self._check_hearing()

        def begin(stage: str) -> None:
            memory.give_back()  # what the stage before has left
            if on_stage is not None:
                on_stage(stage)

        at_once = self._sounds_at_once(request)

        begin("encoding the prompt")
        conditioning = self.encode_prompt(
            request.prompts, request.negative_prompts if request.guided else None, guided=request.guided
        )
        conditioning = conditioning.repeat(request.candidates)
        generators = request.generators()
        noise = request.latents
        if noise is None:
            shape = self.sound.latents(1, request.latent_frames)
            noise = torch.cat(  # the same whatever PyTorch's default device and dtype
                [torch.randn(shape, generator=g, device="cpu", dtype=torch.float32) for g in generators]
            )

        denoised = []
        for first in range(0, len(noise), at_once):
            begin("denoising")
            rows = slice(first, first + at_once)
            z = self.denoise(
                conditioning[rows],
                noise[rows],
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                sampler=request.sampler,
                eta=request.eta,
                karras=request.karras,
                guidance_interval=request.guidance_interval,
                guidance_rescale=request.guidance_rescale,
                generator=generators[rows],
                on_step=on_step,
            )
            denoised.append(z)
        z = torch.cat(denoised)
        begin("decoding")
        mel = self.decode(z)
        begin("vocoding")
        audio = self.vocode(mel)[:, : self.sound.samples(request.seconds)]

        audio = audio.float().cpu()
        scores = None
        if request.candidates > 1:
            begin("ranking")
            scores = self.score([text for text in request.prompts for _ in range(request.candidates)], audio)
        return Result.ranked(audio, z, mel, scores, self.sample_rate, request, self.describe())

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        guided: bool = True,
    ) -> Conditioning:
        """What the denoiser is told about each prompt, and its negative prompt unless `guided` is False."""
        prompts = texts("prompt", prompt)
        against = negatives(negative_prompt, len(prompts)) if guided else None
        return encode(self.networks, self.clap_tokenizer, self.t5_tokenizer, prompts, against)

    @torch.no_grad()
    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.5,
        sampler: str = "dpmpp_2m",
        eta: float = 0.0,
        karras: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        generator: Generators | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Clean latents, float32, of noise (batch, channels, time, mel).

        The batch is a multiple of the conditioning's; each prompt's rows stand together. A guidance scale
        above 1 needs `conditioning.negative`. generator: the noise of stochastic samplers; one for the batch
        or one a row.
        """
        check_denoising(
            self.schedule,
            num_inference_steps,
            sampler,
            eta,
            karras,
            guidance_scale,
            guidance_interval,
            guidance_rescale,
        )
        check_noise(latents, self.sound, len(conditioning))
        self._check_widths(conditioning)
        conditioning = conditioning.repeat(latents.shape[0] // len(conditioning))
        with self.networks.running("unet") as unet, remembering(unet):
            conditioning = conditioning.to(self.device, self.networks.dtypes["unet"])
            denoiser = guided(
                unet, conditioning, self.schedule, guidance_scale, guidance_interval, guidance_rescale
            )
            return SAMPLERS[sampler](
                denoiser,
                latents.to(self.device, torch.float32),
                self.schedule,
                int(num_inference_steps),
                eta=eta,
                karras=karras,
                noise=None if generator is None else generator_noise(generator),
                on_step=on_step,
            )

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Log-mel spectrograms (batch, time, mels) of clean latents (batch, channels, time, mel)."""
        with self.networks.running("vae") as vae:
            return decode_in_pieces(vae, z.to(self.device, self.networks.dtypes["vae"])).squeeze(1)

    @torch.no_grad()
    def vocode(self, mel: Tensor) -> Tensor:
        """Waveforms (batch, samples) in [-1, 1] of log-mel spectrograms (batch, time, mels)."""
        with self.networks.running("hifigan") as vocoder:
            return vocode_in_pieces(vocoder, mel.to(self.device, self.networks.dtypes["hifigan"]))

    def score(self, text: str | Sequence[str], audio: Tensor, sample_rate: int | None = None) -> Tensor:
        """How well sounds fit texts: CLAP's cosine of each sound and its text, float32 (sounds,), -1 to 1.

        text: one for all sounds or one a sound. audio: (samples,) or (sounds, samples), at `sample_rate`
        (default: the model's own). Clips over 10 s are heard whole, in windows (see `ranking`).
        """
        self._check_hearing()
        if audio.ndim not in (1, 2) or not audio.is_floating_point() or not audio.numel():
            raise ValueError(
                f"audio is {audio.dtype} {tuple(audio.shape)}; it has to be floats in [-1, 1], (samples,) or "
                "(sounds, samples), with one sample or more."
            )
        audio = audio[None] if audio.ndim == 1 else audio
        rate = self.sample_rate if sample_rate is None else whole("sample_rate", sample_rate, 1)
        wanted = texts("text", text)
        if len(wanted) not in (1, len(audio)):
            raise ValueError(
                f"text has {len(wanted)} entries for {len(audio)} sounds; give one for each, or one for all."
            )
        wanted = wanted * len(audio) if len(wanted) == 1 else wanted
        return clap_score.score(self.networks, self.clap_tokenizer, self.hearing, wanted, audio, rate)

    def _check_widths(self, conditioning: Conditioning) -> None:
        """Conditioning may come from a file, and so from another model."""
        config = self.networks.configs["unet"]
        wanted = {"clap_vector": config.film_dim}
        wanted |= {"gpt2_context": config.gpt2_dim} if GPT2 in config.roles else {}
        wanted |= {"text_context": config.t5_dim} if T5 in config.roles else {}
        for part in filter(None, (conditioning, conditioning.negative)):
            given = {name: each.shape[-1] for name, each in part.tensors.items() if name != "t5_mask"}
            for name, width in wanted.items():
                if width and given.get(name) != width:
                    raise ValueError(
                        f"conditioning has {_widths(given)}; this model needs {_widths(wanted)}. "
                        "Make it with this model's encode_prompt."
                    )

    def _check_hearing(self) -> None:
        absent = {"clap_text", "clap_audio"} - self.networks.configs.keys()
        if absent:
            raise ValueError(
                f"sounds cannot be scored with {self.source or 'this model'}: it has no {sorted(absent)[0]}. "
                "Ask for one waveform a prompt."
            )
        clap_score.require_front_end(
            self.networks.configs["clap_audio"], self.hearing, self.source or "this model"
        )

    def _sounds_at_once(self, request: Request) -> int:
        needed = memory.bytes_for_one_sound(
            self.networks.configs["unet"],
            request.latent_frames,
            self.sound.mels // self.sound.downsampling,
            request.guided,
            self.networks.dtypes["unet"],
        )
        return memory.sounds_at_once(needed, self.device, request.seconds)

    def __repr__(self) -> str:
        words = dtypes.describe(self.networks.dtypes)
        return f"<AudioLDM2 from {self.source or 'memory'}, {words} on {self.device}>"

    def describe(self) -> dict[str, Any]:
        """What this model is, for the record beside a sound."""
        return {
            "model": self.source,
            "converted_from": self.origin,
            "revision": self.revision,
            "heads": list(self.networks.configs["unet"].heads),
            "device": str(self.device),
            "dtype": dtypes.describe(self.networks.dtypes),
        }


def _widths(dims: dict[str, int]) -> str:
    return ", ".join(f"{name} {dim} wide" for name, dim in dims.items() if dim)
