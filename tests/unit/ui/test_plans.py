"""What a form asks for, checked before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.audio import write_wav
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape
from audioldm2.ui.limits import Limits
from audioldm2.ui.models import Known
from audioldm2.ui.plans import GENERATE, REMAKE, SPEAK, plan
from audioldm2.ui.worker import Job

SHAPE = SoundShape(sample_rate=16000, hop=160, downsampling=4, latent_channels=8, mels=64)
KNOWN = Known(SHAPE, NoiseSchedule(), speaks=False)
SPEAKER = replace(KNOWN, speaks=True)
LIMITS = Limits(seconds=20, steps=100, candidates=4)


def refused(form, limits=LIMITS, known=KNOWN, **values) -> str:
    with pytest.raises(ArgumentError) as caught:
        plan(form, {"prompt": "rain"} | values, known, limits)
    return form.sentence(caught.value)


@pytest.fixture
def tone(tmp_path) -> Path:
    write_wav(tmp_path / "tone.wav", 0.3 * torch.sin(torch.arange(16000) * 0.1), 16000)
    return tmp_path / "tone.wav"


def test_a_form_becomes_a_call():
    made = plan(GENERATE, {"prompt": "rain", "audio_length_in_s": "2.5", "seed": 7}, KNOWN, LIMITS)
    assert (made.prompt, made.options.audio_length_in_s, made.options.seed) == ("rain", 2.5, 7)


def test_a_source_makes_an_edit_with_the_defaults_of_edits(tone):
    values = {"prompt": "a bell", "audio": str(tone), "source_prompt": "a tone", "sampler": "dpmpp_2m"}
    made = plan(REMAKE, values, KNOWN, LIMITS)
    assert isinstance(made.options, EditOptions)
    assert (made.options.sampler, made.audio) == ("auto", tone)


def test_limits_of_the_server_come_before_the_rules_of_the_library():
    assert refused(GENERATE, audio_length_in_s=1e9).endswith(
        "it has to be at most 20 seconds on this server."
    )
    assert refused(GENERATE, num_inference_steps=101).endswith("it has to be at most 100 on this server.")
    assert refused(GENERATE, num_waveforms_per_prompt=5).endswith("it has to be at most 4 on this server.")


def test_the_default_length_counts_too():
    words = refused(GENERATE, limits=replace(LIMITS, seconds=5))
    assert words == "Duration is 10.0; it has to be at most 5 seconds on this server."


def test_repeated_steps_and_added_seconds_count(tone):
    own = {"audio": str(tone), "mask_start_seconds": 0.2, "mask_end_seconds": 0.4}
    assert refused(REMAKE, resample_times=10**9, **own).startswith("Steps makes 25,000,000,000 with all")
    words = refused(REMAKE, audio=str(tone), extend_seconds=50)
    assert words == "Extend makes 51 seconds of the sound; it has to be at most 20 seconds on this server."


def test_texts_are_limited():
    long = "x" * 2001
    assert refused(GENERATE, prompt=long) == "Prompt has 2,001 characters; it has to have at most 2,000."
    assert refused(GENERATE, negative_prompt=long).startswith("Negative prompt has 2,001 characters")
    assert refused(GENERATE, prompt=" \n") == "Prompt is empty; it has to describe a sound."
    assert "surrogate" in refused(GENERATE, prompt="\udc00")


def test_a_long_sound_is_refused_by_its_header(tone, monkeypatch):
    monkeypatch.setattr("audioldm2.editing.edit.read", lambda path: pytest.fail("it was decoded"))
    words = refused(REMAKE, limits=replace(LIMITS, seconds=0.5), audio=str(tone))
    assert words == "Your sound lasts 1.0 seconds; it has to last at most 0.5 on this server."


def test_a_broken_sound_is_named_without_its_path(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"no sound")
    words = refused(REMAKE, audio=str(tmp_path / "x.wav"))
    assert words.startswith("Your sound is not a sound file") and str(tmp_path) not in words
    assert refused(REMAKE) == "Your sound is missing; it has to be a sound file, or a recording."


def test_options_of_an_edit_need_a_source(tone):
    assert refused(REMAKE, audio=str(tone), skip=0.5).startswith("Skip is 0.5; it has to be left out")


def test_a_sound_prompt_stands_beside_a_text_or_alone(tone):
    hearing = replace(KNOWN, hears=True)
    for prompt in ("rain", "", None):
        values = {"prompt": prompt, "audio_prompt": str(tone), "heard": "3"}
        made = plan(GENERATE, values, hearing, LIMITS)
        assert (made.prompt, made.options.audio_prompt, made.options.heard) == (prompt or "", tone, 3)
    own = plan(REMAKE, {"audio": str(tone), "audio_prompt": str(tone)}, hearing, LIMITS)
    assert own.options.audio == own.options.audio_prompt == tone


def test_a_bad_sound_prompt_is_named_without_its_path(tone, tmp_path):
    hearing, bad = replace(KNOWN, hears=True), tmp_path / "x.wav"
    bad.write_bytes(b"no sound")
    words = refused(GENERATE, known=hearing, audio_prompt=str(bad))
    assert words.startswith("Sound prompt is not a sound file") and str(tmp_path) not in words
    words = refused(GENERATE, limits=replace(LIMITS, seconds=0.5), known=hearing, audio_prompt=str(tone))
    assert words.startswith("Sound prompt lasts 1.0 seconds; it has to last at most 0.5")
    words = refused(GENERATE, audio_prompt=str(tone))
    assert words == "Sound prompt is set; it has to be left out: this model has no AudioMAE, which reads it."
    assert refused(GENERATE, heard=3) == "Heard is 3; it has to be left out without a sound prompt."
    words = refused(REMAKE, known=hearing, audio=str(tone), audio_prompt=str(tone), source_prompt="a tone")
    assert words.startswith("Sound prompt is set; it has to be left out of an edit")


def test_speech_needs_words_and_a_model_that_speaks():
    assert refused(SPEAK) == "Words is empty; it has to say what is spoken."
    assert refused(SPEAK, transcription="hello") == "Model does not speak; it has to be one that speaks."
    made = plan(SPEAK, {"prompt": "a woman says", "transcription": "one"}, SPEAKER, LIMITS)
    assert (made.prompt, made.options.transcription) == ("a woman says", "one")


@pytest.mark.slow
def test_words_are_spoken_by_the_model_in_the_box():
    values = {"prompt": "a woman says", "transcription": "one two three", "num_inference_steps": 1}
    model = audioldm2.load("demo-speech", device="cpu")
    result = plan(SPEAK, values, replace(SPEAKER, sound=model.sound), LIMITS).run(
        model, Job(lambda job: None)
    )
    assert result.audio.shape == (1, 1, 30720) and result.record()["transcription"] == "one two three"
