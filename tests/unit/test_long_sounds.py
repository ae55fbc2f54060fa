"""Long sounds in windows, loops and timelines, on the tiny model: exact properties, cost, mistakes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from audioldm2 import AudioLDM2, Result
from audioldm2.errors import ArgumentError
from audioldm2.sampling.windows import Windows

CELL, SECOND = 640, 16_000  # samples
FRAMES = 30  # latent frames: 1.2 s
WINDOWS = dict(window_seconds=0.4, overlap=0.2)  # 10 frames, 2 of them shared
TIMELINE = [("a dog", 0, 0.7), ("low hum", 0.5, 1.2)]
SAMPLINGS = [{"sampler": "dpmpp_2m"}, {"sampler": "dpmpp_2m_sde"}, {"sampler": "ddim", "eta": 1.0},
             {"sampler": "euler_ancestral"}]  # fmt: skip


def generate(model: AudioLDM2, prompt: object = "a dog", **arguments) -> Result:
    """Of 1.2 s, in 2 steps."""
    return model.generate(prompt, **({"num_inference_steps": 2} | length(prompt) | arguments))


def length(prompt: object) -> dict:
    return {} if isinstance(prompt, list) and not isinstance(prompt[0], str) else {"audio_length_in_s": 1.2}


@contextmanager
def watched(model: AudioLDM2) -> Iterator[list[tuple[int, int]]]:
    """The rows and frames of every answer of the denoising network."""
    calls: list[tuple[int, int]] = []
    with model.networks.running("unet") as unet:
        hook = unet.register_forward_hook(lambda _, given, made: calls.append((len(made), made.shape[2])))
        try:
            yield calls
        finally:
            hook.remove()


def assert_equal(found: Result, expected: Result) -> None:
    for name in ("latents", "mel", "audio"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


# What has to be the same.


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim"])
def test_window_as_long_as_the_sound_is_the_plain_path(tiny_model, sampler):
    arguments = dict(sampler=sampler, eta=0.7 if sampler == "ddim" else 0.0, seed=3)
    arguments |= dict(audio_length_in_s=0.4)
    expected = generate(tiny_model, ["a dog", "low hum"], **arguments)
    for seconds in (0.4, 50):
        found = generate(tiny_model, ["a dog", "low hum"], window_seconds=seconds, **arguments)
        assert_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "guidance_scale"), [("dpmpp_2m", 3.5), ("pndm", 1.0), ("euler_ancestral", 3.5)]
)
def test_timeline_of_one_prompt_is_the_prompt(tiny_model, sampler, guidance_scale):
    """Though it goes through the windows, one of them as long as the sound."""
    arguments = dict(sampler=sampler, guidance_scale=guidance_scale, negative_prompt="hiss")
    arguments["num_inference_steps"] = 4  # pndm takes no fewer
    found = generate(tiny_model, [("a dog", 0, 0.4)], **arguments)
    assert found.request.windows == Windows(10, 10, (0,))
    assert_equal(found, generate(tiny_model, audio_length_in_s=0.4, **arguments))


def test_timeline_of_one_prompt_in_windows_is_the_prompt_in_windows(tiny_model):
    assert_equal(generate(tiny_model, [("a dog", 0, 1.2)], **WINDOWS), generate(tiny_model, **WINDOWS))


@pytest.mark.slow
def test_stages_alone_do_what_generate_does(tiny_model):
    noise = torch.randn(tiny_model.sound.latents(2, FRAMES))
    for how in (WINDOWS, WINDOWS | {"loop": True}, {"loop": True}):
        result = generate(tiny_model, ["a dog", "low hum"], latents=noise, **how)
        conditioning = tiny_model.encode_prompt(["a dog", "low hum"])
        z = tiny_model.denoise(conditioning, noise, num_inference_steps=2, **how)
        assert torch.equal(z, result.latents)
        mel = tiny_model.decode(z, loop="loop" in how)
        assert torch.equal(mel, result.mel)
        wave = tiny_model.vocode(mel, loop="loop" in how)
        assert torch.equal(wave[:, : result.audio.shape[2]], result.audio[:, 0])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("sampling", "how"), list(zip(SAMPLINGS, 2 * [WINDOWS, WINDOWS | {"loop": True}], strict=True))
)
def test_sound_in_windows_is_the_same_in_any_batch_bit_for_bit(tiny_model, sampling, how):
    prompts, seeds = ["a dog", "A hammer hitting a wooden surface", ""], [5, 60, 700]
    alone = [generate(tiny_model, p, seed=s, **sampling, **how) for p, s in zip(prompts, seeds, strict=True)]
    together = generate(tiny_model, prompts, seed=seeds, **sampling, **how)
    for row, expected in enumerate(alone):
        assert torch.equal(together.latents[row], expected.latents[0])
        assert torch.equal(together.audio[row], expected.audio[0])


@pytest.mark.slow
def test_timeline_is_the_same_in_any_batch_bit_for_bit(tiny_model):
    others = [[("Birds sing & people cheer!", 0, 1.2)], TIMELINE, [("hum", 0, 0.3), ("", 0.3, 1.2)]]
    together = generate(tiny_model, others, seed=[1, 2, 3], **WINDOWS)
    for row, timeline in enumerate(others):
        alone = generate(tiny_model, timeline, seed=row + 1, **WINDOWS)
        assert torch.equal(together.audio[row], alone.audio[0])


@pytest.mark.slow
def test_candidates_of_a_timeline_are_the_sounds_of_the_next_seeds(tiny_model):
    result = generate(tiny_model, TIMELINE, seed=5, num_waveforms_per_prompt=2, **WINDOWS)
    assert sorted(result.seeds[0]) == [5, 6]
    for place, seed in enumerate(result.seeds[0]):
        alone = generate(tiny_model, TIMELINE, seed=seed, **WINDOWS)
        assert torch.equal(result.audio[0, place], alone.audio[0, 0])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("prompt", "guidance_scale"), [("a dog", 1.0), (TIMELINE, 3.5)], ids=["prompt", "timeline"]
)
def test_number_of_windows_at_once_changes_nothing(tiny_model, prompt, guidance_scale, monkeypatch):
    results = []
    for at_once in (1, 2, 50):
        monkeypatch.setattr("audioldm2.runtime.memory.windows_at_once", lambda *_, many=at_once: many)
        results.append(generate(tiny_model, prompt, guidance_scale=guidance_scale, **WINDOWS).latents)
    for found in results[1:]:
        assert (found - results[0]).norm() <= 1e-5 * results[0].norm()


# What has to differ.


def test_windows_and_prompts_matter(tiny_model):
    plain, windows, timeline, loop = (
        generate(tiny_model, prompt, **how).latents
        for prompt, how in (
            ("a dog", {}), ("a dog", WINDOWS), (TIMELINE, WINDOWS), ("a dog", WINDOWS | {"loop": True}),
        )
    )  # fmt: skip
    for one, other in ((plain, windows), (windows, timeline), (windows, loop)):
        assert (one - other).norm() > 1e-3 * one.norm()


def test_frames_of_a_timeline_follow_their_own_prompts(tiny_model):
    """In windows of a single prompt a step of a timeline is that of the prompt; between, it is neither."""
    noise = torch.randn(tiny_model.sound.latents(1, 100))
    arguments = dict(latents=noise, num_inference_steps=1, guidance_scale=1, **WINDOWS)
    first, second = (tiny_model.generate([(text, 0, 4)], **arguments).latents for text in ("a dog", "hum"))
    both = tiny_model.generate([("a dog", 0, 2), ("hum", 2, 4)], **arguments).latents
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[:, :, :40], first[:, :, :40], **close)
    torch.testing.assert_close(both[:, :, 60:], second[:, :, 60:], **close)
    assert (first - second)[:, :, :40].abs().amax() > 1e-3
    for one in (first, second):
        assert (both - one)[:, :, 49:51].abs().amax() > 1e-4


# Loops.


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("sampling", "window", "turn"),
    [
        *((SAMPLINGS[0], *how) for how in ((None, 1), (0.4, 17))),
        *((sampling, 0.4, turn) for sampling, turn in zip(SAMPLINGS[1:3], (4, 17), strict=True)),
    ],
)
def test_rolled_noise_gives_a_rolled_loop(tiny_model, sampling, window, turn):
    noise = torch.randn(tiny_model.sound.latents(2, FRAMES))
    arguments = dict(loop=True, window_seconds=window, seed=[4, 9], **sampling)
    prompts = ["a dog", "low hum"]
    found = generate(tiny_model, prompts, latents=noise.roll(turn, dims=2), **arguments)
    expected = generate(tiny_model, prompts, latents=noise, **arguments)
    latents, audio = expected.latents.roll(turn, dims=2), expected.audio.roll(turn * CELL, dims=2)
    assert (found.latents - latents).norm() <= 1e-5 * latents.norm()
    assert (found.audio - audio).norm() <= 1e-4 * audio.norm()


def test_rolled_noise_gives_a_rolled_loop_with_guidance_rescaled_in_an_interval(tiny_model):
    noise = torch.randn(tiny_model.sound.latents(1, FRAMES))
    arguments = dict(loop=True, guidance_rescale=0.7, guidance_interval=(0.5, 5), **WINDOWS)
    found, expected = (
        generate(tiny_model, latents=x, **arguments).latents for x in (noise.roll(7, 2), noise)
    )
    assert (found - expected.roll(7, 2)).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("seconds", "frames"), [(1.2, 30), (1.19, 30), (1.21, 31), (0.29, 7)])
def test_loop_is_a_whole_number_of_latent_frames(tiny_model, seconds, frames):
    result = generate(tiny_model, audio_length_in_s=seconds, loop=True)
    assert result.audio.shape == (1, 1, frames * CELL)
    assert result.latents.shape[2] == frames and result.mel.shape[1] == 4 * frames
    assert result.record()["audio_length_in_s"] == pytest.approx(frames * CELL / SECOND)


def test_loop_of_a_timeline_fades_its_end_into_its_start(tiny_model):
    result = generate(tiny_model, TIMELINE, loop=True, num_waveforms_per_prompt=2, **WINDOWS)
    assert result.audio.shape == (1, 2, FRAMES * CELL) and result.scores is not None


# Cost.


def rows(model: AudioLDM2, seconds: float, **arguments) -> tuple[int, int]:
    """All rows of the network, and the most in a call."""
    with watched(model) as calls:
        generate(model, audio_length_in_s=seconds, num_inference_steps=2, **arguments)
    lengths = {frames for _, frames in calls}
    assert lengths == {10}, "every call sees windows"
    return sum(count for count, _ in calls), max(count for count, _ in calls)


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "guidance_scale"), [(False, 3.5), (True, 1.0)])
def test_cost_is_linear_in_memory_that_does_not_grow(tiny_model, loop, guidance_scale, monkeypatch):
    arguments = dict(loop=loop, guidance_scale=guidance_scale, **WINDOWS)
    once, most = rows(tiny_model, 1.2, **arguments)
    four_times, most_of_four = rows(tiny_model, 4.8, **arguments)
    assert four_times <= 4.4 * once
    per_window = 2 if guidance_scale > 1 else 1
    assert most <= most_of_four == 8 * per_window
    monkeypatch.setattr("audioldm2.runtime.memory.available_bytes", lambda _: 2.5e6)
    assert rows(tiny_model, 4.8, **arguments)[1] < most_of_four


@pytest.mark.slow
def test_only_prompts_in_a_window_are_computed(tiny_model):
    """Ten prompts, one after the other: a window has one or two of them."""
    timeline = [(f"hum {i}", i, i + 1) for i in range(10)]
    with watched(tiny_model) as calls:
        tiny_model.generate(timeline, num_inference_steps=1, **WINDOWS)
    windows = len(Windows.over(250, 10, 2).starts)
    assert 2 * windows < sum(count for count, _ in calls) < 2.8 * windows


def test_many_prompts_at_once_stay_within_the_batch(tiny_model, monkeypatch):
    monkeypatch.setattr("audioldm2.runtime.memory.windows_at_once", lambda *_: 1)
    with watched(tiny_model) as calls:
        tiny_model.generate([(f"hum {i}", 0, 1.2) for i in range(5)], num_inference_steps=1, **WINDOWS)
    assert max(count for count, _ in calls) == 2


def test_window_longer_than_memory_is_named(tiny_model, monkeypatch):
    monkeypatch.setattr("audioldm2.runtime.memory.available_bytes", lambda *_: 10_000)
    with pytest.raises(ArgumentError, match=r"window_seconds is 0\.4; it has to be at most about"):
        generate(tiny_model, **WINDOWS)
    with pytest.raises(ArgumentError, match=r"audio_length_in_s is 1\.2; it has to be at most about"):
        generate(tiny_model, TIMELINE)


# With what else, the record, and mistakes.


def test_given_sound_is_remade_in_windows(tiny_model):
    wave = 0.3 * torch.sin(torch.arange(int(1.2 * SECOND)) / 9)
    arguments = dict(audio=wave, audio_length_in_s=None, mask_start_seconds=0.4, mask_end_seconds=0.8)
    found, whole = (generate(tiny_model, **arguments, **how) for how in (WINDOWS, {}))
    assert torch.equal(found.latents[:, :, :10], whole.latents[:, :, :10])
    assert not torch.equal(found.latents[:, :, 10:20], whole.latents[:, :, 10:20])


@pytest.mark.slow
def test_rank_of_a_timeline_is_the_mean_score_of_its_parts(tiny_model):
    result = generate(tiny_model, TIMELINE, num_waveforms_per_prompt=2, **WINDOWS)
    for audio, score in zip(result.audio[0], result.scores[0], strict=True):
        wanted = [
            tiny_model.score(text, audio[int(start * SECOND) : int(end * SECOND)])
            for text, start, end in TIMELINE
        ]
        assert score.item() == pytest.approx(torch.cat(wanted).mean().item(), abs=1e-6)
    assert result.scores[0, 0] >= result.scores[0, 1]


@pytest.mark.slow
def test_record_has_the_timeline_and_the_windows(tiny_model):
    result = generate(tiny_model, [TIMELINE, [("hum", 0, 1.2)]], loop=True, **WINDOWS)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["prompt"] == [["a dog", 0, 0.7], ["low hum", 0.5, 1.2]]
    assert result.record(1)["prompt"] == [["hum", 0, 1.2]]
    assert (record["loop"], record["window_seconds"], record["overlap"], record["windows"]) == (
        True,
        0.4,
        0.2,
        4,
    )
    assert record["audio_length_in_s"] == 1.2
    again = generate(tiny_model, record["prompt"], loop=True, **WINDOWS)
    assert torch.equal(again.audio[0], result.audio[0])
    assert "windows" not in generate(tiny_model).record()


@pytest.mark.parametrize(
    ("prompt", "arguments", "sentence"),
    [
        ("a dog", dict(overlap=0.6), "overlap is 0.6; it has to be above 0 and at most 0.5, of a window."),
        ("a dog", dict(overlap=0), "overlap is 0; it has to be above 0 and at most 0.5, of a window."),
        ("a dog", dict(overlap=0.3),
             "overlap is 0.3; it has to be left out unless the sound is a loop, or denoised in windows."),
        ("a dog", dict(window_seconds=0.04),
         "window_seconds is 0.04; it has to be at least 0.08 seconds, two latent frames."),
        ("a dog", dict(window_seconds=0),
         "window_seconds is 0; it has to be above 0 and at most 86400 seconds."),
        ("a dog", dict(loop=1), "loop is 1; it has to be True or False."),
        ("a dog", dict(loop=True, window_seconds=4),
         "loop is a sound of 1.2 s; it has to be at least two overlaps long, 1.6 s: ask for a longer sound, "
         "a shorter window or less overlap."),
        ("a dog", dict(loop=True, audio_length_in_s=0.04),
         "loop is a sound of 0.04 s; it has to be at least two overlaps long, 0.08 s: ask for a longer "
         "sound, a shorter window or less overlap."),
        ("a dog", dict(loop=True, audio=torch.ones(9), audio_length_in_s=None),
         "audio is silent; it has to be louder than -120 dB."),
        ("a dog", dict(loop=True, audio=torch.randn(900), audio_length_in_s=None),
         "loop is True; it has to be left out with audio, whose start and end do not join."),
        ([("a dog", 0, 1.2)], dict(audio=torch.randn(900)),
         "prompt is a timeline; it has to be a text or texts with audio."),
        ([("a dog", 0, 1.2)], dict(audio_length_in_s=2),
         "audio_length_in_s is 2.0; it has to be left out, or 1.2 as the timeline's end."),
        ([("a dog", 0, 1), ("hum", 1.1, 1.2)], {},
         "prompt has no text from 1 to 1.1 s; it has to leave no gap."),
        ([("a dog", 0, 1.2)], dict(negative_prompt=["a", "b"]),
         "negative_prompt has 2 entries for 1 prompts; it has to have one for each prompt, or be one text "
         "for all."),
    ],
)  # fmt: skip
def test_sentences_of_mistakes_before_any_network(tiny_model, monkeypatch, prompt, arguments, sentence):
    monkeypatch.setattr(type(tiny_model.networks), "running", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(ArgumentError) as caught:
        generate(tiny_model, prompt, **arguments)
    assert str(caught.value) == sentence


def test_denoise_refuses_what_generate_refuses(tiny_model):
    conditioning = tiny_model.encode_prompt("a dog")
    with pytest.raises(
        ArgumentError, match=r"loop is a sound of 0\.12 s; it has to be at least two overlaps"
    ):
        tiny_model.denoise(
            conditioning, torch.randn(tiny_model.sound.latents(1, 3)), loop=True, window_seconds=1
        )
