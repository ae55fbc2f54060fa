"""Stage 1: the VAE learns to compress log-mel spectrograms sixteenfold and to reconstruct them.

The loss is the L1 reconstruction error, a small KL term that keeps latents near unit variance, and, from some
step on, the adversarial loss of a patch discriminator, which restores the grain of noises that L1 smooths
out.

Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models" (arXiv
2112.10752), section 3.1, without the perceptual loss, which is for images; AudioLDM (arXiv 2301.12503).
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
from audioldm2.training.losses import adaptive_weight, hinge_discriminator, hinge_generator, kl_divergence
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage
from audioldm2.training.weight_init import denoiser_is_trained


@dataclass(frozen=True)
class VAERecipe(Recipe):
    """The defaults are upstream's batch size and discriminator; the KL weight is ours.

    The learning rate is four times upstream's 8e-6, of which Rombach et al.'s code would make the same: it
    multiplies the base rate by the batch size, 4.
    """

    batch: int = 4
    normalize: bool = True
    learning_rate: float = 3.2e-5
    betas: tuple[float, ...] = (0.5, 0.9)
    kl_weight: float = 0.01  # of nats per latent element, next to an L1 that is a mean over mel bins
    adversary_start: int | None = 50_000  # first step with the discriminator; null: never
    adversary_weight: float = 0.5  # 1: its gradient at the decoder's last layer is as large as the L1's
    adversary_width: int = 64  # channels of the discriminator's first layer
    train_encoder: bool = True  # False: only the decoder learns, so that latents stay as they are


class VAEStage(Stage[VAERecipe]):
    """Trains the VAE and measures the scaling factor of its latents."""

    name = "vae"
    captioned = False
    recipes: ClassVar = {
        "published": VAERecipe(),
        "small": VAERecipe(
            normalize=False,
            batch=8, seconds=2.56, steps=4000, learning_rate=1.5e-3, warmup=100, schedule="cosine",
            betas=(0.9, 0.99), bf16=True, adversary_start=None,
        ),
        # Without a discriminator: a new one would first teach a trained decoder noise.
        "finetune": VAERecipe(
            steps=2000, learning_rate=1e-5, warmup=50, betas=(0.9, 0.99), ema=0.995, adversary_start=None,
            train_encoder=False,
        ),
    }  # fmt: skip

    def __init__(
        self, checkpoint: Checkpoint, recipe: VAERecipe, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(checkpoint, recipe, device, seed)
        vae = self.trained["vae"]  # works on unscaled latents: their scale is only known at the end
        self.scaling_factor = vae.config.scaling_factor
        vae.config = replace(vae.config, scaling_factor=1.0)
        vae.encoder.requires_grad_(recipe.train_encoder)
        # A denoiser knows the latents in the scale that it was trained on.
        self.keeps_scale = not recipe.train_encoder or denoiser_is_trained(checkpoint)

    def trainable(self) -> tuple[str, ...]:
        return ("vae",)

    def least_samples(self) -> int:
        frames = 0 if self.recipe.adversary_start is None else PatchDiscriminator.LEAST
        return max(super().least_samples(), frames * self.front_end.hop)

    def make_adversary(self) -> nn.Module | None:
        recipe = self.recipe
        return None if recipe.adversary_start is None else PatchDiscriminator(recipe.adversary_width)

    def warnings(self) -> list[str]:
        if not self.recipe.train_encoder or not denoiser_is_trained(self.initial):
            return []
        return [
            f"the denoiser of {self.initial.source} was trained on latents of the encoder that this changes; "
            "the latents' scale is kept, but train the stage 'ldm' next, or set train_encoder to false"
        ]

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        vae, recipe = self.trained["vae"], self.recipe
        mel = self.mel(clips).unsqueeze(1)  # (batch, 1, time, mel)
        with self.autocast():
            mean, std = vae.encode(mel)  # (batch, channels, time / 4, mel / 4)
            decoded = vae.decode(mean + std * self.randn_like(std, generator))
        decoded = decoded.float()
        metrics = {"l1": F.l1_loss(decoded, mel), "kl": kl_divergence(mean.float(), std.float())}
        loss = metrics["l1"] + recipe.kl_weight * metrics["kl"]

        adversarial = recipe.adversary_start is not None and self.done >= recipe.adversary_start
        if adversarial:
            self.adversary.requires_grad_(False)
            metrics["adversarial"] = hinge_generator(self.adversary(decoded))
            last_weight = vae.decoder.conv_out.weight
            weight = adaptive_weight(metrics["l1"], metrics["adversarial"], last_weight, self.ranks.mean)
            loss = loss + recipe.adversary_weight * weight * metrics["adversarial"]
        metrics["grad_norm"] = self.optimizer.step(loss, self.done)
        if adversarial:
            self.adversary.requires_grad_(True)
            metrics["discriminator"] = hinge_discriminator(
                self.adversary(mel), self.adversary(decoded.detach())
            )
            self.adversary_optimizer.step(metrics["discriminator"], self.done)
        return {"loss": loss} | metrics

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        vae, mel = self.trained["vae"], self.mel(clips).unsqueeze(1)  # (batch, 1, time, mel)
        with self.autocast():
            mean, std = vae.encode(mel)
            decoded = vae.decode(mean)
        metrics = {"l1": F.l1_loss(decoded.float(), mel), "kl": kl_divergence(mean.float(), std.float())}
        return {"loss": metrics["l1"] + self.recipe.kl_weight * metrics["kl"]} | metrics

    @torch.no_grad()
    def measure(self, waves: Iterable[Tensor]) -> None:
        """Sets the scaling factor, which gives the latents of these clips unit standard deviation.

        Where a denoiser was trained on the latents, their scale stays.
        """
        if self.keeps_scale:
            return
        vae = self.trained["vae"]
        latents = [vae.encode(self.mel(wave.to(self.device)).unsqueeze(1)) for wave in waves]
        means, stds = (torch.cat(each) for each in zip(*latents, strict=True))
        self.scaling_factor = float(1 / (means.var() + stds.square().mean()).sqrt())

    def trained_configs(self) -> dict[str, Any]:
        return {"vae": replace(self.initial.configs["vae"], scaling_factor=self.scaling_factor)}

    @torch.no_grad()
    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields each clip and its reconstruction by the VAE and whatever vocoder the model has."""
        mel = self.mel(wave)
        with model.networks.running("vae") as vae:
            mean, _ = vae.encode(mel.unsqueeze(1).to(model.device))
        decoded = model.decode(mean)
        vocoded = model.vocode(decoded)
        for i in range(len(wave)):
            yield Sample(f"{i}-true", wave[i], mel[i])
            yield Sample(f"{i}-reconstructed", vocoded[i], decoded[i])
