"""Stage 4: the denoiser learns to see the noise in a latent, told what GPT-2 and T5 make of the caption.

GPT-2 and the projection before it learn with the denoiser, by its loss alone; CLAP and the VAE stay as they
are, and so does T5 unless the recipe says otherwise. One caption in ten is replaced by the empty one, so that
the denoiser also knows how any sound looks: guidance needs both.

Source: Ho et al. 2020, "DDPM" (arXiv 2006.11239), algorithm 1; Ho & Salimans 2022 (arXiv 2207.12598) for the
empty captions; AudioLDM 2 (arXiv 2308.05734), section III. There GPT-2 is first trained to predict AudioMAE's
features of the sound, which no published checkpoint contains; here it finds out what is useful to say.

Traps
- An empty caption is padded to the length of the caption in whose place it stands, because that is how
  guidance encodes an absent negative prompt, and what GPT-2 makes depends on the padding (see `encoding`).
- In use no prompt is padded, but for each length in a batch the text networks run once, which for small ones
  is half of a step. So lengths are rounded up to the next of every `ROOM`th, and which these are is drawn for
  each step: GPT-2 learns every position, and each caption with no padding and with a little.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint, schedule_of
from audioldm2.models.unet import GPT2, T5
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import encode
from audioldm2.training.losses import noise_loss
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage

ROOM = 4  # tokens from one padded length to the next


@dataclass(frozen=True)
class LDMRecipe(Recipe):
    """Defaults: upstream's, and Stable Diffusion's average."""

    steps: int = 1_500_000
    warmup: int = 5000
    weight_decay: float = 0.01
    ema: float = 0.9999
    prompt_dropout: float = 0.1  # the part of captions that are replaced by the empty one
    min_snr: float | None = None  # gamma of min-SNR weighting, such as 5; null: all times count alike
    train_t5: bool = False  # for a T5 that was not trained elsewhere

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"prompt_dropout is {self.prompt_dropout}; it has to be from 0 to 1.")


class LDMStage(Stage):
    name = "ldm"
    captioned = True
    recipes: ClassVar = {
        "published": LDMRecipe(),
        "small": LDMRecipe(
            batch=32, seconds=2.56, pool=16_384, steps=7500, learning_rate=1e-3, warmup=300, cosine=True,
            ema=0.999, min_snr=5.0, train_t5=True,
        ),
    }  # fmt: skip
    recipe: LDMRecipe

    def __init__(self, checkpoint: Checkpoint, recipe: LDMRecipe, device: torch.device, seed: int = 0):
        super().__init__(checkpoint, recipe, device, seed)
        self.tokenizers = {
            name: kind.from_folder(checkpoint.tokenizers[name]) if name in checkpoint.tokenizers else None
            for name, kind in TOKENIZERS.items()
        }
        self.schedule = schedule_of(checkpoint, checkpoint.source)
        self.alpha_bar = self.schedule.alpha_bar.float()  # (steps,)

    def trains(self) -> tuple[str, ...]:
        """The denoiser and what speaks to it alone."""
        roles = self.start.configs["unet"].roles
        return (
            "unet",
            *(("projection", "gpt2") if GPT2 in roles else ()),
            *(("t5",) if {GPT2, T5} & roles and self.recipe.train_t5 else ()),
        )

    def reads(self) -> tuple[str, ...]:
        hears = self.start.configs["unet"]
        return (
            "vae",
            *(("clap_text",) if hears.film_dim or GPT2 in hears.roles else ()),
            *(("t5",) if {GPT2, T5} & hears.roles and not self.recipe.train_t5 else ()),
        )

    @torch.no_grad()
    def prepare(self, wave: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of clips: (batch, 2, channels, time, mel)."""
        with self.autocast():
            moments = self.network("vae").encode(self.mel(wave.to(self.device)).unsqueeze(1))
        return torch.stack(moments, dim=1).float()

    def losses(self, clips: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        batch = len(clips)
        mean, std = clips.unbind(dim=1)
        x0 = mean + std * self.randn_like(std, drawn)  # (batch, channels, time, mel)
        eps = self.randn_like(x0, drawn)
        t = torch.randint(self.schedule.steps, (batch,), generator=drawn)
        dropped = torch.rand(batch, generator=drawn) < self.recipe.prompt_dropout
        alpha_bar = self.alpha_bar[t].to(self.device)
        signal, noise = (part.sqrt().view(batch, 1, 1, 1) for part in (alpha_bar, 1 - alpha_bar))
        with self.autocast():
            told = self.encode(captions, dropped, int(torch.randint(ROOM, (), generator=drawn)))
            predicted = self.trained["unet"](signal * x0 + noise * eps, t.to(self.device), **told.tensors)
        loss = noise_loss(predicted.float(), eps, alpha_bar, self.recipe.min_snr)
        return {"loss": loss, "gradient": self.descent.step(loss, self.done)}

    def checkpoint(self) -> Checkpoint:
        """The whole model as it is now; it makes sounds as long as the clips that it learns from."""
        return replace(super().checkpoint(), seconds=self.recipe.seconds)

    def encode(self, captions: list[str], dropped: Tensor, room: int | None = None) -> Conditioning:
        """What the denoiser is told, with gradients into what learns.

        dropped: (batch,) bool, True where the empty caption stands in the caption's place.
        room:    captions are padded to that many tokens, below ROOM, or a multiple of ROOM more; None: to
                 nothing, as in use.
        """
        told = encode(
            self.networks, *self.tokenizers.values(), captions, [""] * len(captions),
            padded=int if room is None else lambda tokens: tokens + (room - tokens) % ROOM,
        )  # fmt: skip
        nothing, dropped = told.negative.tensors, dropped.to(self.device)
        chosen = {
            name: torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), nothing[name], tensor)
            for name, tensor in told.tensors.items()
        }
        return replace(told, negative=None, **chosen)

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """What the model makes of each caption, always from the same noise."""
        result = model.generate(captions, audio_length_in_s=self.recipe.seconds)
        for i, caption in enumerate(captions):
            yield Sample(f"{i}-{caption}", result.audio[i, 0], result.mel[i])
