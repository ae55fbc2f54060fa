"""A new word for a trained model: the vectors that T5 reads in its place learn, all else is frozen.

The loss and the conditioning are those of stage 4 (`ldm`). What the run makes is a file of a few kilobytes;
the model that it is for is referred to by path and hash.

Source: Gal et al. 2022, "An Image is Worth One Word" (textual inversion, arXiv 2208.01618): the vectors begin
as that of a word that means something similar. Here these are the mean of T5's vectors of `like`, with a
little noise, so that several of them can differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from audioldm2.adapters import words
from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.words import Word, require_new
from audioldm2.training.adapting import AdaptingStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.randomness import generator

MOST_VECTORS = 64
NOISE = 0.1  # of the first vectors, as a part of T5's spread


@dataclass(frozen=True)
class WordRecipe(LDMRecipe):
    """The defaults suit the published models."""

    batch: int = 4
    steps: int = 1000
    learning_rate: float = 5e-3
    warmup: int = 0
    weight_decay: float = 0.0
    ema: float = 0.0
    prompt_dropout: float = 0.0  # the empty caption does not contain the word
    word: str = ""  # as captions and prompts write it, such as "<zorp>"
    like: str = "a sound"  # what it begins as, and what CLAP reads in its place
    vectors: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            vectors=(1 <= self.vectors <= MOST_VECTORS, f"be from 1 to {MOST_VECTORS}"),
            like=(bool(self.like.strip()), "be a text"),
            train_t5=(not self.train_t5, "be false: only the vectors learn"),
        )


class Vectors(nn.Module):
    """What is trained."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)  # (count, dim)


class WordStage(AdaptingStage):
    """Learns a word for the model called `base`."""

    name = "word"
    product = "word"
    flag = "--word"
    recipe: WordRecipe
    recipes: ClassVar = {
        "published": WordRecipe(),
        "small": WordRecipe(
            normalize=False, batch=16, seconds=2.56, pool=4096, learning_rate=2e-2, schedule="cosine",
            min_snr=5.0,
        ),
        "finetune": WordRecipe(),
    }  # fmt: skip

    def trainable(self) -> tuple[str, ...]:
        return ("t5",)

    def make_trainable(self, name: str) -> Vectors:
        """Returns the word's vectors, as they are at first."""
        recipe = self.recipe
        kind = TOKENIZERS["t5_tokenizer"]
        folder = self.initial.tokenizers.get("t5_tokenizer")
        tokenizer = None if folder is None else kind.from_folder(folder)
        require_new(recipe.word, tokenizer, self.initial.configs)
        assert tokenizer is not None, "a model without T5 cannot learn a word"
        table = self.network(name).embedding.weight.float()  # (vocabulary, dim)
        ids = tokenizer.encode(recipe.like)[: -len(tokenizer.after)]
        noise = torch.randn(recipe.vectors, table.shape[1], generator=generator("a new word", self.seed))
        return Vectors(table[ids].mean(0) + NOISE * table.std() * noise.to(self.device))

    def require_captions(self, captions: Sequence[str]) -> None:
        if not any(self.recipe.word in caption for caption in captions):
            raise ArgumentError("word", self.recipe.word, "be in captions of the data; it is in none of them")

    def word(self, vectors: Tensor) -> Word:
        """Returns the word with these vectors."""
        return Word(self.recipe.word, self.recipe.like, vectors, metadata=self.metadata())

    def words(self) -> tuple[Word, ...]:
        return (self.word(self.trained["t5"].vectors),)

    def checkpoint(self) -> Checkpoint:
        """Returns the model, which stays as it is."""
        return self.initial

    def save_model(self, folder: Path) -> None:
        """Writes the word into the run's folder."""
        state = self.ema["t5"].state if self.ema else self.trained["t5"].state_dict()
        word = self.word(state["vectors"])
        words.write(word, folder / self.product, force=True, durable=True, notes=self.notes())

    def noun(self) -> str:
        return f"the word {self.recipe.word}"

    def load_into(self, model: AudioLDM2, folder: Path) -> None:
        model.load_word(folder)
