"""Stage 3: CLAP's two branches learn to put a sound and its caption at the same place.

In a batch every sound has to find its caption among all captions, and every caption its sound. Captions
that are equal are equally right. AudioLDM 2 needs the text branch to be told a prompt, and both to rank
candidates. Where the text branch is done, as after the denoiser has learnt to read it, the audio branch
can learn alone.

Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining" (arXiv 2211.06687); Radford et
al. 2021, "CLIP" (arXiv 2103.00020); Zhai et al. 2022, "LiT" (arXiv 2111.07991), for one branch alone.

Trap: CLAP hears in dB, down to 100 below full scale. Of clips with silence behind them it learns that any
hiss is noise; sounds that are made, which it ranks, are never as silent. Noise under the clips tells it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from audioldm2.audio import clap_log_mel, resample
from audioldm2.checkpoints.storage import Checkpoint, hearing_of
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.tokenizers import ClapTokenizer, pad
from audioldm2.training.losses import contrastive
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample, Stage

QUIET, SLOPE = (25.0, 85.0), 15.0  # dB: of noise under clips, and of its lowest and highest band apart
SHARPEST = math.log(100)  # of the logarithmic factor on cosines, as in CLIP, section 2.5


@dataclass(frozen=True)
class ClapRecipe(Recipe):
    """Defaults: LAION's, but for the batch of 2,304, which is several GPUs' work."""

    batch: int = 64  # the more, the harder the choice
    seconds: float = 10.0  # at most, for CLAP hears no more
    learning_rate: float = 1e-4
    warmup: int = 3200
    cosine: bool = True
    betas: tuple[float, ...] = (0.99, 0.9)
    weight_decay: float = 0.0
    train_text: bool = True  # False: sounds learn to be where the text branch, as it is, puts captions
    noise: float = 0.0  # of the clips: they have noise under them, drawn anew at each step

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise is {self.noise}; it has to be from 0 to 1.")
        if self.seconds > 10:
            raise ValueError(f"seconds is {self.seconds}; CLAP hears 10 at most.")


class ClapStage(Stage):
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
    }
    recipe: ClapRecipe

    def __init__(self, checkpoint: Checkpoint, recipe: ClapRecipe, device: torch.device, seed: int = 0):
        super().__init__(checkpoint, recipe, device, seed)
        self.tokenizer = ClapTokenizer.from_folder(checkpoint.tokenizers["clap_tokenizer"])
        self.hearing = hearing_of(checkpoint, checkpoint.source)

    def trains(self) -> tuple[str, ...]:
        return ("clap_text", "clap_audio") if self.recipe.train_text else ("clap_audio",)

    def reads(self) -> tuple[str, ...]:
        return () if self.recipe.train_text else ("clap_text",)

    @property
    def frames_heard(self) -> int:
        """Of what CLAP hears of a clip: the clip again and again, until silence fills the 10 seconds."""
        rate, clip = self.hearing.sample_rate, round(self.recipe.seconds * self.hearing.sample_rate)
        return 10 * rate // clip * clip // self.hearing.hop

    def prepare(self, wave: Tensor) -> Tensor:
        """What CLAP hears of clips: (batch, frames, mels) in dB."""
        wave = resample(wave.to(self.device), self.front_end.sample_rate, self.hearing.sample_rate)
        return clap_log_mel(wave, self.hearing)

    def losses(self, clips: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        text, audio = self.network("clap_text"), self.trained["clap_audio"]
        tokens = pad([self.tokenizer.encode(caption) for caption in captions], self.tokenizer.pad_id)
        if self.recipe.noise:
            noisy, heard = round(self.recipe.noise * len(clips)), self.frames_heard
            clips = clips.clone()
            clips[:noisy, :heard] = with_noise(clips[:noisy, :heard], drawn)
        with self.autocast():
            sounds = audio(clips)  # (batch, dim)
            texts = text(tokens.ids.to(self.device), tokens.mask.to(self.device))  # (batch, dim)
        sounds, texts = sounds.float(), texts.float()
        same = torch.tensor([[one == other for other in captions] for one in captions], device=self.device)
        loss = contrastive(sounds, texts, audio.logit_scale, text.logit_scale, same)
        gradient = self.descent.step(loss, self.done)
        with torch.no_grad():
            for branch in self.trained.values():
                branch.logit_scale.clamp_(max=SHARPEST)
            found = (sounds @ texts.T).argmax(dim=1)  # the caption that each sound chooses
            right = same.gather(1, found[:, None]).float().mean()
        return {"loss": loss, "right": right, "scale": audio.logit_scale.exp(), "gradient": gradient}

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Nothing to hear: "right" in the metrics is the part of sounds that find their captions."""
        return iter(())


def with_noise(clips: Tensor, drawn: torch.Generator) -> Tensor:
    """Clips as CLAP hears them (batch, frames, mels), in dB, with noise of a random colour under them.

    It lies QUIET dB under the loudest band: that of the whole clip, that of each frame, or in between.
    """
    batch, frames, bands = clips.shape
    chance, loudest = partial(torch.rand, generator=drawn), clips.amax(dim=2, keepdim=True).cpu()
    follows = chance(batch, 1, 1)
    level = torch.lerp(loudest.amax(dim=1, keepdim=True), loudest, follows)  # (batch, frames, 1)
    level = level - torch.lerp(*map(torch.tensor, QUIET), chance(batch, 1, 1))
    colour = SLOPE * (2 * chance(batch, 1, 1) - 1) * torch.linspace(-1, 1, bands)  # (batch, 1, bands)
    power = -torch.log1p(-chance(batch, frames, bands)) + 1e-10  # of noise, within each band
    noise = (level + colour + power.log10() * 10).to(clips)
    to_log = math.log(10) / 10
    return torch.logaddexp(clips * to_log, noise * to_log) / to_log
