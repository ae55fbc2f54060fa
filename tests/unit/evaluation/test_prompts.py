"""The 100 prompts in the package never change: a score from last year can be compared."""

import hashlib
from collections import Counter

from audioldm2.evaluation.prompts import read_prompts

HASH = "b259563fca6019b8"


def test_builtin_prompts_are_frozen():
    text = "\n".join(f"{prompt.category}\t{prompt.text}" for prompt in read_prompts("builtin"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == HASH


def test_builtin_prompts_are_a_hundred_different_ones_under_eight_headings():
    prompts = read_prompts("builtin")
    assert len({prompt.text.casefold() for prompt in prompts}) == len(prompts) == 100
    assert Counter(prompt.category for prompt in prompts) == {
        "sound effects": 20,
        "music": 16,
        "speech": 12,
        "counts": 10,
        "order": 10,
        "negations": 8,
        "long": 10,
        "other languages": 14,
    }
    assert not any(prompt.family for prompt in prompts)
