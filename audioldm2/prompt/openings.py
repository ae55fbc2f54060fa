"""Given vectors in place of the first, or of all, that GPT-2 generates: a sound as a prompt.

Source: AudioLDM 2 (arXiv 2308.05734), in-context learning, where GPT-2 continues the vectors of a sound;
upstream's `generate_partial`, which nothing calls, does so with the first quarter of them.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from audioldm2.errors import ArgumentError, require_whole
from audioldm2.models.gpt2 import GPT2Config


@dataclass(frozen=True, eq=False)
class Opening:
    """The first vectors of a row; equal only to itself, so that rows can be compared."""

    vectors: Tensor  # (opened, gpt2_dim)


def openings(loa: Any, heard: Any, prompts: int, gpt2: GPT2Config | None) -> list[Opening] | None:
    """Return what GPT-2 continues, one entry for each prompt; None if it generates all of its vectors.

    Args:
        loa: floats (new_vectors, dim), or (1, ...) or (prompts, new_vectors, dim); None for no sound.
        heard: how many of the vectors are kept; None for all.
        prompts: how many there are.
        gpt2: the config, or None for a denoiser that does not read GPT-2's vectors.

    Raises:
        ArgumentError: LOA of another shape, not finite, or for a model without GPT-2; `heard` without LOA.
    """
    if loa is None:
        if heard is not None:
            raise ArgumentError("heard", heard, "be left out without a sound, whose vectors it counts")
        return None
    if gpt2 is None:
        allowed = "be left out: this model's denoiser reads no vectors of GPT-2"
        raise ArgumentError("loa", loa, allowed, given="is given")
    shape = gpt2.new_vectors, gpt2.dim
    rows = "(1, ...)" if prompts == 1 else f"(1, ...) or ({prompts}, ...)"
    allowed = f"be finite floats {shape}, or {rows} of these, as `hear` returns them"
    if not isinstance(loa, Tensor) or not loa.is_floating_point():
        given = None if isinstance(loa, (str, int, float)) else f"is a {type(loa).__name__}"
        raise ArgumentError("loa", loa, allowed, given=given)
    vectors = loa.detach()
    vectors = vectors[None] if vectors.ndim == 2 else vectors
    if vectors.ndim != 3 or tuple(vectors.shape[1:]) != shape or len(vectors) not in (1, prompts):
        raise ArgumentError("loa", loa, allowed, given=f"has shape {tuple(loa.shape)}")
    if not vectors.isfinite().all():
        raise ArgumentError("loa", loa, allowed, given="holds NaN or infinity")
    kept = gpt2.new_vectors if heard is None else require_whole("heard", heard, 0, gpt2.new_vectors)
    if not kept:
        return None
    found = [Opening(each[:kept]) for each in vectors]
    return found * prompts if len(found) == 1 else found
