"""All figures of an evaluation, computed from vectors: distances, scores and retrieval, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from audioldm2.evaluation.bootstrap import (
    Floor,
    Interval,
    floors,
    frechet_interval,
    kernel_interval,
    mean_interval,
)
from audioldm2.evaluation.clap import Judge
from audioldm2.evaluation.retrieval import text_to_audio

TOPS = (1, 10)  # how many sounds retrieval looks at
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class SoundSet:
    """Embedded sounds and what is known of each."""

    vectors: Tensor  # (sounds, clap_dim)
    captions: Sequence[tuple[str, ...]] = ()  # of each sound; empty where there are none
    groups: Sequence[int] | None = None  # of each sound: those of one prompt; None where each is its own
    rounds: Sequence[int] | None = None  # of each sound: retrieval looks among those of one round, or seed
    families: Sequence[str] = ()  # of each sound, "" where it is not known
    categories: Sequence[str] = ()
    judged: dict[str, list[float | None]] = field(
        default_factory=dict
    )  # by other judges, None: not applicable

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Measured:
    """A figure and its 95 % interval; the number of sounds where not all take part."""

    value: float
    interval: Interval | None = None
    sounds: int | None = None


@dataclass(frozen=True)
class Figures:
    """What is known of some sounds, and of the reference by the same measures."""

    ours: dict[str, Measured]
    theirs: dict[str, Measured]
    floors: dict[str, Floor]
    categories: dict[str, Measured]  # CLAP score of each


def evaluate(judge: Judge, sounds: SoundSet, reference: SoundSet | None = None) -> Figures:
    """Compute all figures that some sounds allow.

    Args:
        judge: the CLAP that embedded the sounds; it embeds the captions.
        sounds: what is judged.
        reference: true sounds, judged beside them.

    Returns:
        "FD-CLAP" and "KAD-CLAP" where there is a reference; "CLAP score", "retrieval, top 1" and "retrieval,
        top 10" where there are captions; "families", the share of sounds nearest to their own family, where
        at least two are named; and the mean of each other judge.

    Raises:
        ArgumentError: too few sounds for a distance, or NaN among the vectors.
    """
    ours, theirs, found = _of_captions(judge, sounds), {}, {}
    if reference is not None:
        theirs = _of_captions(judge, reference)
        for name, measure in (("FD-CLAP", frechet_interval), ("KAD-CLAP", kernel_interval)):
            value, interval = measure(sounds.vectors, reference.vectors, sounds.groups)
            ours = {name: Measured(value, interval), **ours}
        if len(reference) >= 4:
            found = floors(sounds.vectors, reference.vectors, sounds.groups)
    ours = {name: ours[name] for name in sorted(ours, key=_place)}
    scores = _scores(judge, sounds) if any(sounds.categories) else np.empty(0)
    categories = {}
    for category in dict.fromkeys(each for each in sounds.categories if each):
        rows = [row for row, each in enumerate(sounds.categories) if each == category]
        interval = mean_interval(scores[rows], _at(sounds.groups, rows))
        categories[category] = Measured(float(scores[rows].mean()), interval, len(rows))
    return Figures(ours, theirs, found, categories)


def _place(name: str) -> int:
    """Distances come first, in this order."""
    return {"FD-CLAP": 0, "KAD-CLAP": 1}.get(name, 2)


def _of_captions(judge: Judge, sounds: SoundSet) -> dict[str, Measured]:
    """The figures that need no reference."""
    found = {}
    if any(sounds.captions):
        found["CLAP score"] = _mean(_scores(judge, sounds), sounds.groups, len(sounds))
        for top in TOPS:
            hits, groups = _retrieval(judge, sounds, top)
            found[f"retrieval, top {top}"] = _mean(hits, groups, len(sounds))
    names = sorted({family for family in sounds.families if family})
    if len(names) > 1:
        known = [row for row, family in enumerate(sounds.families) if family]
        nearest = judge.families(sounds.vectors[known], {name: [name] for name in names})
        hits = np.array(
            [near == sounds.families[row] for near, row in zip(nearest, known, strict=True)], float
        )
        found["families"] = _mean(hits, _at(sounds.groups, known), len(sounds), len(known))
    for name, values in sounds.judged.items():
        known = [row for row, value in enumerate(values) if value is not None]
        if known:
            applicable = np.array([values[row] for row in known], float)
            found[name] = _mean(applicable, _at(sounds.groups, known), len(sounds), len(known))
    return found


def _at(groups: Sequence[int] | None, rows: Sequence[int]) -> list[int] | None:
    """The groups of some sounds."""
    return None if groups is None else [groups[row] for row in rows]


def _mean(
    values: np.ndarray, groups: Sequence[int] | None, total: int, sounds: int | None = None
) -> Measured:
    taking_part = sounds if sounds is not None and sounds != total else None
    return Measured(float(values.mean()), mean_interval(values, groups), taking_part)


def _scores(judge: Judge, sounds: SoundSet) -> np.ndarray:
    """The cosine of each sound and its caption; the mean over its captions where it has several."""
    texts, vectors = _embedded_texts(judge, sounds)
    return np.array(
        [
            (vectors[[texts[text] for text in captions]] @ sound).mean().item()
            for captions, sound in zip(sounds.captions, sounds.vectors, strict=True)
        ]
    )


def _retrieval(judge: Judge, sounds: SoundSet, top: int) -> tuple[np.ndarray, list[int]]:
    """How often each caption finds a sound of its own, among those of a round; and the captions' groups.

    A caption that several sounds of a round have counts once, and any of them is right.
    """
    texts, vectors = _embedded_texts(judge, sounds)
    rounds = [0] * len(sounds) if sounds.rounds is None else sounds.rounds
    hits: list[float] = []
    groups: list[int] = []
    for each in dict.fromkeys(rounds):
        rows = [row for row, other in enumerate(rounds) if other == each]
        own: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            for text in sounds.captions[row]:
                own.setdefault(text, []).append(place)
        asked = vectors[[texts[text] for text in own]]
        hits += text_to_audio(asked, sounds.vectors[rows], list(own.values()), top).tolist()
        firsts = [rows[places[0]] for places in own.values()]
        groups += firsts if sounds.groups is None else [sounds.groups[row] for row in firsts]
    return np.asarray(hits), groups


def _embedded_texts(judge: Judge, sounds: SoundSet) -> tuple[dict[str, int], Tensor]:
    """Each caption's row, and the vectors (captions, clap_dim)."""
    texts = list(dict.fromkeys(text for captions in sounds.captions for text in captions))
    parts = [texts[first : first + TEXTS_AT_ONCE] for first in range(0, len(texts), TEXTS_AT_ONCE)]
    vectors = torch.cat([judge.of_texts(part) for part in parts])
    return {text: row for row, text in enumerate(texts)}, vectors
