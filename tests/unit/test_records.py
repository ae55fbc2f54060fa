"""The record of a sound: its settings, given back as keywords, make the same sound."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from audioldm2 import AudioLDM2, Result
from audioldm2.audio import write_wav
from audioldm2.edit_options import EditOptions
from audioldm2.options import GenerationOptions

RATE, STEPS = 16_000, 2
RAIN_AND_BIRDS = [("rain", 0.0, 0.5), ("birds", 0.4, 0.97)]  # ends inside a latent frame
WINDOWS = dict(window_seconds=0.4, overlap=0.3)

GENERATED: dict[str, dict[str, Any]] = {
    "nothing but the prompt": dict(audio_length_in_s=0.97),
    "guidance": dict(
        negative_prompt="music", guidance_interval=(0.1, float("inf")), guidance_rescale=0.5, seed=7
    ),
    "a noisy sampler": dict(sampler="ddim", eta=1.0, unconditional="trained"),
    "windows": dict(WINDOWS, num_waveforms_per_prompt=2),
    "a loop": dict(loop=True, audio_length_in_s=0.97),
    "a loop in windows": dict(WINDOWS, loop=True, num_waveforms_per_prompt=2, seed=3),
    "a timeline": dict(prompt=RAIN_AND_BIRDS, audio_length_in_s=None),
    "a looped timeline": dict(prompt=RAIN_AND_BIRDS, audio_length_in_s=None, loop=True),
    "a timeline in windows": dict(WINDOWS, prompt=RAIN_AND_BIRDS, audio_length_in_s=None),
}
FROM_A_SOUND: dict[str, dict[str, Any]] = {
    "a strength": dict(strength=0.5, karras=True, sampler="euler_ancestral"),
    "no steps": dict(strength=0.0),
    "a part in time and frequency": dict(
        mask_start_seconds=[0.1, 0.5], mask_end_seconds=[0.2, 0.6], mask_start_hz=3000, resample_times=2
    ),
    "more before and after, in windows": dict(WINDOWS, extend_seconds=(0.1, 0.13)),
}
EDITS: dict[str, dict[str, Any]] = {
    "no source prompt": {},
    "a source prompt": dict(source_prompt="a tone", skip=0.5, source_guidance_scale=1.5),
    "the method direct": dict(source_prompt="a tone", method="direct", negative_prompt="music"),
    "a noisy sampler": dict(sampler="ddim", eta=0.7, unconditional="trained", seed=9),
    "windows": dict(WINDOWS, source_prompt="a tone", num_waveforms_per_prompt=2),
}


@pytest.fixture(scope="module")
def tone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    write_wav(path, 0.3 * torch.sin(torch.arange(int(0.8 * RATE)) / 6), RATE)
    return path


def again(result: Result, call: Callable[..., Result], kind: type, **given: Any) -> Result:
    """The best sound again, from what a JSON file keeps of its record."""
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    named = {each.name for each in fields(kind)} - {"audio", "audio_prompt"}
    options = {name: value for name, value in record.items() if name in named}
    return call(prompt=record["prompt"], **options | dict(num_waveforms_per_prompt=1) | given)


def assert_same(found: Result, expected: Result) -> None:
    assert torch.equal(found.audio[0, 0], expected.audio[0, 0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", GENERATED)
def test_settings_of_a_record_make_the_same_sound(tiny_model: AudioLDM2, what: str):
    asked = dict(prompt="rain", audio_length_in_s=0.64, num_inference_steps=STEPS) | GENERATED[what]
    result = tiny_model.generate(**asked)
    assert_same(again(result, tiny_model.generate, GenerationOptions), result)


@pytest.mark.parametrize("what", FROM_A_SOUND)
def test_settings_of_a_record_make_the_same_sound_from_a_sound(tiny_model: AudioLDM2, tone: Path, what: str):
    asked = dict(audio=tone, num_inference_steps=STEPS) | FROM_A_SOUND[what]
    result = tiny_model.generate("rain", **asked)
    # The length is that of the sound, and is not an option then.
    assert_same(
        again(result, tiny_model.generate, GenerationOptions, audio=tone, audio_length_in_s=None), result
    )


@pytest.mark.parametrize("more", [dict(heard=3, prompt="rain"), dict(loop=True)])
def test_settings_of_a_record_make_the_same_sound_like_a_sound(hearing: AudioLDM2, tone: Path, more: dict):
    result = hearing.generate(audio_prompt=tone, num_inference_steps=STEPS, audio_length_in_s=0.64, **more)
    assert result.record()["audio_prompt"]["file"] == tone.name
    assert_same(again(result, hearing.generate, GenerationOptions, audio_prompt=tone), result)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("what", EDITS)
def test_settings_of_a_record_make_the_same_edit(tiny_model: AudioLDM2, tone: Path, what: str):
    result = tiny_model.edit(tone, "rain", **dict(num_inference_steps=4) | EDITS[what])
    assert_same(again(result, tiny_model.edit, EditOptions, audio=tone), result)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pndm", "lms", "dpmpp_2m_sde"])
def test_sampler_makes_the_same_sound_again(tiny_model: AudioLDM2, sampler: str):
    result = tiny_model.generate("rain", audio_length_in_s=0.32, num_inference_steps=4, sampler=sampler)
    assert_same(again(result, tiny_model.generate, GenerationOptions), result)


@pytest.mark.slow
def test_best_of_several_prompts_and_candidates_is_made_again_alone(tiny_model: AudioLDM2):
    """But for rounding: a batch of another size is added up in another order."""
    result = tiny_model.generate(
        ["rain", "birds"], negative_prompt=["music", ""], seed=[5, 11], num_waveforms_per_prompt=3,
        audio_length_in_s=0.64, num_inference_steps=STEPS,
    )  # fmt: skip
    for place in range(2):
        record = result.record(place)
        found = tiny_model.generate(
            record["prompt"], negative_prompt=record["negative_prompt"], seed=record["seed"],
            audio_length_in_s=record["audio_length_in_s"], num_inference_steps=record["num_inference_steps"],
        )  # fmt: skip
        error = (found.audio[0, 0] - result.audio[place, 0]).abs().max()
        assert error < 1e-4 * result.audio[place, 0].abs().max()
