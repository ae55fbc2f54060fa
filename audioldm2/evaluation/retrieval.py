"""Text-to-audio retrieval: how often a text finds its own sound among all sounds."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.evaluation.distances import require_vectors

TIES = 12  # decimals: a matrix product may round the cosines of equal vectors differently, in the last bits
BLOCK = 256  # texts at once, so that memory stays flat


def text_to_audio(texts: Tensor, sounds: Tensor, own: Sequence[Sequence[int]], top: int) -> np.ndarray:
    """Compute for each text how probable one of its own sounds is among the `top` nearest sounds.

    Sounds at the same distance are in random order, and the probability over these orders is returned: CLAP
    vectors that are all equal give chance, whichever way they are sorted.

    Args:
        texts: vectors (texts, dim).
        sounds: vectors (sounds, dim).
        own: of each text, the indices of its sounds, at least one.
        top: how many sounds are looked at.

    Returns:
        float64 (texts,), 0 to 1.

    Raises:
        ArgumentError: `own` does not match the texts, or a vector has NaN.
    """
    of_texts, of_sounds = require_vectors("texts", texts, least=1), require_vectors("sounds", sounds, least=1)
    if len(own) != len(of_texts) or not all(own):
        given = f"has {sum(map(bool, own))} entries with a sound for {len(of_texts)} texts"
        raise ArgumentError("own", own, "have one a text", given=given)
    found = np.empty(len(of_texts))
    for first in range(0, len(of_texts), BLOCK):
        cosines = (of_texts[first : first + BLOCK] @ of_sounds.T).round(decimals=TIES)  # (texts, sounds)
        for place, row in enumerate(cosines, start=first):
            of_own = row[list(own[place])]
            best = of_own.max()
            nearer = int((row > best).sum())
            tied, own_tied = int((row == best).sum()), int((of_own == best).sum())
            left = min(max(top - nearer, 0), tied)  # places for the tied sounds
            # Missed if all of those places go to other sounds.
            found[place] = 1 - math.comb(tied - own_tied, left) / math.comb(tied, left)
    return found
