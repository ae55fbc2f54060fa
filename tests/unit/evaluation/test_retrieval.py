"""Text-to-audio retrieval: ranks, ties and several sounds to a text."""

import numpy as np
import pytest
import torch

from audioldm2.errors import ArgumentError
from audioldm2.evaluation import text_to_audio

LINE = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])  # sounds, nearest to the text first
TEXT = torch.tensor([[1.0, 0]])


@pytest.mark.parametrize(("own", "ranks"), [([0], 1), ([2], 3), ([3, 1], 2)])
def test_hit_begins_at_the_rank_of_the_nearest_own_sound(own, ranks):
    found = [text_to_audio(TEXT, LINE, [own], top)[0] for top in range(1, 5)]
    assert found == [float(top >= ranks) for top in range(1, 5)]


@pytest.mark.parametrize(("own", "top", "expected"), [([3], 1, 1 / 4), ([0], 2, 2 / 4), ([0, 2], 2, 5 / 6)])
def test_ties_have_the_probability_of_a_random_order(own, top, expected):
    assert text_to_audio(TEXT, TEXT.repeat(4, 1), [own], top)[0] == pytest.approx(expected)


def test_equal_vectors_are_tied_wherever_they_stand():
    vector = torch.nn.functional.normalize(torch.randn(1, 512, dtype=torch.float64), dim=1).float()
    found = text_to_audio(torch.randn(37, 512), vector.repeat(37, 1), [[row] for row in range(37)], 1)
    assert found == pytest.approx(np.full(37, 1 / 37))


def test_more_places_than_sounds_find_everything():
    assert text_to_audio(TEXT, LINE, [[3]], 10)[0] == 1


def test_text_without_a_sound_is_refused():
    with pytest.raises(ArgumentError, match="own has 1 entries with a sound for 2 texts"):
        text_to_audio(TEXT.repeat(2, 1), LINE, [[0], []], 1)
