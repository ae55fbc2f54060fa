"""Stage 1: the autoencoder learns to shrink log-mel spectrograms sixteenfold and to make them again.

What it is told: make the spectrogram again (L1), stay near unit variance (KL, weighed lightly), and, from a
step on, deceive a discriminator that looks at patches, so that noises get back the grain that L1 smooths
out.

Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models" (arXiv
2112.10752), section 3.1, less the perceptual loss, which is of images; AudioLDM (arXiv 2301.12503).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.discriminators import PatchDiscriminator
from audioldm2.training.losses import balance, hinge_discriminator, hinge_generator, kl
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage


@dataclass(frozen=True)
class VAERecipe(Recipe):
    """Defaults: upstream's batch, learning rate and adversary; the KL weight is ours."""

    batch: int = 4
    learning_rate: float = 3.2e-5
    betas: tuple[float, ...] = (0.5, 0.9)
    kl_weight: float = 0.01  # to nats an element of the latent, where the L1 is a mean over bins
    adversary_from: int | None = 50_000  # the first step against the discriminator; null: never
    adversary_weight: float = 0.5  # at 1, it pulls at the decoder's last layer as hard as the L1
    adversary_width: int = 64  # channels of its first layer


class VAEStage(Stage):
    name = "vae"
    captioned = False
    recipes: ClassVar = {
        "published": VAERecipe(),
        "small": VAERecipe(
            batch=8, seconds=2.56, steps=4000, learning_rate=1.5e-3, warmup=100, cosine=True,
            betas=(0.9, 0.99), bf16=True, adversary_from=None,
        ),
    }  # fmt: skip
    recipe: VAERecipe

    def __init__(self, checkpoint: Checkpoint, recipe: VAERecipe, device: torch.device, seed: int = 0):
        super().__init__(checkpoint, recipe, device, seed)
        vae = self.trained["vae"]  # here it speaks unscaled latents: their scale is not known before the end
        self.scaling_factor = vae.config.scaling_factor
        vae.config = replace(vae.config, scaling_factor=1.0)

    def trains(self) -> tuple[str, ...]:
        return ("vae",)

    def make_adversary(self) -> nn.Module | None:
        recipe = self.recipe
        return None if recipe.adversary_from is None else PatchDiscriminator(recipe.adversary_width)

    def losses(self, wave: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        vae, recipe = self.trained["vae"], self.recipe
        mel = self.mel(wave).unsqueeze(1)  # (batch, 1, time, mel)
        with self.autocast():
            mean, std = vae.encode(mel)  # (batch, channels, time / 4, mel / 4)
            made = vae.decode(mean + std * self.randn_like(std, drawn))
        made = made.float()
        parts = {"l1": F.l1_loss(made, mel), "kl": kl(mean.float(), std.float())}
        loss = parts["l1"] + recipe.kl_weight * parts["kl"]

        against = recipe.adversary_from is not None and self.done >= recipe.adversary_from
        if against:
            self.adversary.requires_grad_(False)
            parts["deceive"] = hinge_generator(self.adversary(made))
            weight = balance(parts["l1"], parts["deceive"], vae.decoder.conv_out.weight)
            loss = loss + recipe.adversary_weight * weight * parts["deceive"]
        parts["gradient"] = self.descent.step(loss, self.done)
        if against:
            self.adversary.requires_grad_(True)
            parts["tell"] = hinge_discriminator(self.adversary(mel), self.adversary(made.detach()))
            self.adversary_descent.step(parts["tell"], self.done)
        return {"loss": loss} | parts

    @torch.no_grad()
    def measure(self, waves: Iterable[Tensor]) -> None:
        """The scaling factor: what gives the latents of these clips a standard deviation of one."""
        vae = self.trained["vae"]
        latents = [vae.encode(self.mel(wave.to(self.device)).unsqueeze(1)) for wave in waves]
        means, stds = (torch.cat(each) for each in zip(*latents, strict=True))
        self.scaling_factor = float(1 / (means.var() + stds.square().mean()).sqrt())

    def configs(self) -> dict[str, Any]:
        return {"vae": replace(self.start.configs["vae"], scaling_factor=self.scaling_factor)}

    @torch.no_grad()
    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Each clip, and what is left of it after the autoencoder (and the vocoder, as good as that is)."""
        mel = self.mel(wave)
        with model.networks.running("vae") as vae:
            mean, _ = vae.encode(mel.unsqueeze(1).to(model.device))
        made = model.decode(mean)
        heard = model.vocode(made)
        for i in range(len(wave)):
            yield Sample(f"{i}-true", wave[i], mel[i])
            yield Sample(f"{i}-reconstructed", heard[i], made[i])
