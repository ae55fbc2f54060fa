"""An adapter for a trained model: low-rank matrices beside the denoiser's layers learn, all else is frozen.

The loss and the conditioning are those of stage 4 (`ldm`). What the run makes is a small folder in PEFT's
layout; the model that it adapts is referred to by path and hash.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685); rank, scale and learning rate as people use them with
Stable Diffusion and AudioLDM 2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from audioldm2.adapters import lora, writing
from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.merging import merged
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.adapting import AdaptingStage
from audioldm2.training.ldm import LDMRecipe
from audioldm2.training.randomness import generator

SMALLEST_RANK, LARGEST_RANK = 1, 1024


@dataclass(frozen=True)
class LoRARecipe(LDMRecipe):
    """The defaults suit the published models: 2.9 million parameters in the base one."""

    batch: int = 4
    steps: int = 500
    learning_rate: float = 1e-4
    warmup: int = 0
    ema: float = 0.0
    rank: int = 8  # of every adapter
    alpha: float | None = None  # the adapter's scale times its rank; null: the rank, so that the scale is 1
    layers: str = "attention"  # which layers learn: "attention", "attention+ff" or "all"
    adapted: tuple[str, ...] = ("unet",)  # networks that learn: of "unet", "gpt2", "projection"
    half: bool = True  # write the adapter in float16; what resuming needs stays float32

    def __post_init__(self) -> None:
        super().__post_init__()
        known = set(lora.NETWORKS)
        self.require(
            rank=(SMALLEST_RANK <= self.rank <= LARGEST_RANK, f"be from {SMALLEST_RANK} to {LARGEST_RANK}"),
            alpha=(self.alpha is None or self.alpha > 0, "be above 0"),
            layers=(self.layers in lora.LAYER_SETS, f"be one of {', '.join(lora.LAYER_SETS)}"),
            adapted=(
                bool(self.adapted)
                and set(self.adapted) <= known
                and len(set(self.adapted)) == len(self.adapted),
                f"name some of {', '.join(lora.NETWORKS)}, each once",
            ),
            train_t5=(not self.train_t5, "be false: only the adapter learns"),
        )


class LoRAStage(AdaptingStage):
    """Trains an adapter for the model called `base`."""

    name = "lora"
    product = "adapter"
    flag = "--lora"
    recipe: LoRARecipe
    recipes: ClassVar = {
        "published": LoRARecipe(),
        "small": LoRARecipe(
            normalize=False, unconditional="reference", clap_dropout=0.0,
            batch=16, seconds=2.56, pool=4096, steps=1500, learning_rate=1e-3, schedule="cosine", ema=0.99,
            min_snr=5.0,
        ),
        "finetune": LoRARecipe(),
    }  # fmt: skip

    def trainable(self) -> tuple[str, ...]:
        return tuple(name for name in lora.NETWORKS if name in self.recipe.adapted)

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the weights below the adapters too, which are float32 themselves."""
        return torch.bfloat16 if self.recipe.frozen_bf16 else torch.float32

    def make_trainable(self, name: str) -> nn.Module:
        """Returns the matrices of the adapters that it puts on a network."""
        return lora.add_trainable(
            self.network(name),
            name,
            self.recipe.rank,
            which=self.recipe.layers,
            alpha=self.recipe.alpha,
            generator=generator(f"adapter of {name}", self.seed),
        )

    def adapter(self) -> Adapter:
        """Returns the adapter as it is now: the averages of its matrices if there are any."""
        layers = {
            name: trained.low_ranks(self.ema[name].state if name in self.ema else None)
            for name, trained in self.trained.items()
        }
        return Adapter("adapter", layers, metadata=self.metadata())

    def checkpoint(self) -> Checkpoint:
        """Returns the whole model with the adapter folded into its weights."""
        return merged(self.initial, [self.adapter()])

    def save_model(self, folder: Path) -> None:
        """Writes the adapter into the run's folder."""
        dtype = torch.float16 if self.recipe.half else torch.float32
        writing.write(
            self.adapter(), folder / self.product, self.initial.configs, dtype=dtype, force=True,
            durable=True, notes=self.notes(),
        )  # fmt: skip

    def noun(self) -> str:
        return "the adapter"

    def load_into(self, model: AudioLDM2, folder: Path) -> None:
        model.load_lora(folder)
