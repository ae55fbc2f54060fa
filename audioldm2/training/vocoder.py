"""Stage 2: the vocoder learns to make waves of log-mel spectrograms.

What it is told: have the same mel spectrogram (L1), the same magnitudes at three resolutions, and, from a
step on, deceive discriminators that look at periods and scales of the wave, and look the same to their
layers. A small one, of a world full of tones, learns a wave that is computed of the spectrogram instead
(`additive`).

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
from torch import Tensor, nn

from audioldm2.pipeline import AudioLDM2
from audioldm2.training import losses
from audioldm2.training.additive import additive_wave
from audioldm2.training.discriminators import WaveDiscriminators
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage


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
    additive_until: int = 0  # so many steps, from the first, learn the wave of `additive_wave`, and no more
    additive_weight: float = 0.0  # of that wave from then on
    floor: float = 0.0  # magnitude below which spectrograms hardly count
    stft_weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)  # of windows of 600, 1200 and 240 samples
    adversary_from: int | None = 0  # the first step against the discriminators; null: never
    adversary_weight: float = 1.0
    matching_weight: float = 2.0  # of the features that the discriminators see
    adversary_width: int = 32  # channels of their first layers, a multiple of 4
    adversary_scales: int = 3  # how many look at halvings of the rate, which on a CPU is most of a step
    through_vae: float = 0.0  # of the clips: learn from what the VAE makes of their spectrograms, as in use

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stft_weights) != len(losses.RESOLUTIONS):
            raise ValueError(
                f"stft_weights is {self.stft_weights}; it has to be {len(losses.RESOLUTIONS)} numbers."
            )
        if not 0 <= self.through_vae <= 1:
            raise ValueError(f"through_vae is {self.through_vae}; it has to be from 0 to 1.")


class VocoderStage(Stage):
    name = "vocoder"
    captioned = False
    recipes: ClassVar = {
        "published": VocoderRecipe(),
        "small": VocoderRecipe(
            seconds=0.32, pool=8192, steps=7000, learning_rate=1e-3, warmup=200, cosine=True,
            additive_until=5000, additive_weight=5.0, mel_weight=1.0, stft_weights=(0.0, 0.0, 0.0),
            floor=1e-3, adversary_from=None, through_vae=0.5,
        ),
    }  # fmt: skip
    recipe: VocoderRecipe

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

    def losses(self, wave: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        mel = self.mel(wave)
        true = wave[:, : mel.shape[1] * self.front_end.hop]  # (batch, samples)
        through = round(recipe.through_vae * len(mel))
        if through:
            mel = torch.cat([self.reconstruct(mel[:through]), mel[through:]])
        with self.autocast():
            made = self.trained["hifigan"](mel)[:, : true.shape[1]]
        made = made.float()
        additive = made.new_zeros(())
        if self.done < recipe.additive_until or recipe.additive_weight:
            target = additive_wave(mel, self.front_end)[:, : made.shape[1]]
            additive = losses.relative_error(made, target)
        if self.done < recipe.additive_until:
            return {"loss": additive, "gradient": self.descent.step(additive, self.done)}
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
        loss = recipe.mel_weight * parts["mel"] + parts["stft"] + recipe.additive_weight * additive
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


def _scores(judgements: list) -> list[Tensor]:
    return [score.float() for score, _ in judgements]


def _features(judgements: list) -> list[list[Tensor]]:
    return [features for _, features in judgements]
