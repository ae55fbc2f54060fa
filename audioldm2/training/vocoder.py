"""Stage 2: the vocoder learns to turn log-mel spectrograms into waveforms.

The loss is the L1 distance of mel spectrograms, magnitudes at three STFT resolutions and, from some step on,
the adversarial and feature matching losses of discriminators that look at periods and scales of the wave. A
small vocoder for sounds full of tones starts with what can be computed from a spectrogram
(additive_synthesis.py): first its frame-rate layers learn the amplitudes of all partials, then the whole
network learns the synthesized wave.

Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), section 2.4; Yamamoto et al. 2020, "Parallel WaveGAN"
(arXiv 1910.11480), for the magnitudes.

Traps
- The vocoder's output may be slightly longer than the clip; the excess is not compared.
- From a stationary spectrogram a vocoder outputs a wave that repeats with every frame, so it contains
  multiples of 100 Hz only. A long STFT window distinguishes these from a pure tone in between, and then
  scores silence better than the tone. For data with many tones, short windows need the largest weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.models.hifigan import HiFiGAN
from audioldm2.pipeline import AudioLDM2
from audioldm2.training import losses
from audioldm2.training.additive_synthesis import partial_amplitudes, partial_count, synthesize
from audioldm2.training.discriminators import Judgement, WaveDiscriminators
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage

PARTIAL_GAIN = 30.0  # of amplitudes inside the network: waves are quiet, features are around 1


@dataclass(frozen=True)
class VocoderRecipe(Recipe):
    """The defaults are HiFi-GAN's, with clips of 8,192 samples at 16 kHz."""

    seconds: float = 0.512
    steps: int = 500_000
    learning_rate: float = 2e-4
    betas: tuple[float, ...] = (0.8, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1000.0  # HiFi-GAN does not clip; this only catches an explosion
    mel_weight: float = 45.0
    partials_until: int = 0  # before this step, only the frame-rate layers learn: the partials' amplitudes
    additive_until: int = 0  # before this step, all layers learn the synthesized wave and nothing else
    additive_weight: float = 0.0  # of the synthesized wave from then on
    mel_learning_rate: float = 0.0  # restart the schedule at `additive_until` with this peak; 0: no restart
    floor: float = 0.0  # magnitude below which spectrograms hardly count
    stft_weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)  # of windows of 600, 1200 and 240 samples
    adversary_start: int | None = 0  # first step with the discriminators; null: never
    adversary_weight: float = 1.0
    matching_weight: float = 2.0  # of feature matching
    adversary_width: int = 32  # channels of the discriminators' first layers, a multiple of 4
    adversary_scales: int = 3  # number of scale discriminators, which dominate a step on a CPU
    through_vae: float = 0.0  # fraction of clips whose input is the VAE's reconstruction, as in generation
    window: float = 0.0  # seconds of each clip that a step trains on, cropped at random; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        resolutions = len(losses.RESOLUTIONS)
        self.require(
            stft_weights=(len(self.stft_weights) == resolutions, f"be {resolutions} numbers"),
            through_vae=(0 <= self.through_vae <= 1, "be from 0 to 1"),
            window=(self.window >= 0, "be at least 0"),
            mel_learning_rate=(self.mel_learning_rate >= 0, "be at least 0"),
        )

    def learning_rate_at(self, step: int) -> float:
        first = self.additive_until
        if not self.mel_learning_rate:
            return super().learning_rate_at(step)
        if step < first:
            return self.warmup_and_decay(step, self.learning_rate, first)
        return self.warmup_and_decay(step - first, self.mel_learning_rate, self.steps - first)


