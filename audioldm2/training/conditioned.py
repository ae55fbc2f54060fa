"""What the stages share that read captions as generation does: encoders, cache, parts of a batch.

Frozen networks compute the same for a clip or a caption at every step, so the cache may hold it (cache.py).

Trap: generation never pads prompts. But the text networks run once per distinct length in a batch, which for
small networks takes half of a step. Lengths are therefore rounded up to a grid of every `LENGTH_STEP`th,
whose offset is drawn at each step: GPT-2 sees every position, and every caption with no padding and with a
little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from audioldm2.adapters.writing import hash_of
from audioldm2.audio import SAMPLE_RATE, resample
from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint
from audioldm2.language_of_audio import spectrograms
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.encode import TextEncoders
from audioldm2.prompt.words import Word
from audioldm2.training.cache import CachedTexts, TensorCache, cached_latents, training_cache
from audioldm2.training.cache_filling import fill
from audioldm2.training.data import Captioned
from audioldm2.training.recipe import Recipe
from audioldm2.training.speech import PhonemeIds, require_spoken
from audioldm2.training.stage import Stage

LENGTH_STEP = 4  # tokens between padded lengths
CACHED = ("vae", "audiomae", "clap_text", "t5")  # networks whose whole output a cache can hold


@dataclass(frozen=True)
class ConditionedRecipe(Recipe):
    """The settings that these stages share; the defaults are upstream's."""

    normalize: bool = True
    warmup: int = 5000
    weight_decay: float = 0.01
    clap_dropout: float = 0.1  # fraction of clips for which CLAP alone reads an empty text
    accumulate: int = 1  # parts of a batch that are computed one after the other; the loss stays the same
    frozen_bf16: bool = False  # hold the weights that do not learn in bfloat16; needs bf16 or fp16
    cache_gb: float = 0.0  # of latents, LOA and text vectors, kept on disk (cache.py); 0: none
    train_t5: bool = False  # True for a T5 that was not pretrained

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            clap_dropout=(0 <= self.clap_dropout <= 1, "be from 0 to 1"),
            accumulate=(1 <= self.accumulate <= self.batch, "be from 1 to the batch size"),
            frozen_bf16=(self.bf16 or self.fp16 or not self.frozen_bf16, "be false without bf16 or fp16"),
            cache_gb=(self.cache_gb >= 0, "be at least 0"),
        )


SomeRecipe = TypeVar("SomeRecipe", bound=ConditionedRecipe)


