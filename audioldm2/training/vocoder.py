"""Stage 2: the vocoder learns to make waves of log-mel spectrograms.

What it is told: have the same mel spectrogram (L1), the same magnitudes at three resolutions, and, from a
step on, deceive discriminators that look at periods and scales of the wave, and look the same to their
layers. A small one, of a world full of tones, begins otherwise, with what can be computed of a spectrogram
(`additive`): its first layers, which work once a frame, learn how loud each line is; then all of it learns
the wave of these lines.

Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), section 2.4; Yamamoto et al. 2020, "Parallel WaveGAN"
(arXiv 1910.11480), for the magnitudes.

Traps
- A sound from the vocoder may be a little longer than its spectrogram; the end is not compared.
- Of a spectrogram that stands still, a vocoder makes a wave that repeats with every frame: it has multiples
  of 100 Hz only. A long window tells these from a pure tone in between, and finds silence nearer to it. Where
  tones are much of the world, short windows have to weigh most.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.hifigan import HiFiGAN
from audioldm2.pipeline import AudioLDM2
from audioldm2.training import losses
from audioldm2.training.additive import additive_wave, line_amplitudes, line_count
from audioldm2.training.discriminators import WaveDiscriminators
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage

LINE_LOUDNESS = 30.0  # of lines inside the network: waves are quiet, features are around 1


@dataclass(frozen=True)
class VocoderRecipe(Recipe):
    """Defaults: HiFi-GAN's, with clips of 8,192 samples at 16 kHz."""

    seconds: float = 0.512
    steps: int = 500_000
    learning_rate: float = 2e-4
    betas: tuple[float, ...] = (0.8, 0.99)
    weight_decay: float = 0.01
    clip: float = 1000.0  # HiFi-GAN clips nothing; this only stops an explosion
    mel_weight: float = 45.0
    lines_until: int = 0  # so many steps, from the first, teach the layers at the frame rate the lines
    additive_until: int = 0  # up to this step, all layers learn the wave of `additive_wave`, and no more
    additive_weight: float = 0.0  # of that wave from then on
    mel_learning_rate: float = 0.0  # that begins anew after `additive_until`; 0: learning_rate goes on
    floor: float = 0.0  # magnitude below which spectrograms hardly count
    stft_weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)  # of windows of 600, 1200 and 240 samples
    adversary_from: int | None = 0  # the first step against the discriminators; null: never
    adversary_weight: float = 1.0
    matching_weight: float = 2.0  # of the features that the discriminators see
    adversary_width: int = 32  # channels of their first layers, a multiple of 4
    adversary_scales: int = 3  # how many look at halvings of the rate, which on a CPU is most of a step
    through_vae: float = 0.0  # of the clips: learn from what the VAE makes of their spectrograms, as in use
    window: float = 0.0  # seconds of each clip that a step looks at, drawn anew; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stft_weights) != len(losses.RESOLUTIONS):
            raise ValueError(
                f"stft_weights is {self.stft_weights}; it has to be {len(losses.RESOLUTIONS)} numbers."
            )
        if not 0 <= self.through_vae <= 1:
            raise ValueError(f"through_vae is {self.through_vae}; it has to be from 0 to 1.")
        for name in ("window", "mel_learning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 0.")

    def learning_rate_at(self, step: int) -> float:
        first = self.additive_until
        if not self.mel_learning_rate:
            return super().learning_rate_at(step)
        if step < first:
            return self.rise_and_fall(step, self.learning_rate, first)
        return self.rise_and_fall(step - first, self.mel_learning_rate, self.steps - first)


