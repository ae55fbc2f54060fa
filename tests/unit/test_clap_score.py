"""Ranking: each prompt's sounds in the order of their scores, and nobody else's among them."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audioldm2 import AudioLDM2, Result, clap_score
from audioldm2.audio import clap_log_mel, resample

PROMPTS = ["a dog", "A hammer hitting a wooden surface", "", "low hum"]
SCORES = [0.5, -0.25, 0.0, 1.0, math.nan]  # few, so that many are equal


def generate(model: AudioLDM2, prompt: str | list[str], **arguments) -> Result:
    return model.generate(prompt, audio_length_in_s=0.2, num_inference_steps=2, **arguments)


@cache
def alone(model: AudioLDM2, prompt: str, seed: int) -> Result:
    return generate(model, prompt, seed=seed)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def assert_aligned(model: AudioLDM2, result: Result, prompts: list[str]) -> None:
    """Every place of every field holds the sound that its prompt and its seed make."""
    waveforms = len(result.seeds[0])
    assert result.audio.shape[:2] == (len(prompts), waveforms)
    assert len(result.latents) == len(result.mel) == len(prompts) * waveforms
    for row in range(len(prompts) * waveforms):
        prompt, place = divmod(row, waveforms)
        expected = alone(model, prompts[prompt], result.seeds[prompt][place])
        assert_close(result.audio[prompt, place], expected.audio[0, 0])
        assert_close(result.latents[row], expected.latents[0])
        assert_close(result.mel[row], expected.mel[0])


def in_order(scores: list[float]) -> list[int]:
    """Best first, equals as they were, what is no number last."""
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i]))


# The order --------------------------------------------------------------------------------------------------


def test_order():
    nan, inf = math.nan, math.inf
    scores = [[0.1, 0.3, 0.2, 0.3], [nan, 0.1, -1.0, 0.2], [nan] * 4, [nan, inf, -1.0, 0.0]]
    found = clap_score.best_first(torch.tensor(scores)).tolist()
    assert found == [[1, 3, 2, 0], [3, 1, 2, 0], [0, 1, 2, 3], [1, 3, 2, 0]]
    assert found == [in_order(row) for row in scores]


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_sounds_are_ranked_inside_their_prompt(tiny_model, data):
    prompts = data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3))
    candidates = data.draw(st.integers(2, 4))
    seeds = data.draw(st.lists(st.integers(0, 3), min_size=len(prompts), max_size=len(prompts)))
    row = st.lists(st.sampled_from(SCORES), min_size=candidates, max_size=candidates)
    scores = data.draw(st.lists(row, min_size=len(prompts), max_size=len(prompts)))

    def score(networks, tokenizer, hearing, texts, audio, sample_rate) -> Tensor:
        assert texts == [prompt for prompt in prompts for _ in range(candidates)]
        assert len(audio) == len(texts)
        return torch.tensor(scores).flatten()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clap_score, "score", score)
        result = generate(tiny_model, prompts, num_waveforms_per_prompt=candidates, seed=seeds)
    for place, (seed, drawn) in enumerate(zip(seeds, scores, strict=True)):
        order = in_order(drawn)
        assert result.seeds[place] == [seed + i for i in order]
        expected = torch.tensor([drawn[i] for i in order])
        torch.testing.assert_close(result.scores[place], expected, rtol=0, atol=0, equal_nan=True)
    assert_aligned(tiny_model, result, prompts)


def test_sounds_are_ranked_by_clap(tiny_model):
    prompts = PROMPTS[:3]
    result = generate(tiny_model, prompts, num_waveforms_per_prompt=4, seed=[0, 10, 20])
    assert [sorted(row) for row in result.seeds] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert_aligned(tiny_model, result, prompts)
    assert (result.scores.diff(dim=1) <= 0).all()
    assert (result.scores.diff(dim=1) < -1e-4).any(), "the scores are too much alike to judge"
    for prompt, audio, scores in zip(prompts, result.audio, result.scores, strict=True):
        torch.testing.assert_close(tiny_model.score(prompt, audio), scores, rtol=0, atol=1e-5)
        for sound, score in zip(audio, scores, strict=True):
            assert abs(tiny_model.score(prompt, sound).item() - score.item()) <= 1e-5


def test_one_sound_is_not_ranked(tiny_model, monkeypatch):
    monkeypatch.delattr(clap_score, "score")
    result = generate(tiny_model, PROMPTS)
    assert result.scores is None
    assert_aligned(tiny_model, result, PROMPTS)


def test_scores_that_are_no_numbers_do_no_harm(tiny_model, monkeypatch, tmp_path):
    silence, broken = torch.zeros(1600), torch.full((1600,), math.nan)
    found = tiny_model.score("a dog", torch.stack([silence, broken]))
    assert found[0].isfinite()
    assert found[1].isnan()

    monkeypatch.setattr(clap_score, "score", lambda *_: torch.tensor([math.nan, math.nan, math.nan, 0.5]))
    result = generate(tiny_model, PROMPTS[:2], num_waveforms_per_prompt=2, seed=0)
    assert result.seeds == [[0, 1], [1, 0]]
    result.save(tmp_path / "dog.wav")
    assert result.record(1)["score"] == 0.5


# The score --------------------------------------------------------------------------------------------------


def by_windows(model: AudioLDM2, text: str, audio: Tensor, sample_rate: int) -> Tensor:
    """The rule, step by step, for one sound: the mean of as few 10 s windows as cover it, evenly spaced."""
    wave = resample(audio, sample_rate, 48000)
    count = math.ceil(len(wave) / 480000)
    starts = [round(i * (len(wave) - 480000) / (count - 1)) for i in range(count)]
    with model.networks.running("clap_audio") as clap_audio, torch.no_grad():
        vectors = [clap_audio(clap_log_mel(wave[None, start : start + 480000])) for start in starts]
    heard = F.normalize(torch.cat(vectors).mean(dim=0), dim=0)
    return clap_score.embed_texts(model.networks, model.clap_tokenizer, [text])[0] @ heard


@pytest.mark.parametrize(
    "sample_rate, seconds, windows", [(16000, 10.24, 2), (16000, 20.0, 2), (4000, 25.3, 3)]
)
def test_a_long_sound_is_heard_whole(tiny_model, sample_rate, seconds, windows):
    sounds = torch.randn(2, int(sample_rate * seconds)) * torch.linspace(
        0.01, 0.3, int(sample_rate * seconds)
    )
    assert math.ceil(seconds / 10) == windows
    found = tiny_model.score("a dog", sounds, sample_rate)
    for score, sound in zip(found, sounds, strict=True):
        torch.testing.assert_close(
            score, by_windows(tiny_model, "a dog", sound, sample_rate), rtol=0, atol=1e-5
        )
    torch.manual_seed(1)
    assert torch.equal(tiny_model.score("a dog", sounds, sample_rate), found)

    for part in (slice(0, sample_rate // 10), slice(-sample_rate // 10, None)):
        changed = sounds.clone()
        changed[:, part] = 0
        assert (tiny_model.score("a dog", changed, sample_rate) != found).all()


def test_every_sound_is_held_against_its_own_text(tiny_model):
    sounds = 0.2 * torch.randn(4, 16000) * torch.linspace(0, 1, 16000) ** torch.arange(4)[:, None]
    together = tiny_model.score(PROMPTS, sounds)
    for text, sound, score in zip(PROMPTS, sounds, together, strict=True):
        assert abs(tiny_model.score(text, sound).item() - score.item()) <= 1e-5
    assert together.abs().max() <= 1 + 1e-6
    assert together.std() > 1e-3
    with pytest.raises(ValueError, match="3 entries for 4 sounds"):
        tiny_model.score(PROMPTS[:3], sounds)
