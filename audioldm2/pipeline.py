"""A prompt to a waveform: five stages, each a method that can be called alone, and `generate`, which calls them in order.

    encode_prompt   prompt   -> Conditioning              CLAP, T5, projection, GPT-2   (conditioning.py)
    denoise         noise    -> latent                    UNet under a sampler          (samplers.py)
    decode          latent   -> log-mel spectrogram       VAE decoder
    vocode          log-mel  -> waveform                  HiFi-GAN
    rank            waveform -> scores, best first        CLAP                          (ranking.py)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audioldm2.conditioning import Conditioning, encode
from audioldm2.request import Request, SoundShape, negatives, number, texts
from audioldm2.result import Result
from audioldm2.samplers import SAMPLERS, Denoiser, Generators, NoiseSchedule
from audioldm2.text import ClapTokenizer, T5Tokenizer
from audioldm2.weights import Networks

OnStep = Callable[[int, float, Tensor], object]  # (step from 1, time, estimate of the clean latent) -> False to stop


class AudioLDM2:
    """A loaded model. Make one with `audioldm2.load`."""

    def __init__(
        self,
        networks: Networks,
        clap_tokenizer: ClapTokenizer,
        t5_tokenizer: T5Tokenizer,
        schedule: NoiseSchedule,
        source: str = "",
        revision: str | None = None,
    ):
        vae, vocoder = networks.configs["vae"], networks.configs["hifigan"]
        self.networks = networks
        self.clap_tokenizer = clap_tokenizer
        self.t5_tokenizer = t5_tokenizer
        self.schedule = schedule
        self.source, self.revision = source, revision
        self.sound = SoundShape(
            vocoder.sample_rate, vocoder.hop, vae.downsampling, vae.latent_channels, vocoder.mels
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
        seed: int | Sequence[int] | None = 0,
        latents: Tensor | None = None,
        on_step: OnStep | None = None,
        on_stage: Callable[[str], object] | None = None,
    ) -> Result:
        """Make sounds from prompts.

        prompt:            a text or a list of texts.
        negative_prompt:   what guidance leads away from: a text for all prompts, or one a prompt; none means "".
        audio_length_in_s: seconds; default: the length of `latents` where given, else 10.
        guidance_scale:    how strongly the prompt is followed; up to 1, guidance is off.
        num_waveforms_per_prompt: candidates, returned in order of generation.
        sampler, eta:      a name from `audioldm2.SAMPLERS`; eta is the noise of DDIM, 0 to 1.
        seed:              one for all prompts or one a prompt; candidate i is drawn from seed + i, so a sound is the same
                           alone and in any batch. None draws one, told in `result.seeds`.
        latents:           starting noise (prompts * waveforms, channels, time, mel) in place of the seed's.
        on_step:           called as on_step(step, t, x0) after each step; returning False stops and keeps x0.
        on_stage:          called with the name of each stage as it begins.

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
            seed=seed,
            latents=latents,
        )
        begin = on_stage or (lambda stage: None)

        begin("encoding the prompt")
        conditioning = self.encode_prompt(
            request.prompts, request.negative_prompts if request.guided else None, guided=request.guided
        )
        begin("denoising")
        generators = request.generators()
        noise = request.latents
        if noise is None:
            shape = self.sound.latents(1, request.latent_frames)
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        z = self.denoise(
            conditioning,
            noise,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            sampler=request.sampler,
            eta=request.eta,
            generator=generators,
            on_step=on_step,
        )
        begin("decoding")
        mel = self.decode(z)
        begin("vocoding")
        audio = self.vocode(mel)[:, : self.sound.samples(request.seconds)]

        rows = (len(request.prompts), request.candidates)
        return Result(
            audio=audio.float().cpu().unflatten(0, rows),  # (prompts, waveforms, samples)
            sample_rate=self.sample_rate,
            scores=None,
            latents=z,
            mel=mel,
            request=request,
            model=self.describe(),
        )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        guided: bool = True,
    ) -> Conditioning:
        """What the denoiser is told about each prompt, and about its negative prompt unless `guided` is False."""
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
        generator: Generators | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Clean latents, float32, of noise (batch, channels, time, mel).

        The batch is a multiple of the conditioning's; each prompt's rows stand together. A guidance scale above 1 needs
        `conditioning.negative`. generator: the noise of stochastic samplers; one for the batch or one a row.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler={sampler!r} is not known; choose one of {', '.join(SAMPLERS)}.")
        if latents.shape[0] % len(conditioning):
            raise ValueError(
                f"latents has {latents.shape[0]} rows; it has to be a multiple of the conditioning's {len(conditioning)}."
            )
        conditioning = conditioning.repeat(latents.shape[0] // len(conditioning))
        with self.networks.running("unet") as unet:
            denoiser = guided(unet, conditioning.to(self.device, self.networks.dtype), number("guidance_scale", guidance_scale))
            return SAMPLERS[sampler](
                denoiser,
                latents.to(self.device, torch.float32),
                self.schedule,
                num_inference_steps,
                eta=eta,
                generator=generator,
                on_step=on_step,
            )

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Log-mel spectrograms (batch, time, mels) of clean latents (batch, channels, time, mel)."""
        with self.networks.running("vae") as vae:
            return vae.decode(z.to(self.device, self.networks.dtype)).squeeze(1)

    @torch.no_grad()
    def vocode(self, mel: Tensor) -> Tensor:
        """Waveforms (batch, samples) in [-1, 1] of log-mel spectrograms (batch, time, mels)."""
        with self.networks.running("hifigan") as vocoder:
            return vocoder(mel.to(self.device, self.networks.dtype))

    def describe(self) -> dict[str, str | None]:
        """What this model is, for the record beside a sound."""
        return {
            "model": self.source,
            "revision": self.revision,
            "device": str(self.device),
            "dtype": str(self.networks.dtype).removeprefix("torch."),
        }


def guided(unet: torch.nn.Module, conditioning: Conditioning, scale: float) -> Denoiser:
    """A denoiser that follows the prompt and leads away from the negative one.

    eps = eps_negative + scale * (eps_prompt - eps_negative)      (Ho and Salimans 2022, "Classifier-free guidance")

    Both are one batch of the network, negative rows first. A scale up to 1 leaves the prompt's prediction as it is.
    The sampler's x stays float32; the network runs in the dtype of the conditioning.
    """
    following = scale > 1
    if following and conditioning.negative is None:
        raise ValueError(
            f"guidance_scale is {scale:g}, but the conditioning has no negative part; "
            "make it with encode_prompt(..., guided=True), or use a scale of 1."
        )
    seen = Conditioning.cat([conditioning.negative, conditioning]) if following else conditioning
    dtype = seen.t5_context.dtype

    def denoiser(x: Tensor, t: float) -> Tensor:
        batch = torch.cat([x, x]) if following else x
        time = torch.tensor(t, device=x.device)
        eps = unet(batch.to(dtype), time, seen.gpt2_context, seen.t5_context, seen.t5_mask).float()
        if not following:
            return eps
        eps_negative, eps_prompt = eps.chunk(2)
        return eps_negative + scale * (eps_prompt - eps_negative)

    return denoiser
