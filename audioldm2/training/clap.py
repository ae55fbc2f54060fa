"""Stage 3: CLAP's two encoders learn to embed a sound and its caption at the same point.

Every sound of a batch has to find its caption among all captions, and every caption its sound; equal captions
are equally correct. AudioLDM 2 conditions on the text embedding and ranks candidates with both. The audio
encoder can be trained alone where the text encoder is fixed, for example because a denoiser was trained on
it.

Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining" (arXiv 2211.06687); Radford et
al. 2021, "CLIP" (arXiv 2103.00020); Zhai et al. 2022, "LiT" (arXiv 2111.07991), for one encoder alone.

Trap: CLAP's input is in dB and goes down to -100 dB full scale. From clips with digital silence it learns
that any hiss means noise, but generated sounds, which it has to rank, are never that silent. Noise mixed into
the training clips prevents this.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from audioldm2.audio import clap_log_mel, resample
from audioldm2.checkpoints.storage import Checkpoint, clap_mel_of
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.tokenizers import ClapTokenizer, pad
from audioldm2.training.losses import contrastive_loss
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage
from audioldm2.training.weight_init import denoiser_is_trained

NOISE_LEVEL = (25.0, 85.0)  # dB by which the added noise lies below the clip
NOISE_SLOPE = 15.0  # dB, the most that its lowest or highest band differs from the middle
MAX_LOGIT_SCALE = math.log(100)  # as in CLIP, section 2.5
MAX_SECONDS = 10.0  # CLAP's input length


@dataclass(frozen=True)
class ClapRecipe(Recipe):
    """The defaults are LAION's except for the batch of 2,304, which needs several GPUs."""

    batch: int = 64  # more clips make the choice harder
    seconds: float = MAX_SECONDS
    learning_rate: float = 1e-4
    warmup: int = 3200
    schedule: str = "cosine"
    betas: tuple[float, ...] = (0.99, 0.9)
    weight_decay: float = 0.0
    train_text: bool = True  # False: freeze the text encoder and train the audio encoder towards it
    noise: float = 0.0  # fraction of clips with noise mixed in, redrawn at each step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            noise=(0 <= self.noise <= 1, "be from 0 to 1"),
            seconds=(self.seconds <= MAX_SECONDS, f"be at most {MAX_SECONDS:g}, the length of CLAP's input"),
        )


