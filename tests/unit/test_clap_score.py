"""CLAP scores: their order, their values, and the sounds that have none."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audioldm2 import AudioLDM2, Result, clap_score
from audioldm2.audio import clap_log_mel, resample
from audioldm2.errors import ArgumentError

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
    """Every row of every field holds the sound of its prompt and seed."""
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
    """Best first, NaN last, equals in their order."""
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i]))


def replace_scores(patch: pytest.MonkeyPatch, score: Callable[[list[str], Tensor], Tensor]) -> None:
    """Have ranking read scores of our own."""
    patch.setattr(clap_score, "score", lambda *given: score(given[3], given[4]))
    patch.setattr(clap_score, "score_sounds", lambda *given: (score(given[3], given[4]), []))


# Order --------------------------------------------------------------------------------------------------


def test_best_first_puts_nan_last_and_keeps_ties():
    nan, inf = math.nan, math.inf
    scores = [
        [0.1, 0.3, 0.2, 0.3],
        [nan, 0.1, -1.0, 0.2],
        [nan] * 4,
        [nan, inf, -1.0, 0.0],
        [nan, -inf, nan, 0.0],
    ]
    found = clap_score.best_first(torch.tensor(scores)).tolist()
    assert found == [[1, 3, 2, 0], [3, 1, 2, 0], [0, 1, 2, 3], [1, 3, 2, 0], [3, 1, 0, 2]]
    assert found == [in_order(row) for row in scores]
    assert clap_score.best_first(torch.tensor(scores[1])).tolist() == [3, 1, 2, 0]


@given(st.lists(st.sampled_from([0.5, -0.25, 1.0, math.nan, -math.inf]), max_size=40))
def test_best_first_of_any_scores(scores):
    assert clap_score.best_first(torch.tensor(scores)).tolist() == in_order(scores)


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=5)
def test_candidates_are_ranked_within_their_prompt(tiny_model, data):
    prompts = data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3))
    candidates = data.draw(st.integers(2, 4))
    seeds = data.draw(st.lists(st.integers(0, 3), min_size=len(prompts), max_size=len(prompts)))
    row = st.lists(st.sampled_from(SCORES), min_size=candidates, max_size=candidates)
    scores = data.draw(st.lists(row, min_size=len(prompts), max_size=len(prompts)))

    def score(texts: list[str], audio: Tensor) -> Tensor:
        assert texts == [prompt for prompt in prompts for _ in range(candidates)]
        assert len(audio) == len(texts)
        return torch.tensor(scores).flatten()

    with pytest.MonkeyPatch.context() as patch:
        replace_scores(patch, score)
        result = generate(tiny_model, prompts, num_waveforms_per_prompt=candidates, seed=seeds)
    for place, (seed, drawn) in enumerate(zip(seeds, scores, strict=True)):
        order = in_order(drawn)
        assert result.seeds[place] == [seed + i for i in order]
        expected = torch.tensor([drawn[i] for i in order])
        torch.testing.assert_close(result.scores[place], expected, rtol=0, atol=0, equal_nan=True)
    assert_aligned(tiny_model, result, prompts)


@pytest.mark.slow
def test_candidates_are_ranked_by_clap(tiny_model):
    prompts = PROMPTS[:2]
    result = generate(tiny_model, prompts, num_waveforms_per_prompt=3, seed=[0, 10])
    assert [sorted(row) for row in result.seeds] == [[0, 1, 2], [10, 11, 12]]
    assert_aligned(tiny_model, result, prompts)
    assert (result.scores.diff(dim=1) <= 0).all()
    assert (result.scores.diff(dim=1) < -1e-4).any(), "the scores are too similar to compare"
    for prompt, audio, scores in zip(prompts, result.audio, result.scores, strict=True):
        torch.testing.assert_close(tiny_model.score(prompt, audio), scores, rtol=0, atol=1e-5)
        for sound, score in zip(audio, scores, strict=True):
            assert abs(tiny_model.score(prompt, sound).item() - score.item()) <= 1e-5


def test_one_candidate_is_not_scored(tiny_model, monkeypatch):
    monkeypatch.delattr(clap_score, "score")
    monkeypatch.delattr(clap_score, "score_sounds")
    result = generate(tiny_model, PROMPTS)
    assert result.scores is None
    assert_aligned(tiny_model, result, PROMPTS)


def test_candidates_with_nan_scores_come_last(tiny_model, monkeypatch, tmp_path):
    replace_scores(monkeypatch, lambda texts, audio: torch.tensor([math.nan, math.nan, math.nan, 0.5]))
    result = generate(tiny_model, PROMPTS[:2], num_waveforms_per_prompt=2, seed=0)
    assert result.seeds == [[0, 1], [1, 0]]
    result.save(tmp_path / "dog.wav")
    assert result.record(1)["score"] == 0.5


# Scores --------------------------------------------------------------------------------------------------


def by_windows(model: AudioLDM2, text: str, audio: Tensor, sample_rate: int) -> Tensor:
    """The definition, step by step, for one sound: the mean of the fewest 10 s windows that cover it."""
    wave = resample(audio, sample_rate, 48000)
    count = math.ceil(len(wave) / 480000)
    starts = [round(i * (len(wave) - 480000) / (count - 1)) for i in range(count)]
    with model.networks.running("clap_audio") as clap_audio, torch.no_grad():
        vectors = [clap_audio(clap_log_mel(wave[None, start : start + 480000])) for start in starts]
    sound = F.normalize(torch.cat(vectors).mean(dim=0), dim=0)
    return clap_score.embed_texts(model.networks, model.clap_tokenizer, [text])[0] @ sound


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample_rate, seconds, windows", [(16000, 10.24, 2), (16000, 20.0, 2), (4000, 25.3, 3)]
)
def test_all_of_a_long_sound_counts(tiny_model, sample_rate, seconds, windows):
    samples = int(sample_rate * seconds)
    sound = torch.randn(samples) * torch.linspace(0.01, 0.3, samples)
    assert math.ceil(seconds / 10) == windows
    changed = [sound.clone(), sound.clone()]
    changed[0][: sample_rate // 10] = 0
    changed[1][-sample_rate // 10 :] = 0
    found = tiny_model.score("a dog", torch.stack([sound, *changed]), sample_rate)
    expected = by_windows(tiny_model, "a dog", sound, sample_rate)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    assert (found[1:] != found[0]).all()
    torch.manual_seed(1)
    assert torch.equal(tiny_model.score("a dog", sound, sample_rate), found[:1])


def test_each_sound_is_scored_against_its_own_text(tiny_model):
    sounds = 0.2 * torch.randn(4, 16000) * torch.linspace(0, 1, 16000) ** torch.arange(4)[:, None]
    together = tiny_model.score(PROMPTS, sounds)
    for text, sound, score in zip(PROMPTS, sounds, together, strict=True):
        assert abs(tiny_model.score(text, sound).item() - score.item()) <= 1e-5
    assert together.abs().max() <= 1 + 1e-6
    assert together.std() > 1e-3
    with pytest.raises(ValueError, match="3 entries for 4 sounds"):
        tiny_model.score(PROMPTS[:3], sounds)


# Sounds of callers ------------------------------------------------------------------------------------------


def arguments(model: AudioLDM2) -> tuple:
    return model.networks, model.clap_tokenizer, model.clap_mel


@pytest.mark.slow
def test_numpy_arrays_and_lists_score_like_tensors(tiny_model):
    sounds = 0.2 * torch.randn(3, 16_000)
    expected = clap_score.score(*arguments(tiny_model), "a dog", sounds, 16_000)
    for audio in (sounds.numpy(), sounds.double().numpy(), list(sounds), [sound.numpy() for sound in sounds]):
        found = clap_score.score(*arguments(tiny_model), "a dog", audio, np.int64(16_000))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    alone = clap_score.score(*arguments(tiny_model), ["a dog"], sounds[1].numpy(), 16_000)
    torch.testing.assert_close(alone, expected[1:2], rtol=0, atol=1e-6)


def test_sounds_of_different_lengths_and_rates(tiny_model):
    sounds, rates = (
        [0.2 * torch.randn(16_000), 0.2 * torch.randn(9000), 0.1 * torch.randn(7)],
        [16_000, 8000, 44_100],
    )
    found, unusable = clap_score.score_sounds(*arguments(tiny_model), PROMPTS[:3], sounds, rates)
    assert unusable == []
    for text, sound, rate, value in zip(PROMPTS, sounds, rates, found, strict=False):
        alone = clap_score.score(*arguments(tiny_model), text, sound, rate)
        torch.testing.assert_close(alone[0], value, rtol=0, atol=1e-6)


def broken_sounds() -> list[Tensor]:
    sounds = list(0.2 * torch.randn(4, 1600))
    sounds[1][3] = math.nan
    sounds[1][7] = -math.inf
    sounds[2] = torch.zeros(0)
    return sounds


def test_score_names_the_rows_that_cannot_be_scored(tiny_model):
    sounds = broken_sounds()
    words = r"audio has sounds that cannot be scored \(row 1 has 2 samples of 1600 that are NaN or infinite, "
    with pytest.raises(ArgumentError, match=words + r"row 2 has no samples\); it has to hold finite samples"):
        clap_score.score(*arguments(tiny_model), "a dog", sounds, 16_000)
    with pytest.raises(ArgumentError, match="audio has no samples; it has to hold"):
        clap_score.score(*arguments(tiny_model), "a dog", torch.zeros(0), 16_000)
    with pytest.raises(ArgumentError, match=r"\(row 0 has no samples, .*row 2 has no samples and 7 more\)"):
        clap_score.score(*arguments(tiny_model), "a dog", torch.zeros(10, 0), 16_000)


def test_score_sounds_scores_the_rest(tiny_model):
    sounds = broken_sounds()
    found, unusable = clap_score.score_sounds(*arguments(tiny_model), PROMPTS, sounds, 16_000)
    assert unusable == [(1, "has 2 samples of 1600 that are NaN or infinite"), (2, "has no samples")]
    assert found.isnan().tolist() == [False, True, True, False]
    expected = clap_score.score(*arguments(tiny_model), [PROMPTS[0], PROMPTS[3]], sounds[::3], 16_000)
    torch.testing.assert_close(found[[0, 3]], expected, rtol=0, atol=1e-6)
    assert clap_score.best_first(found).tolist()[2:] == [1, 2]
    nothing, unusable = clap_score.score_sounds(*arguments(tiny_model), "a dog", np.zeros((2, 0)), 16_000)
    assert nothing.isnan().all() and len(unusable) == 2


def test_score_sounds_reports_an_overflow_inside_clap(tiny_model, monkeypatch):
    monkeypatch.setattr(clap_score, "embed_sounds", lambda *_: torch.full((2, 1), math.nan))
    found, unusable = clap_score.score_sounds(*arguments(tiny_model), "a dog", torch.zeros(2, 9), 16_000)
    assert found.isnan().all()
    assert unusable == [(row, "has no score: CLAP computes NaN for it") for row in (0, 1)]


@pytest.mark.parametrize("call", [clap_score.score, clap_score.score_sounds])
@pytest.mark.parametrize(
    ("text", "audio", "rate", "words"),
    [
        (
            "a",
            torch.zeros(9000, dtype=torch.int16),
            16_000,
            r"audio is int16 \(9000,\); it has to be floats in",
        ),
        ("a", np.zeros(9000, dtype=np.int16), 16_000, r"audio is int16 \(9000,\)"),
        ("a", torch.zeros(1, 1, 9), 16_000, r"audio is float32 \(1, 1, 9\); .*\(sounds, samples\)"),
        ("a", torch.zeros(0, 9), 16_000, "audio has no sounds; .*with one sample or more"),
        ("a", [], 16_000, "audio has no sounds"),
        ("a", [torch.zeros(9), torch.zeros(2, 9)], 16_000, r"audio\[1\] is float32 \(2, 9\)"),
        ("a", "dog.wav", 16_000, "audio is 'dog.wav'"),
        ("a", torch.zeros(9), 2**31 - 1, "sample_rate is 2147483647; it has to be a whole number from 1"),
        ("a", torch.zeros(9), 0, "sample_rate is 0"),
        ("a", torch.zeros(9), 44_100.5, "sample_rate is 44100.5"),
        ("a", torch.zeros(3, 9), [16_000, 8000], "sample_rate has 2 entries for 3 sounds"),
        (["a", "b"], torch.zeros(3, 9), 16_000, "text has 2 entries for 3 sounds"),
        (3, torch.zeros(9), 16_000, "text is 3"),
    ],
)
def test_rejects_arguments_in_one_sentence(tiny_model, call, text, audio, rate, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        call(*arguments(tiny_model), text, audio, rate)
    assert "\n" not in str(caught.value)


def test_scoring_ignores_the_default_device(tiny_model):
    sounds = broken_sounds()
    expected, _ = clap_score.score_sounds(*arguments(tiny_model), "a dog", sounds, 16_000)
    with torch.device("meta"):
        found, _ = clap_score.score_sounds(*arguments(tiny_model), "a dog", sounds, 16_000)
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
