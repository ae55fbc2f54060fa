"""Figures that judge sounds: CLAP scores, families, and the Frechet distance from sounds of reference.

`audioldm2 evaluate` prints them. All are computed from CLAP's vectors, which have norm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.errors import ArgumentError
from audioldm2.pipeline import AudioLDM2


@dataclass(frozen=True)
class Prompt:
    """A prompt of an evaluation."""

    text: str
    family: str = ""  # the kind of sound, where that is known


class Judge:
    """The CLAP of a model, which turns texts and sounds into vectors of one space."""

    def __init__(self, model: AudioLDM2):
        """Raises ArgumentError for a model without CLAP."""
        if model.clap_tokenizer is None or "clap_audio" not in model.networks.configs:
            raise ArgumentError("judge", model, "be a model with CLAP", given=f"is {model}, without CLAP")
        self.model, self.networks = model, model.networks
        self.front_end, self.tokenizer = model.clap_mel, model.clap_tokenizer

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts: float32 (texts, clap_dim)."""
        return clap_score.embed_texts(self.networks, self.tokenizer, texts)

    def of_sounds(self, sounds: Sequence[Tensor], rate: int) -> Tensor:
        """Vectors of sounds, each (samples,) at `rate` Hz: float32 (sounds, clap_dim)."""
        return clap_score.embed_sounds(self.networks, self.front_end, sounds, rate)

    def families(self, sounds: Tensor, texts: Mapping[str, Sequence[str]]) -> list[str]:
        """The family whose texts are nearest to each sound.

        Args:
            sounds: vectors (sounds, clap_dim).
            texts: family -> texts that describe it.
        """
        names = list(texts)
        centres = torch.stack([self.of_texts(texts[name]).mean(dim=0) for name in names])
        return [names[i] for i in (sounds @ centres.T).argmax(dim=1)]


def evaluate(
    judge: Judge, prompts: Sequence[Prompt], sounds: Tensor, reference: Tensor | None = None
) -> dict[str, float]:
    """All figures that can be computed of some sounds.

    Args:
        judge: embeds the prompts; it has embedded the sounds.
        prompts: one per sound; empty where the sounds have none.
        sounds: vectors (sounds, clap_dim).
        reference: vectors of the sounds of reference (sounds, clap_dim).

    Returns:
        figure -> value: "sounds", their number; "CLAP score", the mean cosine of each sound and its prompt;
        "families", the share of sounds nearest to their own family, where the prompts name at least two;
        "Frechet", the distance from the reference.
    """
    found: dict[str, float] = {"sounds": len(sounds)}
    if prompts:
        distinct = list(dict.fromkeys(prompt.text for prompt in prompts))
        texts = judge.of_texts(distinct)[[distinct.index(prompt.text) for prompt in prompts]]
        found["CLAP score"] = (sounds * texts).sum(dim=1).mean().item()
    families = sorted({prompt.family for prompt in prompts if prompt.family})
    if len(families) > 1:
        known = [(place, prompt.family) for place, prompt in enumerate(prompts) if prompt.family]
        nearest = judge.families(sounds[[place for place, _ in known]], {name: [name] for name in families})
        hits = [near == name for near, (_, name) in zip(nearest, known, strict=True)]
        found["families"] = sum(hits) / len(hits)
    if reference is not None:
        found["Frechet"] = frechet_distance(sounds.numpy(), reference.numpy())
    return found


def frechet_distance(sounds: np.ndarray, reference: np.ndarray) -> float:
    """The Frechet distance of the normal distributions fitted to two sets of vectors, (sounds, dim) each.

    As in FID (Heusel et al. 2017, arXiv 1706.08500); smaller is nearer, and few sounds make it large.

    Raises:
        ArgumentError: a set has fewer than two vectors.
    """
    for name, vectors in (("sounds", sounds), ("reference", reference)):
        if len(vectors) < 2:
            given = "has one sound" if len(vectors) else "has no sound"
            raise ArgumentError(name, vectors, "have at least two for a Frechet distance", given=given)
    between = np.square(sounds.mean(axis=0) - reference.mean(axis=0)).sum()
    ours, theirs = (np.cov(each, rowvar=False, dtype=np.float64) for each in (sounds, reference))
    values, vectors = np.linalg.eigh(ours)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ theirs @ root).clip(min=0)).sum()
    return float(between + np.trace(ours) + np.trace(theirs) - 2 * cross)