class ClapStage(Stage[ClapRecipe]):
    """Trains CLAP's audio encoder and, unless it is frozen, the text encoder."""

    name = "clap"
    captioned = True
    recipes: ClassVar = {
        "published": ClapRecipe(),
        "small": ClapRecipe(
            seconds=2.56,
            pool=16_384,
            steps=3000,
            learning_rate=1e-3,
            warmup=100,
            betas=(0.9, 0.99),
            noise=0.7,
        ),
        # The text encoder stays: a denoiser is conditioned on it.
        "finetune": ClapRecipe(
            batch=32,
            steps=2000,
            learning_rate=1e-5,
            warmup=50,
            betas=(0.9, 0.99),
            ema=0.995,
            train_text=False,
            noise=0.7,
        ),
    }

    def __init__(
        self, checkpoint: Checkpoint, recipe: ClapRecipe, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(checkpoint, recipe, device, seed)
        self.tokenizer = ClapTokenizer.from_folder(checkpoint.tokenizers["clap_tokenizer"])
        self.clap_mel = clap_mel_of(checkpoint, checkpoint.source)

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns the recipe "finetune" for clips as long as the model's sounds, or as CLAP's input."""
        return replace(cls.recipes["finetune"], seconds=min(checkpoint.seconds, MAX_SECONDS))

    def warnings(self) -> list[str]:
        if not self.recipe.train_text or not denoiser_is_trained(self.initial):
            return []
        return [
            f"the denoiser of {self.initial.source} is conditioned on the text encoder that this changes; "
            "train the stage 'ldm' next, or set train_text to false"
        ]

    def trainable(self) -> tuple[str, ...]:
        return ("clap_text", "clap_audio") if self.recipe.train_text else ("clap_audio",)

    def frozen(self) -> tuple[str, ...]:
        return () if self.recipe.train_text else ("clap_text",)

    @property
    def sounding_frames(self) -> int:
        """Mel frames that hold the clip: CLAP's front end repeats it, then fills the 10 s with silence."""
        rate = self.clap_mel.sample_rate
        clip = round(self.recipe.seconds * rate)
        return 10 * rate // clip * clip // self.clap_mel.hop

    def prepare(self, wave: Tensor) -> Tensor:
        """Computes CLAP's input for clips: (batch, frames, mels) in dB."""
        wave = resample(wave.to(self.device), self.front_end.sample_rate, self.clap_mel.sample_rate)
        return clap_log_mel(wave, self.clap_mel)

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        metrics = self.compare(clips, captions, generator)
        grad_norm = self.optimizer.step(metrics["loss"], self.done)
        with torch.no_grad():
            for encoder in self.trained.values():
                encoder.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        scale = self.trained["clap_audio"].logit_scale.exp()
        return metrics | {"scale": scale, "grad_norm": grad_norm}

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return self.compare(clips, captions, generator)

    def compare(self, clips: Tensor, captions: list[str], generator: torch.Generator) -> dict[str, Tensor]:
        """Computes the contrastive loss of clips, some with noise, and how many find their caption."""
        text, audio = self.network("clap_text"), self.trained["clap_audio"]
        tokens = pad([self.tokenizer.encode(caption) for caption in captions], self.tokenizer.pad_id)
        if self.recipe.noise:
            noisy, frames = round(self.recipe.noise * self.whole_batch(clips)), self.sounding_frames
            first = self.ranks.places(self.whole_batch(clips)).start
            clips, ours = clips.clone(), max(0, noisy - first)
            clips[:ours, :frames] = add_noise(clips[:ours, :frames], generator, noisy, first)
        with self.autocast():
            sounds = audio(clips)  # (batch, dim)
            texts = text(tokens.ids.to(self.device), tokens.mask.to(self.device))  # (batch, dim)
        sounds, texts = self.ranks.gather(sounds.float()), self.ranks.gather(texts.float())
        captions = self.ranks.gather_list(captions)
        same = torch.tensor([[one == other for other in captions] for one in captions], device=self.device)
        loss = contrastive_loss(sounds, texts, audio.logit_scale, text.logit_scale, same)
        nearest = (sounds @ texts.T).argmax(dim=1)  # the caption that each sound chooses
        return {"loss": loss, "accuracy": same.gather(1, nearest[:, None]).float().mean()}

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields nothing: CLAP makes no sounds. See "accuracy" in the metrics instead."""
        return iter(())


def add_noise(clips: Tensor, generator: torch.Generator, whole: int | None = None, first: int = 0) -> Tensor:
    """Mixes noise of a random level and spectral slope into mel spectrograms.

    The level is relative to the loudest band of the whole clip, of each frame, or in between.

    Args:
        clips: (batch, frames, mels) in dB.
        generator: of the noise, on the CPU.
        whole: for how many clips noise is drawn; None: for these.
        first: where these lie among them.

    Returns:
        Spectrograms of the same shape.
    """
    batch, frames, bands = clips.shape
    whole = batch if whole is None else whole

    def uniform(*sizes: int) -> Tensor:
        """Draws for all clips, and returns what is for these: (batch, *sizes)."""
        return torch.rand(whole, *sizes, generator=generator)[first : first + batch]

    peak = clips.amax(dim=2, keepdim=True).cpu()  # (batch, frames, 1)
    follow = uniform(1, 1)  # 0: constant over time; 1: follows the clip's level
    level = torch.lerp(peak.amax(dim=1, keepdim=True), peak, follow)  # (batch, frames, 1)
    least, most = (torch.tensor(each) for each in NOISE_LEVEL)
    level = level - torch.lerp(least, most, uniform(1, 1))
    slope = NOISE_SLOPE * (2 * uniform(1, 1) - 1) * torch.linspace(-1, 1, bands)  # (batch, 1, bands)
    power = -torch.log1p(-uniform(frames, bands)) + 1e-10  # exponential, as the power of Gaussian noise
    noise = (level + slope + power.log10() * 10).to(clips)
    to_log = math.log(10) / 10
    return torch.logaddexp(clips * to_log, noise * to_log) / to_log
