"""What the small speech model says, in which voices, and how its captions are worded."""

from collections.abc import Mapping

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (
    # colours
    "red", "green", "blue", "yellow", "orange", "purple", "black", "white", "brown",
    # people and animals
    "mother", "father", "brother", "sister", "baby", "doctor", "teacher", "people", "dog", "horse",
    "rabbit", "monkey", "elephant", "chicken",
    # house and town
    "house", "kitchen", "window", "garden", "table", "paper", "pencil", "letter", "picture", "music",
    "radio", "computer", "telephone", "money", "market", "city", "hospital", "station", "office",
    # food
    "apple", "banana", "butter", "coffee", "sugar", "water", "breakfast", "dinner", "potato", "cheese",
    # nature and time
    "river", "mountain", "island", "ocean", "forest", "flower", "summer", "winter", "weather",
    "morning", "evening", "yesterday", "tomorrow", "monday", "friday", "minute", "history",
    # verbs
    "open", "listen", "follow", "remember", "believe", "travel", "answer", "finish", "continue",
    # others
    "yes", "hello", "happy", "hungry", "easy", "beautiful", "different", "important", "left", "right",
    "always", "never", "together", "under", "question", "number", "family", "story",
    "school", "language", "country", "machine",
)  # fmt: skip

VOICES = {"woman": "slt", "man": "rms", "robot": "kal16"}  # the word of the caption -> flite's voice
SPEEDS = {"slow": 1.3, "normal": 1.0, "fast": 0.8}  # flite's duration_stretch

_VERBS = ("says", "speaks")
_PACES = {
    "slow": ("slowly", "at a slow pace"),
    "normal": ("at a normal pace", ""),
    "fast": ("fast", "at a fast pace"),
}


def caption(rng: np.random.Generator, voice: str, speed: str) -> str:
    """Words a caption such as "a woman speaks slowly"; without a pace, the speed is normal."""
    words = f"a {voice}", str(rng.choice(_VERBS)), str(rng.choice(_PACES[speed]))
    return " ".join(filter(None, words))


def digit_strings(held_out: int = 200, seed: int = 0) -> Mapping[str, tuple[str, ...]]:
    """Splits the 1,000 strings of three digits into "train" and "test"."""
    strings = [f"{a} {b} {c}" for a in DIGITS for b in DIGITS for c in DIGITS]
    order = np.random.default_rng(seed).permutation(len(strings))
    shuffled = [strings[i] for i in order]
    return {"train": tuple(shuffled[held_out:]), "test": tuple(shuffled[:held_out])}
