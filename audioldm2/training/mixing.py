"""Old sounds among new ones, so that a model keeps what it knew while it learns."""

import math

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.training.data import Captioned, digest_of, distinct
from audioldm2.training.spoken import Spoken

SHARE = 0.25  # of the clips, unless another is given


class Old(str):
    """The caption of an old sound. What reads captions alone reads it as the text that it is."""


class OldSpoken(Spoken, Old):
    """The caption of old speech."""


def as_old(caption: str) -> str:
    """Marks a caption as that of an old sound."""
    if isinstance(caption, Spoken):
        return OldSpoken(caption, caption.transcription, caption.phonemes)
    return Old(caption)


class Mixed:
    """Two sources of clips, of which the second gives a fixed share.

    Clip i of the run comes from the second source exactly where floor((i + 1) * share) > floor(i * share), so
    the share is exact in the long run for any batch size, and a batch depends on its step alone. Each source
    is read in its own order, clip by clip. Captions of the second are `Old`.

    Args:
        new: most of the clips.
        old: the rest.
        share: of clips from `old`, above 0 and below 1.
    """

    def __init__(self, new: Captioned, old: Captioned, share: float) -> None:
        if not 0 < share < 1:
            raise ArgumentError("mix", share, "have a share above 0 and below 1")
        self.new, self.old, self.share = new, old, share

    def __repr__(self) -> str:
        return f"{self.new!r}, with {self.share:.0%} of {self.old!r}"

    def digest(self) -> str:
        """Returns a hash of the sounds and captions of both sources."""
        return f"{digest_of(self.new)} {digest_of(self.old)}"

    def distinct(self) -> int | None:
        """Returns how many clips there are before all of both sources have been given."""
        new, old = distinct(self.new), distinct(self.old)
        if new is None or old is None:
            return None
        return math.ceil(max(new / (1 - self.share), old / self.share)) + 1

    def captions(self) -> list[str]:
        """Returns the captions of both sources, those of the second as `Old`."""
        return [*self.new.captions(), *map(as_old, self.old.captions())]

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, float32 (size, samples), and their captions."""
        return self.part(step, size, range(size))

    def part(self, step: int, size: int, places: range) -> tuple[Tensor, list[str]]:
        """Returns the clips at some places of `batch` and their captions."""
        clips = [self._clip(step * size + place) for place in places]
        return torch.cat([wave for wave, _ in clips]), [caption for _, (caption,) in clips]

    def _clip(self, index: int) -> tuple[Tensor, list[str]]:
        before, after = (math.floor(i * self.share) for i in (index, index + 1))
        if after > before:
            wave, captions = self.old.batch(before, 1)
            return wave, [as_old(caption) for caption in captions]
        return self.new.batch(index - before, 1)


def parse_mix(text: str) -> tuple[str, float]:
    """Reads FOLDER or FOLDER:SHARE; a colon that no number follows belongs to the folder's name."""
    folder, colon, share = text.rpartition(":")
    try:
        return (folder, float(share)) if colon and folder else (text, SHARE)
    except ValueError:
        return text, SHARE
