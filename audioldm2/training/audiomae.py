"""Stage `audiomae`: AudioMAE learns to see a whole spectrogram in a fifth of its patches, without captions.

The encoder reads the patches that are left, and a decoder beside the model fills in the others. The loss is
the mean squared error of the masked patches, each normalised by its own mean and variance. A model without
AudioMAE gets a new one, whose vectors fit its GPT-2.

Source: Huang et al. 2022, "Masked Autoencoders that Listen" (arXiv 2207.06405), and He et al. 2021 (arXiv
2111.06377), whose plain transformer is the decoder here; AudioMAE's own attends in shifted windows.

Trap: GPT-2 predicts LOA, and the denoiser reads it. Training AudioMAE further makes both stale.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from audioldm2.audio import SAMPLE_RATE, resample
from audioldm2.audio.fbank import HOP
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.language_of_audio import spectrograms
from audioldm2.models.audiomae import AudioMAEConfig, Block
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.layers import Linear
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage
from audioldm2.training.weight_init import denoiser_is_trained, initialize, sincos_positions

PUBLISHED_DIM = 768
EPS = 1e-6  # of a patch's variance


@dataclass(frozen=True)
class AudioMAERecipe(Recipe):
    """The defaults are the paper's: 32 epochs of AudioSet, whose batches of 512 several GPUs share."""

    batch: int = 512
    steps: int = 125_000
    learning_rate: float = 2e-4
    warmup: int = 11_700
    schedule: str = "cosine"
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 1e-4
    mask: float = 0.8  # share of the patches that are masked
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            mask=(0 < self.mask < 1, "be above 0 and below 1"),
            decoder_dim=(self.decoder_dim >= 4 and not self.decoder_dim % 4, "be a multiple of 4"),
            decoder_depth=(self.decoder_depth >= 1, "be at least 1"),
            decoder_heads=(
                self.decoder_heads >= 1 and not self.decoder_dim % self.decoder_heads,
                "divide decoder_dim",
            ),
        )


