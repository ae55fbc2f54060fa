"""Editing: arguments and files that cannot be used."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.editing.edit import Edit
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from tests.support.editing import FRAMES, RATE, SCHEDULE, SHAPE, edit, refused, resolved, tone
from tests.support.sizes import full_or

# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(strength=1.5), "strength is 1.5; it has to be a number from 0 to 1."),
        (dict(strength=0.05, num_inference_steps=10),
         "strength is 0.05; it has to be 0, or at least 0.1: one of 10 steps."),
        (dict(mask_start_seconds=0.2, mask_end_seconds=0.2),
         "mask_end_seconds is 0.2; it has to be above the start, which is 0.2."),
        (dict(mask_start_seconds=0.4),
         "mask_start_seconds is 0.4; it has to be below 0.32 s, where the sound ends."),
        (dict(mask_end_seconds=0.4),
         "mask_end_seconds is 0.4; it has to be at most 0.32 s, where the sound ends."),
        (dict(mask_end_seconds=-1), "mask_end_seconds is -1; it has to be a finite number of at least 0."),
        (dict(mask_start_seconds=[]),
         "mask_start_seconds is []; it has to be a number or a list of at least one."),
        (dict(mask_start_seconds=[0, 0.1], mask_end_seconds=[0.05]),
         "mask_end_seconds has 1 entries for 2 of mask_start_seconds; it has to have one for each start."),
        (dict(mask_start_hz=9000),
         "mask_start_hz is 9000.0; it has to be below 8000 Hz, where the sound ends."),
        (dict(mask_start_hz=500, mask_end_hz=400),
         "mask_end_hz is 400.0; it has to be above the start, which is 500."),
        (dict(repaint_mask=torch.zeros(FRAMES, 16, dtype=torch.bool)),
         "repaint_mask marks nothing to remake; it has to mark at least one cell as True."),
        (dict(repaint_mask=torch.ones(FRAMES, 16)),
         "repaint_mask is a torch.float32; it has to be a bool tensor (time, mel) or (batch, 1, time, mel) "
         "of latent cells, True where to remake."),
        (dict(repaint_mask=torch.ones(3, 16, dtype=torch.bool)),
         "repaint_mask has shape (3, 16); it has to have shape (8, 16) or (1, 1, 8, 16) for this sound."),
        (dict(repaint_mask=torch.ones(FRAMES, 16, dtype=torch.bool), mask_start_hz=0),
         "mask_start_hz is (0.0,); it has to be left out with repaint_mask."),
        (dict(repaint_mask=torch.ones(FRAMES, 16, dtype=torch.bool), resample_times=2),
         "resample_times is 2; it has to be 1 where nothing of the sound is kept."),
        (dict(resample_times=2), "resample_times is 2; it has to be 1 where nothing of the sound is kept."),
        (dict(extend_seconds=(0, 0)),
         "extend_seconds is (0, 0); it has to be the seconds to add at the end, or two numbers (before, "
         "after), one of them above 0."),
        (dict(audio=tone(500), extend_seconds=1),
         "extend_seconds is (0.0, 1.0) for a sound of 0.03125 s; it has to be used with a sound of at least "
         "0.06 s."),
        (dict(latents=torch.zeros(1, 8, FRAMES, 16)),
         "latents is set; it has to be left out with audio, as the latent comes from the sound."),
        (dict(audio_length_in_s=3),
         "audio_length_in_s is 3.0; it has to be left out with audio, as the length follows the sound."),
        (dict(audio=torch.zeros(2, 900)),
         "audio has shape (2, 900); it has to be one sound, (samples,): average the channels of a stereo "
         "sound."),
        (dict(audio=torch.zeros(900)), "audio is silent; it has to be louder than -120 dB."),
        (dict(audio=torch.zeros(0)), "audio has no samples; it has to have at least one."),
        (dict(audio=torch.full((9,), math.nan)),
         "audio has 9 samples of 9 that are NaN or infinite; it has to be finite."),
        (dict(audio="x.wav", audio_sample_rate=9),
         "audio_sample_rate is 9; it has to be left out for a file, which has its own."),
    ],
)  # fmt: skip
def test_sentences_of_mistakes(arguments: dict, sentence: str):
    assert refused(**arguments) == sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [("strength", 0.5), ("mask_start_seconds", 1), ("mask_end_hz", 1), ("extend_seconds", 1),
     ("resample_times", 2), ("audio_sample_rate", 16000),
     ("repaint_mask", torch.ones(2, 2, dtype=torch.bool))],
)  # fmt: skip
def test_editing_options_need_a_sound(name: str, value: object):
    with pytest.raises(ArgumentError, match=rf"{name} is .*; it has to be left out without audio\."):
        Edit.resolve(GenerationOptions(**{name: value}), SHAPE, SCHEDULE, 1)


def test_mistakes_come_before_any_network(tiny_model, monkeypatch):
    monkeypatch.setattr(type(tiny_model.networks), "running", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(ArgumentError):
        edit(tiny_model, mask_start_seconds=9)
    with pytest.raises(FileNotFoundError):
        edit(tiny_model, audio="no such file.wav")


@settings(max_examples=full_or(300, 100), deadline=None)
@given(
    name=st.sampled_from(["audio", "audio_sample_rate", "strength", "mask_start_seconds", "mask_end_hz",
                          "repaint_mask", "resample_times", "extend_seconds"]),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.lists(st.floats(), max_size=3),
        st.sampled_from([np.zeros(3), torch.zeros(2, 3), torch.zeros(1, device="meta"),
                         torch.zeros(2).to_sparse(), torch.ones(2, dtype=torch.bool),
                         np.ones((2, 2), bool), {}, object()]),
    ),
)  # fmt: skip
def test_anything_is_accepted_or_refused_by_name(name: str, value: object):
    try:
        GenerationOptions(**{name: value})
    except ArgumentError as error:
        assert error.name.startswith(name)


# Files.


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("encoding", ["PCM_U8", "PCM_16", "FLOAT"])
def test_files_of_any_rate_channels_and_depth(tmp_path: Path, rate: int, channels: int, encoding: str):
    path = tmp_path / "sound.wav"
    wave = tone(rate // 2, rate=rate).numpy()
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=encoding)
    found = resolved(str(path))
    assert found.samples == RATE // 2 and found.sound.given_rate == rate
    expected = tone(RATE // 2)
    assert (found.sound.wave - expected)[200:-200].norm() < 0.1 * expected.norm()


def test_files_that_are_no_sound(tmp_path: Path):
    broken = np.full(900, np.nan, dtype=np.float32)
    files = {name: tmp_path / f"{name}.wav" for name in ("empty", "nan", "text", "nothing", "silent")}
    soundfile.write(files["empty"], np.zeros(0), RATE)
    soundfile.write(files["nan"], broken, RATE, subtype="FLOAT")
    soundfile.write(files["silent"], np.zeros(900), RATE)
    files["text"].write_text("hello")
    files["nothing"].write_bytes(b"")
    sentences = {name: refused(audio=path) for name, path in files.items()}
    assert all(sentence.startswith(str(files[name])) for name, sentence in sentences.items())
    assert "has no samples; it has to have at least one." in sentences["empty"]
    assert "has 900 samples of 900 that are NaN or infinite" in sentences["nan"]
    assert "is silent; it has to be louder than -120 dB." in sentences["silent"]
    assert "is not a sound file that can be read" in sentences["text"]
    assert "is a folder; it has to be a sound file." in refused(audio=tmp_path)


def test_sound_longer_than_memory(tiny_model, monkeypatch):
    """Refused before any network runs, whichever stage would take too much."""
    from audioldm2.runtime import memory

    monkeypatch.setattr(type(tiny_model.networks), "running", lambda *_: pytest.fail("a network ran"))
    monkeypatch.setattr("audioldm2.runtime.memory.available_bytes", lambda *_: 1_000_000)
    needs = r"{} lasts 0\.32 seconds; it has to last at most about 0 seconds: 0\.32 need some .* GB"
    for stage in ("bytes_for_one_sound", "bytes_to_encode"):
        with monkeypatch.context() as patch:
            for each in ("bytes_for_one_sound", "bytes_to_encode"):
                patch.setattr(memory, each, lambda *_, much=each == stage: 900_000 if much else 1)
            with pytest.raises(ArgumentError, match=needs.format("audio")):
                edit(tiny_model)
    monkeypatch.setattr(memory, "bytes_to_encode", lambda *_: 900_000)
    with pytest.raises(ArgumentError, match=needs.format("audio")):
        edit(tiny_model, strength=0.0)
    with pytest.raises(ArgumentError, match=needs.format("wave")):
        tiny_model.encode_audio(tone(), RATE)