class VocoderStage(Stage):
    name = "vocoder"
    captioned = False
    recipes: ClassVar = {
        "published": VocoderRecipe(),
        "small": VocoderRecipe(
            seconds=2.56, window=0.32, pool=2048, steps=18_600, lines_until=6000, additive_until=9600,
            optimiser="muon", learning_rate=3e-3, mel_learning_rate=1e-3, warmup=100, cosine=True,
            weight_decay=0.0, bf16=True, additive_weight=2.0, mel_weight=1.0, stft_weights=(0.0, 0.0, 0.0),
            floor=1e-3, adversary_from=None, through_vae=0.5,
        ),
    }  # fmt: skip
    recipe: VocoderRecipe

    def __init__(self, checkpoint: Checkpoint, recipe: VocoderRecipe, device: torch.device, seed: int = 0):
        super().__init__(checkpoint, recipe, device, seed)
        config, lines = checkpoint.configs["hifigan"], line_count(self.front_end)
        if recipe.lines_until and (config.upsample_rates[0] != 1 or config.channels < 4 * lines):
            raise ValueError(
                f"lines_until is {recipe.lines_until}, but this vocoder has no layers that can learn {lines} "
                f"lines: its first upsample rate is {config.upsample_rates[0]}, and it has {config.channels} "
                f"channels; needed are rate 1 and {4 * lines} channels. Set lines_until to 0."
            )

    def trains(self) -> tuple[str, ...]:
        return ("hifigan",)

    def reads(self) -> tuple[str, ...]:
        return ("vae",) if self.recipe.through_vae else ()

    def make_adversary(self) -> nn.Module | None:
        recipe = self.recipe
        return (
            None
            if recipe.adversary_from is None
            else WaveDiscriminators(recipe.adversary_width, scales=recipe.adversary_scales)
        )

    def prepare(self, wave: Tensor) -> Tensor:
        """Frames of clips: samples, log-mels, and what the VAE makes of these where it is asked for.

        Returns (batch, frames, hop + mels) or (batch, frames, hop + 2 * mels).
        """
        mel = self.mel(wave.to(self.device))
        samples = wave.to(mel)[:, : mel.shape[1] * self.front_end.hop].unflatten(1, (mel.shape[1], -1))
        heard = [self.reconstruct(mel)] if self.recipe.through_vae else []
        return torch.cat([samples, mel, *heard], dim=2)

    def losses(self, clips: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        if recipe.window:
            clips = self.look(clips, drawn)
        samples, mels = clips[..., : self.front_end.hop], clips[..., self.front_end.hop :]
        mels = mels.split(self.front_end.mels, dim=2)  # as they are, and as the VAE makes them
        through = round(recipe.through_vae * len(clips))
        mel = torch.cat([mels[-1][:through], mels[0][through:]])
        if self.done < recipe.lines_until:
            loss = self.lines_error(mel)
            return {"loss": loss, "gradient": self.descent.step(loss, self.done)}

        true = samples.flatten(1)  # (batch, samples)
        with self.autocast():
            made = self.trained["hifigan"](mel)[:, : true.shape[1]]
        made = made.float()
        if self.done < recipe.additive_until:
            loss = self.additive_error(made, mel)
            return {"loss": loss, "gradient": self.descent.step(loss, self.done)}
        against = recipe.adversary_from is not None and self.done >= recipe.adversary_from
        parts = {}
        if against:
            self.adversary.requires_grad_(True)
            with self.autocast():
                of_true, of_made = self.adversary(true), self.adversary(made.detach())
            parts["tell"] = losses.least_squares_discriminator(_scores(of_true), _scores(of_made))
            self.adversary_descent.step(parts["tell"], self.done)

        parts |= {
            "mel": losses.mel_loss(made, true, self.front_end, recipe.floor),
            "stft": losses.stft_loss(made, true, recipe.stft_weights, recipe.floor),
        }
        loss = recipe.mel_weight * parts["mel"] + parts["stft"]
        if recipe.additive_weight:
            parts["additive"] = self.additive_error(made, mel)
            loss = loss + recipe.additive_weight * parts["additive"]
        if against:
            self.adversary.requires_grad_(False)
            with self.autocast():
                with torch.no_grad():
                    of_true = self.adversary(true)
                of_made = self.adversary(made)
            parts["deceive"] = losses.least_squares_generator(_scores(of_made))
            parts["matching"] = losses.feature_matching(_features(of_true), _features(of_made))
            loss = loss + recipe.adversary_weight * parts["deceive"]
            loss = loss + recipe.matching_weight * parts["matching"]
        parts["gradient"] = self.descent.step(loss, self.done)
        return {"loss": loss} | parts

    def look(self, clips: Tensor, drawn: torch.Generator) -> Tensor:
        """A window of each prepared clip (batch, frames, values)."""
        frames = round(self.recipe.window * self.front_end.sample_rate / self.front_end.hop)
        frames = min(max(frames, self.downsampling), clips.shape[1])
        starts = torch.randint(clips.shape[1] - frames + 1, (len(clips),), generator=drawn).tolist()
        return torch.stack([clip[start : start + frames] for clip, start in zip(clips, starts, strict=True)])

    def additive_error(self, made: Tensor, mel: Tensor) -> Tensor:
        """Of waves (batch, samples), parts of the size of the additive waves of log-mels."""
        return losses.relative_error(made, additive_wave(mel, self.front_end)[:, : made.shape[1]])

    def lines_error(self, mel: Tensor) -> Tensor:
        """Of the lines that the first layers hear in log-mels, parts of the lines' own size."""
        true = line_amplitudes(mel, self.front_end)  # (batch, frames, lines)
        true = torch.cat([true.relu(), (-true).relu()], dim=2)
        with self.autocast():
            heard = lines_heard(self.trained["hifigan"], mel)
        heard = heard[..., : true.shape[2]].float() / LINE_LOUDNESS
        size = true.shape[2] ** 0.5  # then the mean over lines is the power of a frame
        return losses.relative_error(size * heard.flatten(1), size * true.flatten(1))

    @torch.no_grad()
    def reconstruct(self, mel: Tensor) -> Tensor:
        """What the VAE makes of log-mels (batch, frames, mels)."""
        vae = self.network("vae")
        mean, _ = vae.encode(mel.unsqueeze(1))
        return vae.decode(mean).squeeze(1)

    @torch.no_grad()
    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Each clip, and what the vocoder makes of its spectrogram."""
        mel = self.mel(wave)
        made = model.vocode(mel).float().cpu()[:, : wave.shape[1]]
        made_mel = self.mel(made)
        for i in range(len(wave)):
            yield Sample(f"{i}-true", wave[i], mel[i])
            yield Sample(f"{i}-vocoded", made[i], made_mel[i])


def lines_heard(vocoder: HiFiGAN, mel: Tensor) -> Tensor:
    """What the layers at the frame rate tell the others of log-mels (batch, frames, mels).

    Returns (batch, frames, channels): a line's amplitude where it is above 0, for each line, then where it is
    below, once they are taught so.
    """
    if vocoder.config.normalize_before:
        mel = (mel - vocoder.mean) / vocoder.scale
    x = vocoder.stages[0](vocoder.conv_in(mel.transpose(1, 2)))
    return F.leaky_relu(x, vocoder.config.slope).transpose(1, 2)


def _scores(judgements: list) -> list[Tensor]:
    return [score.float() for score, _ in judgements]


def _features(judgements: list) -> list[list[Tensor]]:
    return [features for _, features in judgements]