class Decoder(nn.Module):
    """Patches of a spectrogram from the encoder's vectors of some of them.

    Args:
        config: of the encoder.
        dim, depth, heads: of the transformer.
    """

    def __init__(self, config: AudioMAEConfig, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        own = AudioMAEConfig(dim, depth, heads, config.patch, config.frames, config.mels, 1, config.pool)
        self.proj_in = Linear(config.dim, dim)
        self.masked = nn.Parameter(torch.randn(1, 1, dim) * 0.02)  # stands for each masked patch
        self.position_embedding: Tensor
        self.register_buffer("position_embedding", sincos_positions(dim, config.grid)[None], persistent=False)
        self.blocks = nn.ModuleList(Block(own) for _ in range(depth))
        self.norm_out = nn.LayerNorm(dim, eps=config.eps)
        self.proj_out = Linear(dim, config.patch**2)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Pixels (batch, patches, patch * patch) from vectors (batch, some, dim) of the visible patches.

        visible: (batch, some) int, which patches these are.
        """
        patches, dim = self.position_embedding.shape[1:]
        place = visible.unsqueeze(2).expand(-1, -1, dim)
        x = self.proj_in(x)  # (batch, some, dim)
        x = self.masked.to(x.dtype).expand(len(x), patches, dim).scatter(1, place, x)
        x = x + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.proj_out(self.norm_out(x))


class AudioMAEStage(Stage[AudioMAERecipe]):
    """Trains AudioMAE as a masked autoencoder."""

    name = "audiomae"
    captioned = False
    recipes: ClassVar = {
        "published": AudioMAERecipe(),
        "small": AudioMAERecipe(
            batch=64, seconds=2.56, pool=4096, steps=3000, learning_rate=1e-3, warmup=100,
            decoder_dim=64, decoder_depth=2, decoder_heads=4,
        ),
        "finetune": AudioMAERecipe(batch=16, steps=2000, learning_rate=1e-5, warmup=50),
    }  # fmt: skip

    def __init__(
        self, checkpoint: Checkpoint, recipe: AudioMAERecipe, device: torch.device, seed: int = 0
    ) -> None:
        self.is_new = "audiomae" not in checkpoint.configs
        if self.is_new:
            checkpoint = with_new_audiomae(checkpoint, seed)
        super().__init__(checkpoint, recipe, device, seed)

    @classmethod
    def usual_recipe(cls, checkpoint: Checkpoint) -> str:
        """Names "finetune", or the recipe of a new AudioMAE where the model has none."""
        if "audiomae" in checkpoint.configs:
            return "finetune"
        return "published" if config_for(checkpoint).dim >= PUBLISHED_DIM else "small"

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns that recipe for clips as long as AudioMAE reads."""
        config = checkpoint.configs.get("audiomae") or config_for(checkpoint)
        return replace(cls.recipes[cls.usual_recipe(checkpoint)], seconds=config.frames * HOP / SAMPLE_RATE)

    def trainable(self) -> tuple[str, ...]:
        return ("audiomae",)

    def make_helpers(self) -> dict[str, nn.Module]:
        """Builds the decoder."""
        recipe = self.recipe
        config = self.initial.configs["audiomae"]
        return {"decoder": Decoder(config, recipe.decoder_dim, recipe.decoder_depth, recipe.decoder_heads)}

    def warnings(self) -> list[str]:
        if self.is_new or not denoiser_is_trained(self.initial):
            return []
        return [
            f"GPT-2 and the denoiser of {self.initial.source} know the vectors of the AudioMAE that this "
            "changes; train the stages 'loa' and 'ldm' next"
        ]

    @torch.no_grad()
    def prepare(self, wave: Tensor) -> Tensor:
        """Computes the spectrograms of clips: (batch, frames, mels)."""
        wave = resample(wave, self.front_end.sample_rate, SAMPLE_RATE)
        return spectrograms(wave, self.initial.configs["audiomae"]).to(self.device)

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        loss = self.error(clips, generator)
        return {"loss": loss, "grad_norm": self.optimizer.step(loss, self.done)}

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"loss": self.error(clips, generator)}

    def error(self, fbank: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the squared error of the masked patches of spectrograms (batch, frames, mels)."""
        config = self.initial.configs["audiomae"]
        patches = math.prod(config.grid)
        order = torch.rand(self.whole_batch(fbank), patches, generator=generator).argsort(dim=1)
        order = self.ranks.rows(order).to(self.device)
        shown = min(max(1, round(patches * (1 - self.recipe.mask))), patches - 1)  # one of each at least
        visible, masked = order[:, :shown], order[:, shown:]
        with self.autocast():
            vectors = self.network("audiomae").last_blocks(fbank, visible)[-1]  # (batch, some, dim)
            predicted = self.helpers["decoder"](vectors, visible).float()  # (batch, patches, pixels)
        wanted = normalised_patches(fbank, config.patch)
        error = (predicted - wanted).square().mean(dim=2)  # (batch, patches)
        return error.gather(1, masked).mean()

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields nothing: AudioMAE makes no sounds."""
        return iter(())


def normalised_patches(fbank: Tensor, patch: int) -> Tensor:
    """Cuts spectrograms (batch, frames, mels) into patches of mean 0 and variance 1.

    Returns:
        (batch, patches, patch * patch), in the encoder's order: time first.
    """
    x = fbank.unfold(1, patch, patch).unfold(2, patch, patch)  # (batch, rows, columns, patch, patch)
    x = x.flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(x, dim=2, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()


def config_for(checkpoint: Checkpoint) -> AudioMAEConfig:
    """Chooses the sizes of a new AudioMAE: as many vectors as GPT-2 generates, as wide, for clips as long.

    For GPT-2 and clips of the published size, it is the published AudioMAE.

    Raises:
        ValueError: the model has no GPT-2.
    """
    gpt2: GPT2Config | None = checkpoint.configs.get("gpt2")
    if gpt2 is None:
        raise ValueError(f"{checkpoint.source} has no GPT-2, which would read what AudioMAE finds.")
    published = AudioMAEConfig()
    frames = checkpoint.seconds * SAMPLE_RATE / HOP
    rows_each = max(1, round(frames / published.patch / gpt2.new_vectors))
    size = replace(
        published, frames=published.patch * rows_each * gpt2.new_vectors, pool=(rows_each, published.pool[1])
    )
    if gpt2.dim >= PUBLISHED_DIM:
        return replace(size, dim=gpt2.dim, heads=gpt2.heads)
    return replace(size, dim=gpt2.dim, heads=gpt2.heads, depth=4, averaged=2)


def with_new_audiomae(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """Adds an untrained AudioMAE to a model; its weights depend on the seed alone."""
    config = config_for(checkpoint)
    state = partial(_initial_state, config, seed)
    return replace(
        checkpoint,
        configs=checkpoint.configs | {"audiomae": config},
        states=checkpoint.states | {"audiomae": state},
    )


def _initial_state(config: AudioMAEConfig, seed: int) -> dict[str, Tensor]:
    return initialize("audiomae", config, seed).state_dict()
