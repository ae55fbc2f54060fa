"""Figures that judge sounds, on vectors for which they are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.evaluation import Judge, Prompt, evaluate, frechet_distance

AXES = torch.eye(3)


class Axes(Judge):
    """Embeds the texts "x", "y" and "z" as the axes of a space."""

    def __init__(self) -> None:
        pass

    def of_texts(self, texts) -> Tensor:
        return torch.stack([AXES["xyz".index(text)] for text in texts])


def test_frechet_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    sounds = rng.standard_normal((4000, 3)) * [1.0, 2.0, 3.0]
    reference = rng.standard_normal((4000, 3)) * [2.0, 2.0, 1.0] + [5.0, 0.0, 0.0]
    # |difference of means|², and for uncorrelated axes the squared differences of their deviations
    expected = 25 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2
    assert frechet_distance(sounds, reference) == pytest.approx(expected, rel=0.03)
    assert frechet_distance(sounds, sounds) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "name"), [(1, 5, "sounds"), (5, 1, "reference"), (0, 5, "sounds")]
)
def test_frechet_distance_needs_two_sounds(ours, theirs, name):
    with pytest.raises(ArgumentError, match=f"^{name} has (one|no) sound; it has to have at least two"):
        frechet_distance(np.zeros((ours, 3)), np.zeros((theirs, 3)))


def test_clap_score_is_the_mean_cosine_of_sounds_and_their_prompts():
    sounds = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]), dim=1)
    found = evaluate(Axes(), [Prompt("x"), Prompt("y")], sounds)
    assert found == {"sounds": 2, "CLAP score": pytest.approx((1 + 0.5**0.5) / 2)}


def test_families_is_the_share_of_sounds_nearest_to_their_own():
    prompts = [Prompt("x", "x"), Prompt("x", "y"), Prompt("z", "y"), Prompt("z")]
    found = evaluate(Axes(), prompts, AXES[[0, 1, 0, 2]])
    assert found["families"] == pytest.approx(2 / 3)


def test_sounds_without_prompts_have_a_distance_only():
    found = evaluate(Axes(), [], torch.randn(4, 3), torch.randn(5, 3))
    assert found.keys() == {"sounds", "Frechet"} and found["Frechet"] > 0


def test_judge_embeds_sounds_of_different_lengths(tiny_model):
    judge = Judge(tiny_model)
    vectors = judge.of_sounds([0.1 * torch.randn(8000), 0.1 * torch.randn(12_000)], 16_000)
    assert vectors.shape == (2, judge.of_texts(["rain"]).shape[1])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


def test_judge_needs_clap(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "clap_tokenizer", None)
    with pytest.raises(ArgumentError, match=r"judge is .*, without CLAP; it has to be a model with CLAP"):
        Judge(tiny_model)
