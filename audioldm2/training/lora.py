"""An adapter for a trained model: low-rank matrices beside the denoiser's layers learn, all else is frozen.

The loss and the conditioning are those of stage 4 (`ldm`). What the run makes is a small folder in PEFT's
layout; the model that it adapts is referred to by path and hash.

With `LoRARecipe.prior_weight`, old clips (`--mix`) and clips whose caption is dropped are not learnt. There
the adapted denoiser is to predict what its base, without the adapter, predicts for the same noisy latent, so
that the model keeps what it knew, right or wrong. Without the adapter this error is 0, while the error
against the true noise keeps pulling on the adapter however well the base does.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685); rank, scale and learning rate as people use them with
Stable Diffusion and AudioLDM 2. The prior: Ruiz et al. 2022, "DreamBooth" (arXiv 2208.12242), section 4.2,
where the base's samples are learnt; Li & Hoiem 2016, "Learning without Forgetting" (arXiv 1606.09282), where
its predictions are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from audioldm2.adapters import lora, writing
from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.merging import merged
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.training.adapting import AdaptingStage
from audioldm2.training.ldm import Draws
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.losses import noise_loss
from audioldm2.training.mixing import Old
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
    prior_weight: float = 0.0  # of the error on old clips against what the base predicts; 0: they are learnt

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
            prior_weight=(self.prior_weight >= 0, "be at least 0"),
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

    def require_captions(self, captions: Sequence[str]) -> None:
        super().require_captions(captions)
        weight = self.recipe.prior_weight
        if weight and not any(isinstance(caption, Old) for caption in captions):
            raise ArgumentError("prior_weight", weight, "be 0 without old clips, which --mix gives")

    def denoising_errors(
        self, captions: list[str], draws: Draws, cond: Conditioning
    ) -> dict[str, tuple[float, Tensor]]:
        weight = self.recipe.prior_weight
        if not weight:
            return super().denoising_errors(captions, draws, cond)
        kept = [
            place
            for place, (caption, dropped) in enumerate(zip(captions, draws.dropped.tolist(), strict=True))
            if dropped or isinstance(caption, Old)
        ]
        noisy, alpha_bar = self.noisy(draws)
        target, is_kept = draws.eps.clone(), torch.zeros_like(alpha_bar, dtype=torch.bool)
        if kept:
            is_kept[kept] = True
            target[kept] = self.base_prediction(captions, draws, noisy, cond, kept)
        predicted = self.predict(noisy, draws.t, cond, recompute=self.recipe.recompute)
        error = partial(noise_loss, predicted, target, alpha_bar, self.recipe.min_snr)
        return {"noise": (1.0, error(~is_kept)), "prior": (weight, error(is_kept))}

    @torch.no_grad()
    def base_prediction(
        self, captions: list[str], draws: Draws, noisy: Tensor, cond: Conditioning, rows: list[int]
    ) -> Tensor:
        """Returns the noise that the model predicts without the adapter, for some rows of a batch."""
        with lora.switched_off(self.network(name) for name in self.trained):
            if set(self.trained) != {"unet"}:
                with self.autocast():
                    cond = self.encode(
                        captions, draws.dropped, draws.offset, draws.clap_dropped, loa=draws.loa,
                        heard=draws.heard,
                    )  # fmt: skip
            return self.predict(noisy[rows], draws.t[rows], cond[rows])

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
