"""All figures of an evaluation, on vectors for which they are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.evaluation import Judge, SoundSet, evaluate
from audioldm2.evaluation.clap import weights_digest

AXES = torch.eye(3)


class Axes(Judge):
    """Embeds the texts "x", "y" and "z" as the axes of a space."""

    def __init__(self) -> None:
        pass

    def of_texts(self, texts) -> Tensor:
        return torch.stack([AXES["xyz".index(text)] for text in texts])


def captioned(vectors: Tensor, captions: str, **also) -> SoundSet:
    return SoundSet(vectors, [(text,) for text in captions], **also)


def test_clap_score_is_the_mean_cosine_of_sounds_and_their_captions():
    sounds = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]), dim=1)
    found = evaluate(Axes(), captioned(sounds, "xy")).ours
    assert found["CLAP score"].value == pytest.approx((1 + 0.5**0.5) / 2)
    low, high = found["CLAP score"].interval
    assert low == pytest.approx(0.5**0.5) and high == pytest.approx(1)


def test_clap_score_of_several_captions_is_their_mean():
    found = evaluate(Axes(), SoundSet(AXES[:2], [("x", "y"), ("y",)])).ours
    assert found["CLAP score"].value == pytest.approx((0.5 + 1) / 2)


def test_families_is_the_share_of_sounds_nearest_to_their_own():
    found = evaluate(Axes(), captioned(AXES[[0, 1, 0, 2]], "xxzz", families=["x", "y", "y", ""])).ours
    assert found["families"].value == pytest.approx(2 / 3) and found["families"].sounds == 3


def test_retrieval_looks_among_the_sounds_of_one_seed():
    rounds = captioned(AXES[[0, 1, 2, 0, 2, 1]], "xyzxyz", groups=[0, 1, 2] * 2, rounds=[0] * 3 + [1] * 3)
    found = evaluate(Axes(), rounds).ours
    assert found["retrieval, top 1"].value == pytest.approx(4 / 6)  # the second seed swaps y and z
    assert found["retrieval, top 10"].value == 1


def test_retrieval_accepts_any_sound_that_has_the_caption():
    found = evaluate(Axes(), captioned(AXES[[0, 1, 1]], "xxy")).ours
    assert found["retrieval, top 1"].value == pytest.approx((1 + 0.5) / 2)  # y is tied with a sound of x


def test_categories_have_their_own_scores():
    sounds = captioned(AXES[[0, 1, 0]], "xyz", categories=["good", "good", "bad"])
    found = evaluate(Axes(), sounds).categories
    assert {name: (each.value, each.sounds) for name, each in found.items()} == {
        "good": (1, 2),
        "bad": (0, 1),
    }


def test_judgements_that_do_not_apply_are_left_out():
    sounds = SoundSet(AXES, judged={"heard": [1.0, None, 0.5], "nothing": [None] * 3})
    found = evaluate(Axes(), sounds).ours
    assert found.keys() == {"heard"} and found["heard"].value == 0.75 and found["heard"].sounds == 2


def test_sounds_without_captions_have_distances_only():
    found = evaluate(Axes(), SoundSet(torch.randn(8, 3)), SoundSet(torch.randn(9, 3)))
    assert list(found.ours) == ["FD-CLAP", "KAD-CLAP"] and not found.theirs
    assert found.floors["FD-CLAP"].sounds == 4


def test_reference_is_judged_by_the_same_measures():
    found = evaluate(Axes(), captioned(AXES[[1, 0, 2]], "xyz"), captioned(AXES, "xyz"))
    assert found.ours["CLAP score"].value == pytest.approx(1 / 3) and found.theirs["CLAP score"].value == 1


def test_vector_with_nan_is_refused():
    broken = torch.full((4, 3), torch.nan)
    with pytest.raises(ArgumentError, match="sounds has 4 vectors of 4 with NaN or infinite values"):
        evaluate(Axes(), SoundSet(broken), SoundSet(torch.randn(4, 3)))


def test_judge_embeds_sounds_of_different_lengths(tiny_model):
    judge = Judge(tiny_model)
    vectors = judge.of_sounds([0.1 * torch.randn(8000), 0.1 * torch.randn(12_000)], 16_000)
    assert vectors.shape == (2, judge.of_texts(["rain"]).shape[1])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


def test_judge_needs_clap(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "clap_tokenizer", None)
    with pytest.raises(ArgumentError, match=r"judge is .*, without CLAP; it has to be a model with CLAP"):
        Judge(tiny_model)


def test_digest_changes_with_a_weight_and_with_a_setting(tiny_model):
    networks = tiny_model.networks
    before = weights_digest(networks, ["clap_text"], "a")
    assert before == weights_digest(networks, ["clap_text"], "a") and len(before) == 16
    assert before != weights_digest(networks, ["clap_text"], "b")
    with networks.running("clap_text") as network, torch.no_grad():
        weight = next(network.parameters()).view(-1)
        weight[0] += 1
        changed = weights_digest(networks, ["clap_text"], "a")
        weight[0] -= 1
    assert changed != before