class ConditionedStage(Stage[SomeRecipe]):
    """A stage that reads captions. A subclass says what it computes of a clip, and its errors."""

    captioned = True

    def __init__(
        self, checkpoint: Checkpoint, recipe: SomeRecipe, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(checkpoint, recipe, device, seed)
        tokenizers: dict[str, Any] = {
            name: kind.from_folder(checkpoint.tokenizers[name])
            for name, kind in TOKENIZERS.items()
            if name in checkpoint.tokenizers
        }
        self.encoders = TextEncoders(
            self.networks,
            tokenizers.get("clap_tokenizer"),
            tokenizers.get("t5_tokenizer"),
            self.words(),
        )
        self.phoneme_ids = PhonemeIds(checkpoint) if self.speaks else None
        self.cache: TensorCache | None = None
        self.hashes: dict[str, str] = {}  # of the weights of networks
        if recipe.cache_gb:
            self.cache = TensorCache(training_cache(), recipe.cache_gb * 1e9)
            texts = [name for name in ("clap_text", "t5") if name in self.frozen()]
            self.encoders = CachedTexts(
                self.encoders, self.cache, {name: self._settings_of(name) for name in texts}
            )

    def words(self) -> tuple[Word, ...]:
        """Returns new words that captions may contain."""
        return ()

    @property
    def speaks(self) -> bool:
        """Whether the model has a phoneme encoder in T5's place."""
        return "phonemes" in self.initial.configs

    @property
    def continuing(self) -> tuple[str, ...]:
        """GPT-2 and what it alone reads."""
        used = GPT2 in self.initial.configs["unet"].roles
        return (("projection", "gpt2") if used else ()) + (("phonemes",) if self.speaks else ())

    @property
    def reads_t5(self) -> bool:
        """Whether captions go through T5."""
        return bool({GPT2, T5} & self.initial.configs["unet"].roles) and not self.speaks

    def require_captions(self, captions: Sequence[str]) -> None:
        require_spoken(captions, self.speaks, self.initial.source)

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the networks that do not learn, half where the recipe says so."""
        return torch.bfloat16 if self.recipe.frozen_bf16 and name in self.frozen() else torch.float32

    # What frozen networks compute ---------------------------------------------------------------------------

    @torch.no_grad()
    def loa(self, wave: Tensor) -> Tensor:
        """Computes the language of audio of clips (batch, samples): (batch, tokens, dim)."""
        return self.cached("audiomae", wave, self._loa).to(self.device)

    def _loa(self, wave: Tensor) -> Tensor:
        wave = resample(wave, self.front_end.sample_rate, SAMPLE_RATE)
        fbank = spectrograms(wave, self.initial.configs["audiomae"])  # (batch, frames, mels)
        with self.autocast():
            parts = [
                self.network("audiomae")(fbank[rows].to(self.device, self.dtype_of("audiomae")))
                for rows in self.parts(len(wave))
            ]
        return torch.cat(parts).float()

    def cached(self, name: str, wave: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns `compute(wave)`, which a frozen network computes of clips, by way of the cache if any."""
        if self.cache is None:
            return compute(wave)
        return cached_latents(self.cache, self._settings_of(name), wave, compute)

    def _settings_of(self, name: str) -> tuple[object, ...]:
        """What the output of a frozen network depends on, beside its input."""
        if name not in self.hashes:
            self.hashes[name] = hash_of(self.initial.states, [name])
        shapes: dict[str, tuple[object, ...]] = {
            "vae": (self.front_end, self.downsampling),
            "audiomae": (self.front_end.sample_rate, self.initial.configs.get("audiomae")),
        }
        return self.hashes[name], self.recipe.precision, self.dtype_of(name), *shapes.get(name, ())

    def compute_ahead(
        self, data: Captioned, validation: Captioned | None, report: Callable[[str], object],
        should_stop: Callable[[], object],
    ) -> None:  # fmt: skip
        """Fills the cache, and frees the networks whose whole output it holds."""
        if self.cache is None:
            return
        with self.autocast():
            complete = fill(
                cast(CachedTexts, self.encoders), self.prepare, data, validation, size=self.recipe.batch,
                pool=self.recipe.pool, report=report, should_stop=should_stop, ranks=self.ranks,
            )  # fmt: skip
        if complete:
            freed = [name for name in CACHED if name in self.frozen()]
            for name in freed:
                self.networks.release(name)
            report(f"cache: {self.cache.bytes / 1e9:.3g} GB; freed {', '.join(freed)}")

    # A step -------------------------------------------------------------------------------------------------

    def parts(self, clips: int) -> list[slice]:
        """Returns the rows of each part of a batch, as many parts as the recipe wants."""
        size = -(-clips // self.recipe.accumulate)
        return [slice(first, first + size) for first in range(0, clips, size)]

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        draws = self.draw(clips, generator)
        metrics: dict[str, Tensor] = {}

        def parts() -> Iterator[Tensor]:
            for rows in self.parts(len(clips)):
                share = len(captions[rows]) / len(clips)
                errors = self.errors(captions[rows], draws.of(rows))
                loss = share * torch.stack([weight * error for weight, error in errors.values()]).sum()
                found = {"loss": loss}
                if self.helpers or len(errors) > 1:
                    found |= {name: share * error for name, (_, error) in errors.items()}
                for name, value in found.items():
                    metrics[name] = metrics.get(name, 0.0) + value.detach()
                yield loss

        grad_norm = self.optimizer.step(parts(), self.done)
        return metrics | {"grad_norm": grad_norm}

    def draw(self, clips: Tensor, generator: torch.Generator) -> Any:
        """Draws what a step needs for prepared clips; `draws.of(rows)` are those of some of them."""
        raise NotImplementedError

    def errors(self, captions: list[str], draws: Any) -> dict[str, tuple[float, Tensor]]:
        """Computes what the loss is a sum of: names to weights and errors."""
        raise NotImplementedError

    def draw_bools(self, clips: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        """Draws for each clip whether something happens to it; nothing is drawn at rate 0."""
        if not rate:
            return torch.zeros(len(clips), dtype=torch.bool)
        return self.ranks.rows(torch.rand(self.whole_batch(clips), generator=generator) < rate)

    def padded_lengths(self, captions: Sequence[str], offset: int | None) -> list[int]:
        """Returns how many tokens each caption is padded to.

        Args:
            captions: warned of, if they are cut.
            offset: pads to this many tokens, below LENGTH_STEP, or to a multiple of LENGTH_STEP more. None:
                no padding, as in generation.
        """
        lengths = []
        for caption in captions:
            self.encoders.warn_if_cut(caption)
            length = self.encoders.length(caption)
            lengths.append(length + (0 if offset is None or self.speaks else (offset - length) % LENGTH_STEP))
        return lengths
