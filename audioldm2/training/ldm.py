"""Stage 4: the denoiser learns to predict the noise in a latent, conditioned on the caption.

GPT-2 and the projection before it are trained together with the denoiser by its loss alone. CLAP and the VAE
are frozen, and so is T5 unless the recipe trains it. One caption in ten is replaced by the empty one, so that
the denoiser also learns the unconditional distribution, which guidance needs.

Source: Ho et al. 2020, "DDPM" (arXiv 2006.11239), algorithm 1; Ho & Salimans 2022 (arXiv 2207.12598) for the
empty captions; AudioLDM 2 (arXiv 2308.05734), section III. The paper first trains GPT-2 to predict AudioMAE
features of the sound. Only the original .pth files contain AudioMAE, and no network here reads it; here GPT-2
learns from the denoiser's loss.

Traps
- An empty caption is padded to the length of the caption that it replaces: guidance encodes a missing
  negative prompt that way, and GPT-2's output depends on the padding (see prompt/encode.py).
- Generation never pads prompts. But the text networks run once per distinct length in a batch, which for
  small networks takes half of a step. Lengths are therefore rounded up to a grid of every `LENGTH_STEP`th,
  whose offset is drawn at each step: GPT-2 sees every position, and every caption with no padding and with a
  little.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint, schedule_of
from audioldm2.models.unet import GPT2, T5
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import encode
from audioldm2.prompt.words import Word
from audioldm2.training.losses import noise_loss
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage

LENGTH_STEP = 4  # tokens between padded lengths
VALIDATION_TIMES = 8  # parts of the schedule; each validation clip is noised to one time in each


@dataclass(frozen=True)
class LDMRecipe(Recipe):
    """The defaults are upstream's, with Stable Diffusion's average of the weights."""

    normalize: bool = True
    steps: int = 1_500_000
    warmup: int = 5000
    weight_decay: float = 0.01
    ema: float = 0.9999
    prompt_dropout: float = 0.1  # fraction of captions that are replaced by the empty one
    min_snr: float | None = None  # gamma of min-SNR weighting, such as 5; null: no weighting
    train_t5: bool = False  # True for a T5 that was not pretrained

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(prompt_dropout=(0 <= self.prompt_dropout <= 1, "be from 0 to 1"))


class LDMStage(Stage[LDMRecipe]):
    """Trains the denoiser and the networks that condition nothing else."""

    name = "ldm"
    captioned = True
    generates = True
    recipes: ClassVar = {
        "published": LDMRecipe(),
        "small": LDMRecipe(
            normalize=False,
            batch=32, seconds=2.56, pool=16_384, steps=7500, learning_rate=1e-3, warmup=300,
            schedule="cosine", ema=0.999, min_snr=5.0, train_t5=True,
        ),
        "finetune": LDMRecipe(batch=8, steps=2000, learning_rate=1e-4, warmup=50, ema=0.995),
    }  # fmt: skip

    def __init__(
        self, checkpoint: Checkpoint, recipe: LDMRecipe, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(checkpoint, recipe, device, seed)
        self.tokenizers = {
            name: kind.from_folder(checkpoint.tokenizers[name]) if name in checkpoint.tokenizers else None
            for name, kind in TOKENIZERS.items()
        }
        self.schedule = schedule_of(checkpoint, checkpoint.source)
        self.alpha_bar = self.schedule.alpha_bar.float()  # (steps,)

    def trainable(self) -> tuple[str, ...]:
        roles = self.initial.configs["unet"].roles
        return (
            "unet",
            *(("projection", "gpt2") if GPT2 in roles else ()),
            *(("t5",) if {GPT2, T5} & roles and self.recipe.train_t5 else ()),
        )

    def frozen(self) -> tuple[str, ...]:
        config = self.initial.configs["unet"]
        return (
            "vae",
            *(("clap_text",) if config.film_dim or GPT2 in config.roles else ()),
            *(("t5",) if {GPT2, T5} & config.roles and not self.recipe.train_t5 else ()),
        )

    @torch.no_grad()
    def prepare(self, wave: Tensor) -> Tensor:
        """Encodes clips to means and standard deviations of latents: (batch, 2, channels, time, mel)."""
        with self.autocast():
            moments = self.network("vae").encode(self.mel(wave.to(self.device)).unsqueeze(1))
        return torch.stack(moments, dim=1).float()

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch = len(clips)
        mean, std = clips.unbind(dim=1)
        x0 = mean + std * self.randn_like(std, generator)  # (batch, channels, time, mel)
        eps = self.randn_like(x0, generator)
        whole = self.whole_batch(clips)
        t = self.ranks.rows(torch.randint(self.schedule.steps, (whole,), generator=generator))
        dropped = self.ranks.rows(torch.rand(whole, generator=generator)) < self.recipe.prompt_dropout
        alpha_bar = self.alpha_bar[t].to(self.device)
        signal, noise = (part.sqrt().view(batch, 1, 1, 1) for part in (alpha_bar, 1 - alpha_bar))
        with self.autocast():
            offset = int(torch.randint(LENGTH_STEP, (), generator=generator))
            cond = self.encode(captions, dropped, offset)
            predicted = self.network("unet")(signal * x0 + noise * eps, t.to(self.device), **cond.tensors)
        loss = noise_loss(predicted.float(), eps, alpha_bar, self.recipe.min_snr)
        return {"loss": loss, "grad_norm": self.optimizer.step(loss, self.done)}

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the error of the predicted noise, unweighted, over all times and in each part of them."""
        mean, std = clips.unbind(dim=1)
        x0 = mean + std * self.randn_like(std, generator)  # (batch, channels, time, mel)
        with self.autocast():
            cond = self.encode(captions, torch.zeros(len(clips), dtype=torch.bool))
        edges = torch.linspace(0, self.schedule.steps, VALIDATION_TIMES + 1).round().long().tolist()
        metrics = {}
        for first, end in pairwise(edges):
            t = self.ranks.rows(torch.randint(first, end, (self.whole_batch(clips),), generator=generator))
            eps = self.randn_like(x0, generator)
            alpha_bar = self.alpha_bar[t].to(self.device).view(-1, 1, 1, 1)
            noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
            with self.autocast():
                predicted = self.network("unet")(noisy, t.to(self.device), **cond.tensors)
            metrics[f"loss_t{first}-{end - 1}"] = (predicted.float() - eps).square().mean()
        return {"loss": torch.stack(list(metrics.values())).mean()} | metrics

    def checkpoint(self) -> Checkpoint:
        """Returns the whole model; it keeps the length and level of the training clips."""
        return replace(super().checkpoint(), seconds=self.recipe.seconds, normalized=self.recipe.normalize)

    def encode(self, captions: list[str], dropped: Tensor, offset: int | None = None) -> Conditioning:
        """Encodes captions, with gradients into the networks that are trained.

        Args:
            captions: one per clip.
            dropped: (batch,) bool, True where the empty caption replaces the caption.
            offset: pads captions to this many tokens, below LENGTH_STEP, or to a multiple of LENGTH_STEP
                more. None: no padding, as in generation.
        """
        cond = encode(
            self.networks, self.tokenizers["clap_tokenizer"], self.tokenizers["t5_tokenizer"], captions,
            [""] * len(captions),
            padded=int if offset is None else lambda tokens: tokens + (offset - tokens) % LENGTH_STEP,
            words=self.words(),
        )  # fmt: skip
        assert cond.negative is not None  # of the empty captions above
        empty, dropped = cond.negative.tensors, dropped.to(self.device)
        chosen = {
            name: torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), empty[name], tensor)
            for name, tensor in cond.tensors.items()
        }
        return replace(cond, negative=None, **chosen)

    def words(self) -> tuple[Word, ...]:
        """Returns new words that captions may contain."""
        return ()

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields a generated sound for each caption, always from the same noise."""
        result = model.generate(captions, audio_length_in_s=self.recipe.seconds)
        for i, caption in enumerate(captions):
            yield Sample(f"{i}-{caption}", result.audio[i, 0], result.mel[i])
