"""Captions for the sounds of the demo world, composed from the wordings of a split (wordings.py)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from scripts.demo_world.wordings import ATTRIBUTE_PHRASES, CONJUNCTIONS, WORDINGS

Attributes = Mapping[str, str]  # {attribute: word}

# Probability that a caption mentions an attribute that the family has; half of it in pairs. Adjectives follow
# this order.
MENTION_RATE = {"level": 0.25, "length": 0.35, "tempo": 0.5, "room": 0.35, "pitch": 0.55}


def describe(
    rng: np.random.Generator, attributes: Mapping[str, Attributes], relation: str = "", split: str = "train"
) -> str:
    """Composes a caption for one or two sounds.

    Args:
        rng: chooses the wording.
        attributes: {family: {attribute: word}}, what the caption mentions.
        relation: of two sounds: "and" or "then".
        split: whose wordings to use, "train" or "test".
    """
    as_clauses = rng.random() < 0.3 and all(len(mentioned) <= 1 for mentioned in attributes.values())
    phrases = [
        phrase(rng, family, mentioned, split, as_clauses, in_pair=bool(relation))
        for family, mentioned in attributes.items()
    ]
    caption = phrases[0]
    if relation:
        patterns = CONJUNCTIONS[relation][split]
        caption = choose(rng, patterns.clauses if as_clauses else patterns.nouns).format(*phrases)
    caption = re.sub(r"\ba(?= [aeiou])", "an", caption)
    if rng.random() < 0.2:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.2 else caption


def phrase(
    rng: np.random.Generator, family: str, mentioned: Attributes, split: str, as_clause: bool, in_pair: bool
) -> str:
    """Describes one sound: "a loud, high beep", "a beep at a high pitch", or "a machine beeps loudly".

    Args:
        rng: chooses the wording.
        family: of the sound.
        mentioned: {attribute: word}.
        split: whose wordings to use.
        as_clause: whether to return a clause instead of a noun phrase.
        in_pair: whether the phrase becomes part of a caption of two sounds.
    """
    wording = WORDINGS[family][split]
    options = {
        name: ATTRIBUTE_PHRASES[name, mentioned[name]][split] for name in MENTION_RATE if name in mentioned
    }
    if as_clause:
        ends = [choose(rng, (*option.adverbs, *option.after)) for option in options.values()]
        return " ".join([choose(rng, wording.clauses), *ends])
    # In a pair, a trailing "at a high pitch" could refer to either sound. Two of them are hard to read.
    trailing = str(rng.choice(list(options))) if options and not in_pair and rng.random() < 0.35 else None
    adjectives = [choose(rng, option.before) for name, option in options.items() if name != trailing]
    nouns = [noun for noun in wording.nouns if "{}" in noun or not adjectives]
    noun = choose(rng, nouns).format(", ".join(adjectives) + " " if adjectives else "")
    return f"{noun} {choose(rng, options[trailing].after)}" if trailing else noun


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Returns one of some texts, all equally likely."""
    return options[int(rng.integers(len(options)))]
