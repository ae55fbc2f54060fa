"""New words as vectors (textual inversion): what T5 reads in place of tokens where a prompt has the word.

Only these vectors are learnt, in the width of T5's input embedding. CLAP reads the text that the word is
like in its place: CLAP compares texts with sounds, and learnt vectors would not lie where it puts texts. The
denoiser reads the vectors through T5, and through GPT-2, which continues T5's output.

Source: Gal et al. 2022, "An Image is Worth One Word" (arXiv 2208.01618).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.tokenizers import T5Tokenizer

FORM = re.compile(r"<[\w-]+>")  # no longer word contains it


@dataclass(frozen=True, eq=False)
class Word:
    """A word that T5 reads as vectors."""

    text: str  # as prompts write it, such as "<zorp>"
    like: str  # what CLAP reads in its place
    vectors: Tensor  # float32 (count, T5's width)
    source: str = ""  # file or folder that it was read from
    sha256: str = ""  # of its file
    metadata: Mapping[str, str] = field(default_factory=dict)  # of its file: licence, base model, ...

    def describe(self) -> dict[str, Any]:
        """Returns what this word is, for the record beside a sound."""
        base = {key: self.metadata[key] for key in ("base_model", "license") if key in self.metadata}
        return {
            "word": self.text,
            "like": self.like,
            "vectors": len(self.vectors),
            "file": self.source,
            "sha256": self.sha256,
            **base,
        }


def require_new(text: str, tokenizer: T5Tokenizer | None, configs: Mapping[str, Any]) -> None:
    """Raises ArgumentError where a text cannot become a word of a model.

    Args:
        text: such as "<zorp>".
        tokenizer: the model's.
        configs: of its networks.
    """
    if not isinstance(text, str) or not FORM.fullmatch(text):
        raise ArgumentError("word", text, "be letters, digits, _ or - between < and >, such as <zorp>")
    if tokenizer is None or not {GPT2, T5} & configs["unet"].roles:
        raise ArgumentError("word", text, "be for a model with T5, which reads it; this model has none")
    if tokenizer.splitter.token_to_id(text) is not None:
        raise ArgumentError("word", text, "be new: T5's vocabulary has it already")


def for_clap(text: str, words: Sequence[Word]) -> str:
    """Returns a text as CLAP reads it: what each new word is like, in its place."""
    for word in words:
        text = text.replace(word.text, word.like)
    return text


def ids_of(words: Sequence[Word], vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns the ids of each word's vectors; they follow the vocabulary, in the order of the words."""
    ids, first = {}, vocabulary
    for word in words:
        ids[word.text] = tuple(range(first, first + len(word.vectors)))
        first += len(word.vectors)
    return ids


def stacked(words: Sequence[Word]) -> Tensor | None:
    """Returns the vectors of all words (vectors, dim), in the order of `ids_of`; None without words."""
    return torch.cat([word.vectors for word in words]) if words else None