class VocoderStage(Stage[VocoderRecipe]):
    """Trains HiFi-GAN."""

    name = "vocoder"
    captioned = False
    recipes: ClassVar = {
        "published": VocoderRecipe(),
        "small": VocoderRecipe(
            seconds=2.56, window=0.32, pool=2048, steps=18_600, partials_until=6000, additive_until=9600,
            optimizer="muon", learning_rate=3e-3, mel_learning_rate=1e-3, warmup=100, schedule="cosine",
            weight_decay=0.0, bf16=True, additive_weight=2.0, mel_weight=1.0, stft_weights=(0.0, 0.0, 0.0),
            floor=1e-3, adversary_start=None, through_vae=0.5,
        ),
        # Without discriminators: new ones would first teach a trained vocoder noise.
        "finetune": VocoderRecipe(
            batch=8, steps=2000, learning_rate=1e-5, warmup=50, ema=0.995, max_grad_norm=10.0, mel_weight=1.0,
            floor=1e-3, adversary_start=None, through_vae=0.5,
        ),
    }  # fmt: skip

    def __init__(
        self, checkpoint: Checkpoint, recipe: VocoderRecipe, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(checkpoint, recipe, device, seed)
        if recipe.window:
            self.require_length("window", recipe.window)
        config, channels = checkpoint.configs["hifigan"], 4 * partial_count(self.front_end)
        if recipe.partials_until and (config.upsample_rates[0] != 1 or config.channels < channels):
            raise ArgumentError(
                "partials_until", recipe.partials_until,
                f"be 0 for a vocoder with {config.channels} channels whose first upsampling rate is "
                f"{config.upsample_rates[0]}: learning partials needs {channels} channels and rate 1",
            )  # fmt: skip

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns the recipe "finetune": a vocoder trains on clips of one length for every model."""
        return cls.recipes["finetune"]

    def trainable(self) -> tuple[str, ...]:
        return ("hifigan",)

    def frozen(self) -> tuple[str, ...]:
        return ("vae",) if self.recipe.through_vae else ()

    def least_samples(self) -> int:
        """Counts what the longest window of the losses needs for its reflection at both ends."""
        return max(super().least_samples(), max(each[0] for each in losses.RESOLUTIONS) // 2 + 1)

    def make_adversary(self) -> nn.Module | None:
        recipe = self.recipe
        if recipe.adversary_start is None:
            return None
        return WaveDiscriminators(recipe.adversary_width, scales=recipe.adversary_scales)

    def prepare(self, wave: Tensor) -> Tensor:
        """Splits clips into frames of samples, log-mels and, if the recipe asks for them, the VAE's
        reconstructions of these log-mels.

        Returns:
            (batch, frames, hop + mels) or (batch, frames, hop + 2 * mels).
        """
        mel = self.mel(wave.to(self.device))
        samples = wave.to(mel)[:, : mel.shape[1] * self.front_end.hop].unflatten(1, (mel.shape[1], -1))
        reconstructed = [self.reconstruct(mel)] if self.recipe.through_vae else []
        return torch.cat([samples, mel, *reconstructed], dim=2)

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        recipe = self.recipe
        if recipe.window:
            clips = self.crop(clips, generator)
        samples, mels = clips[..., : self.front_end.hop], clips[..., self.front_end.hop :]
        mels = mels.split(self.front_end.mels, dim=2)  # true ones, then reconstructed ones
        whole = self.whole_batch(clips)
        reconstructed = self.ranks.rows(torch.arange(whole) < round(recipe.through_vae * whole))
        mel = torch.where(reconstructed.to(clips.device).view(-1, 1, 1), mels[-1], mels[0])
        if self.done < recipe.partials_until:
            loss = self.partials_error(mel)
            return {"loss": loss, "grad_norm": self.optimizer.step(loss, self.done)}

        real = samples.flatten(1)  # (batch, samples)
        with self.autocast():
            fake = self.trained["hifigan"](mel)[:, : real.shape[1]]
        fake = fake.float()
        if self.done < recipe.additive_until:
            loss = self.additive_error(fake, mel)
            return {"loss": loss, "grad_norm": self.optimizer.step(loss, self.done)}
        adversarial = recipe.adversary_start is not None and self.done >= recipe.adversary_start
        metrics = {}
        if adversarial:
            self.adversary.requires_grad_(True)
            with self.autocast():
                of_real, of_fake = self.adversary(real), self.adversary(fake.detach())
            metrics["discriminator"] = losses.least_squares_discriminator(_scores(of_real), _scores(of_fake))
            self.adversary_optimizer.step(metrics["discriminator"], self.done)

        metrics |= {
            "mel": losses.mel_loss(fake, real, self.front_end, recipe.floor),
            "stft": losses.stft_loss(fake, real, recipe.stft_weights, recipe.floor),
        }
        loss = recipe.mel_weight * metrics["mel"] + metrics["stft"]
        if recipe.additive_weight:
            metrics["additive"] = self.additive_error(fake, mel)
            loss = loss + recipe.additive_weight * metrics["additive"]
        if adversarial:
            self.adversary.requires_grad_(False)
            with self.autocast():
                with torch.no_grad():
                    of_real = self.adversary(real)
                of_fake = self.adversary(fake)
            metrics["adversarial"] = losses.least_squares_generator(_scores(of_fake))
            metrics["matching"] = losses.feature_matching(_features(of_real), _features(of_fake))
            loss = loss + recipe.adversary_weight * metrics["adversarial"]
            loss = loss + recipe.matching_weight * metrics["matching"]
        metrics["grad_norm"] = self.optimizer.step(loss, self.done)
        return {"loss": loss} | metrics

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        recipe, hop = self.recipe, self.front_end.hop
        real, mel = clips[..., :hop].flatten(1), clips[..., hop : hop + self.front_end.mels]
        with self.autocast():
            fake = self.trained["hifigan"](mel)[:, : real.shape[1]]
        fake = fake.float()
        return {
            "loss": losses.mel_loss(fake, real, self.front_end, recipe.floor),
            "stft": losses.stft_loss(fake, real, VocoderRecipe.stft_weights, recipe.floor),
        }

    def crop(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Crops a random window from each prepared clip (batch, frames, values)."""
        frames = round(self.recipe.window * self.front_end.sample_rate / self.front_end.hop)
        frames = min(max(frames, self.downsampling), clips.shape[1])
        last, whole = clips.shape[1] - frames, self.whole_batch(clips)
        starts = self.ranks.rows(torch.randint(last + 1, (whole,), generator=generator)).tolist()
        return torch.stack([clip[start : start + frames] for clip, start in zip(clips, starts, strict=True)])

    def additive_error(self, fake: Tensor, mel: Tensor) -> Tensor:
        """Compares waves (batch, samples) with additive synthesis from log-mels; relative RMS error."""
        return losses.relative_error(fake, synthesize(mel, self.front_end)[:, : fake.shape[1]])

    def partials_error(self, mel: Tensor) -> Tensor:
        """Compares the frame-rate features with the amplitudes of all partials; relative RMS error."""
        target = partial_amplitudes(mel, self.front_end)  # (batch, frames, partials)
        target = torch.cat([target.relu(), (-target).relu()], dim=2)
        with self.autocast():
            features = frame_features(self.trained["hifigan"], mel)
        features = features[..., : target.shape[2]].float() / PARTIAL_GAIN
        scale = target.shape[2] ** 0.5  # makes the mean over partials the power of a frame
        return losses.relative_error(scale * features.flatten(1), scale * target.flatten(1))

    @torch.no_grad()
    def reconstruct(self, mel: Tensor) -> Tensor:
        """Passes log-mels (batch, frames, mels) through the VAE."""
        vae = self.network("vae")
        mean, _ = vae.encode(mel.unsqueeze(1))
        return vae.decode(mean).squeeze(1)

    @torch.no_grad()
    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields each clip and the vocoder's output for its spectrogram."""
        mel = self.mel(wave)
        vocoded = model.vocode(mel).float().cpu()[:, : wave.shape[1]]
        vocoded_mel = self.mel(vocoded)
        for i in range(len(wave)):
            yield Sample(f"{i}-true", wave[i], mel[i])
            yield Sample(f"{i}-vocoded", vocoded[i], vocoded_mel[i])


def frame_features(vocoder: HiFiGAN, mel: Tensor) -> Tensor:
    """Runs the vocoder's frame-rate layers, the input layer and the first stage.

    Args:
        vocoder: its first upsampling rate is 1.
        mel: log-mels (batch, frames, mels).

    Returns:
        Features (batch, frames, channels). `partials_error` trains the first ones to be the positive parts of
        all partials' amplitudes, and the next ones to be the negative parts.
    """
    if vocoder.config.normalize_before:
        mel = (mel - vocoder.mean) / vocoder.scale
    x = vocoder.stages[0](vocoder.conv_in(mel.transpose(1, 2)))
    return F.leaky_relu(x, vocoder.config.slope).transpose(1, 2)


def _scores(judgements: list[Judgement]) -> list[Tensor]:
    return [score.float() for score, _ in judgements]


def _features(judgements: list[Judgement]) -> list[list[Tensor]]:
    return [features for _, features in judgements]
