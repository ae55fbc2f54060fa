"""Sounds from sounds: encoding, strength, what is kept and what is remade, seeds, records."""

import json
import math
import re
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import audioldm2
from audioldm2.audio import VAE_FLOOR
from audioldm2.editing.input_sound import InputSound, log_mel
from audioldm2.editing.latent_cells import band_bounds
from audioldm2.errors import ArgumentError
from tests.support.editing import (
    CELL,
    CLOSE,
    FADE,
    FRAMES,
    RATE,
    SHAPE,
    STEPS,
    broadband,
    edit,
    resolved,
    tone,
)
from tests.support.sizes import full_or

# Encoding.


def test_encoding_is_deterministic_float32_and_in_whole_latent_frames(tiny_model):
    for samples, frames in ((40, 1), (CELL, 1), (CELL + 1, 2), (8 * CELL, 8)):
        z = tiny_model.encode_audio(tone(samples), RATE)
        assert z.shape == (1, 8, frames, 16) and z.dtype == torch.float32
        assert torch.equal(z, tiny_model.encode_audio(tone(samples)))


def test_encoding_ignores_level_and_offset(tiny_model):
    expected = tiny_model.encode_audio(broadband())
    for other in (0.01 * broadband(), 2 * broadband() - 0.3):
        found = tiny_model.encode_audio(other)
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_encoding_takes_arrays_batches_and_other_rates(tiny_model):
    expected = tiny_model.encode_audio(tone())
    assert torch.equal(tiny_model.encode_audio(tone().numpy()), expected)
    other = tone() * torch.linspace(0, 1, FRAMES * CELL)
    both = tiny_model.encode_audio(torch.stack([tone(), other]))
    assert torch.equal(both, torch.cat([expected, tiny_model.encode_audio(other)]))
    fast = tiny_model.encode_audio(tone(3 * FRAMES * CELL, rate=3 * RATE), 3 * RATE)
    assert (fast - expected).norm() < 0.05 * expected.norm()


def test_encoding_is_the_posterior_mean_of_the_normalized_sound(tiny_model):
    wave = broadband() - broadband().mean()
    mel = audioldm2.audio.vae_log_mel(0.5 * (wave / wave.abs().max())[None])[:, None]
    with tiny_model.networks.running("vae") as vae, torch.no_grad():
        mean, _ = vae.encode(mel)
    assert (tiny_model.encode_audio(broadband()) - mean).norm() < 1e-5 * mean.norm()


def test_padding_is_silent():
    """Frames after the end, beyond what the window sees, are at the floor of the log-mel, and never 0."""
    sound = InputSound.prepare(tone(CELL), RATE, RATE, "audio")
    mel = log_mel(sound, SHAPE, frames=10, before=4)
    assert mel.shape == (1, 1, 40, 64)
    assert (mel[0, 0, :13] == math.log(VAE_FLOOR)).all() and (mel[0, 0, 23:] == math.log(VAE_FLOOR)).all()
    assert mel[0, 0, 17].max() > -3


@pytest.mark.parametrize(
    ("wave", "sentence"),
    [
        (torch.zeros(1000), "wave is silent; it has to be louder than -120 dB."),
        (torch.full((1000,), 0.3), "wave is silent; it has to be louder than -120 dB."),
        (torch.zeros(0), "wave has no samples; it has to have at least one."),
        (torch.zeros(0, 9), "wave has no sounds; it has to have at least one."),
        (torch.tensor([0.1, math.nan, math.inf]),
         "wave has 2 samples of 3 that are NaN or infinite; it has to be finite."),
        (torch.stack([tone(1000), torch.zeros(1000)]),
         "wave[1] is silent; it has to be louder than -120 dB."),
        (torch.zeros(9, dtype=torch.int16),
         "wave is int16 (9,); it has to be floats in [-1, 1], (samples,) or (sounds, samples), with one "
         "sample or more."),
    ],
)  # fmt: skip
def test_sounds_that_cannot_be_encoded(tiny_model, wave, sentence):
    with pytest.raises(ArgumentError) as caught:
        tiny_model.encode_audio(wave)
    assert str(caught.value) == sentence


# Strength.


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "pndm"])
def test_strength_0_is_the_reconstruction_without_a_call_of_the_denoiser(tiny_model, sampler, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the denoiser ran")

    monkeypatch.setattr("audioldm2.stages.make_denoiser", refuse)
    result = edit(tiny_model, strength=0.0, sampler=sampler)
    z = tiny_model.encode_audio(tone())
    assert torch.equal(result.latents, z)
    assert torch.equal(result.mel, tiny_model.decode(z))
    sound = InputSound.prepare(tone(), RATE, RATE, "audio")
    expected = sound.at_own_level(tiny_model.vocode(tiny_model.decode(z)))[:, : FRAMES * CELL]
    assert torch.equal(result.audio[0], expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("sampler", "mask"),
    [
        ("ddim", {}),
        ("dpmpp_2m_sde", {"mask_start_seconds": 0.0}),
        ("pndm", {"mask_start_hz": 0.0}),
    ],
)
def test_strength_1_is_generate(tiny_model, sampler, mask):
    arguments = dict(sampler=sampler, eta=0.7 if sampler == "ddim" else 0.0, seed=3)
    expected = tiny_model.generate(
        "a dog", audio_length_in_s=FRAMES * CELL / RATE, num_inference_steps=STEPS, **arguments
    )
    found = edit(tiny_model, strength=1.0, **mask, **arguments)
    for name in ("latents", "mel", "audio"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "pndm"])
def test_strength_is_the_share_of_steps_that_run(tiny_model, sampler):
    steps: list[int] = []
    result = edit(
        tiny_model, strength=0.6, sampler=sampler, num_inference_steps=10,
        on_step=lambda step, t, x0: steps.append(step),
    )  # fmt: skip
    assert steps == [5, 6, 7, 8, 9, 10]
    assert result.record()["steps_taken"] == 6


def test_strength_is_a_half_unless_a_part_is_remade():
    assert resolved().strength == 0.5
    for part in (dict(mask_start_seconds=0.1), dict(mask_end_hz=4000), dict(extend_seconds=1)):
        assert resolved(**part).strength == 1.0
        assert resolved(**part, strength=0.7).strength == 0.7


def test_strength_counts_steps_without_rounding_errors():
    for steps in range(1, full_or(101, 31)):
        for taken in range(1, steps + 1):
            found = resolved(strength=taken / steps, num_inference_steps=steps)
            assert found.walk.steps - found.first == taken


# What is kept.


def remade_frames(start: int, end: int) -> dict:
    """A mask of latent frames, from whose times it widens back."""
    return dict(mask_start_seconds=(start + 0.3) * 0.04, mask_end_seconds=(end - 0.3) * 0.04)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("sampler", "resample_times"), [("dpmpp_2m", 1), ("ddim", 1), ("pndm", 1), ("dpmpp_2m_sde", 2)]
)
def test_kept_latents_and_samples_are_the_sounds_own(tiny_model, sampler, resample_times):
    eta = 0.7 if sampler == "ddim" else 0.0
    result = edit(tiny_model, sampler=sampler, eta=eta, resample_times=resample_times, **remade_frames(3, 5))
    z, audio = tiny_model.encode_audio(tone()), result.audio[0, 0]
    kept = [0, 1, 2, 5, 6, 7]
    assert torch.equal(result.latents[:, :, kept], z[:, :, kept])
    assert (result.latents - z)[:, :, 3:5].norm() > 0.1 * z[:, :, 3:5].norm()
    assert torch.equal(audio[: 3 * CELL], tone()[: 3 * CELL])
    assert torch.equal(audio[5 * CELL :], tone()[5 * CELL :])
    middle = slice(3 * CELL + FADE, 5 * CELL - FADE)
    own_level = InputSound.prepare(tone(), RATE, RATE, "audio").at_own_level(tiny_model.vocode(result.mel))
    assert torch.equal(audio[middle], own_level[0, middle])
    assert (audio[middle] - tone()[middle]).norm() > 0.1 * tone()[middle].norm()


def test_fade_is_between_the_two():
    found = resolved(**remade_frames(3, 5))
    made = torch.full((1, FRAMES * CELL + 32), 0.1)
    audio, level = found.finish(made)[0], found.sound.at_own_level(made)[0, 0]
    share = (audio - tone()) / (level - tone())
    up, down = share[3 * CELL : 3 * CELL + FADE], share[5 * CELL - FADE : 5 * CELL]
    assert ((up > -1e-4) & (up < 1 + 1e-4)).all() and up[0] < 1e-3 and up[-1] > 1 - 1e-3
    torch.testing.assert_close(up, down.flip(0), rtol=0, atol=2e-2)


def test_masks_at_the_ends_fade_inside_only():
    found = resolved(mask_end_seconds=0.08)
    audio = found.finish(torch.zeros(1, FRAMES * CELL))[0]
    assert (audio[: 2 * CELL - FADE] == found.sound.mean).all()
    assert torch.equal(audio[2 * CELL :], tone()[2 * CELL :])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_kept_bands_are_the_sounds_own(tiny_model, sampler):
    result = edit(tiny_model, sampler=sampler, mask_start_hz=4000)
    z = tiny_model.encode_audio(tone())
    assert torch.equal(result.latents[..., :12], z[..., :12])
    assert not torch.equal(result.latents[..., 12:], z[..., 12:])
    assert result.record()["remade_hz"] == [[3633.1, 8000.0]]


def test_time_and_frequency_remake_where_both_hold():
    mask = resolved(mask_start_seconds=[0.0, 0.2], mask_end_seconds=[0.05, 0.3], mask_start_hz=6000).remake
    expected = torch.zeros(1, 1, FRAMES, 16, dtype=torch.bool)
    expected[:, :, [0, 1, 5, 6, 7], 14:] = True
    assert torch.equal(mask, expected)


def test_repaint_mask_marks_cells_and_rows(tiny_model):
    cells = torch.zeros(FRAMES, 16, dtype=torch.bool)
    cells[2:4, 5:] = True
    z = tiny_model.encode_audio(tone())
    result = edit(tiny_model, repaint_mask=cells)
    assert torch.equal(result.latents[0, :, ~cells], z[0, :, ~cells])
    rows = torch.stack([cells, torch.zeros_like(cells)])[:, None]
    both = edit(tiny_model, ["a dog", "a dog"], repaint_mask=rows)
    assert (both.latents[0] - result.latents[0]).norm() <= CLOSE * result.latents[0].norm()
    assert torch.equal(both.latents[1], z[0]), "nothing remade is the input"
    assert torch.equal(both.audio[1, 0], tone())


def test_masked_edit_may_start_midway(tiny_model):
    result = edit(tiny_model, strength=0.4, **remade_frames(3, 5))
    z = tiny_model.encode_audio(tone())
    full = edit(tiny_model, **remade_frames(3, 5))
    assert torch.equal(result.latents[:, :, :3], z[:, :, :3])
    changed = [(each.latents - z)[:, :, 3:5].norm() for each in (result, full)]
    assert 0 < changed[0] < changed[1]


def test_length_and_level_follow_the_sound(tiny_model):
    for samples in (CELL - 1, 3 * CELL + 1, 4163):
        result = edit(tiny_model, audio=tone(samples))
        assert result.audio.shape == (1, 1, samples)
        assert result.record()["audio_length_in_s"] == samples / RATE
    quiet, loud = (edit(tiny_model, audio=level * (tone() - 0.05)).audio for level in (0.01, 1.0))
    assert (100 * quiet - loud).norm() < 1e-2 * loud.norm()


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(3 * CELL + FADE, 6 * CELL), before=st.floats(0, 0.3), after=st.floats(0.001, 0.3))
def test_extension_adds_what_was_asked_and_keeps_the_sound(samples: int, before: float, after: float):
    sound = tone(samples)
    found = resolved(sound, extend_seconds=(before, after))
    audio = found.finish(torch.full((1, found.frames * CELL + 32), 0.9))[0]
    lead = int(before * RATE)
    assert len(audio) == lead + samples + int(after * RATE)
    # At most a latent frame of the sound, and the part of one, are remade beside the fade.
    head, end = lead + (CELL if lead else 0), lead + samples - (FADE + CELL)
    assert torch.equal(audio[head:end], sound[head - lead : end - lead])
    outside = torch.cat([audio[:lead], audio[lead + samples :]])
    assert (outside == found.sound.at_own_level(torch.tensor(0.9))).all()


@pytest.mark.parametrize("extension", [0.1, (0.1, 0), (0.06, 0.11)])
def test_continuation_keeps_the_latents_inside(tiny_model, extension):
    found = edit(tiny_model, extend_seconds=extension)
    frames = found.request.edit
    z = tiny_model._encode(frames.log_mel(), "audio")
    inside = ~frames.remake[0, 0].any(dim=1)
    assert torch.equal(found.latents[:, :, inside], z[:, :, inside])
    assert inside.sum() >= FRAMES - 2


# Batches, seeds and the record.


SAMPLINGS = [{"sampler": "dpmpp_2m"}, {"sampler": "dpmpp_2m_sde"}, {"sampler": "ddim", "eta": 1.0}]
EDITS = [{"strength": 0.6}, remade_frames(3, 5), remade_frames(3, 5) | {"resample_times": 2}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "how"),
    [(SAMPLINGS[0], EDITS[0]), (SAMPLINGS[1], EDITS[2]), (SAMPLINGS[2], EDITS[1])],
)
def test_edited_sound_is_independent_of_its_batch(tiny_model, sampling, how, monkeypatch):
    how = how | {"num_inference_steps": 3}
    prompts, seeds = ["a dog", "low hum", ""], [5, 60, 700]
    alone = [
        edit(tiny_model, prompt, seed=seed, **sampling, **how).audio[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    together = edit(tiny_model, prompts, seed=seeds, **sampling, **how)
    monkeypatch.setattr("audioldm2.runtime.memory.sounds_at_once", lambda *_: 2)
    sliced = edit(tiny_model, prompts, seed=seeds, **sampling, **how)
    for row, expected in enumerate(alone):
        for found in (together, sliced):
            assert (found.audio[row] - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.slow
def test_candidates_are_the_sounds_of_the_next_seeds(tiny_model):
    result = edit(tiny_model, seed=5, num_waveforms_per_prompt=2, **remade_frames(3, 5))
    for place, seed in enumerate(result.seeds[0]):
        expected = edit(tiny_model, seed=seed, **remade_frames(3, 5)).audio[0, 0]
        assert (result.audio[0, place] - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("how", [{"strength": 0.6}, remade_frames(3, 5)], ids=["strength", "mask"])
def test_seeds_decide_what_is_new(tiny_model, how):
    first, again, other = (edit(tiny_model, seed=seed, **how) for seed in (1, 1, 2))
    assert torch.equal(first.audio, again.audio)
    assert (first.latents - other.latents).norm() > 0.05 * first.latents.norm()


def test_record_names_the_sound_and_what_was_used(tiny_model, tmp_path):
    path = tmp_path / "street.wav"
    soundfile.write(path, tone().numpy(), RATE, subtype="FLOAT")
    result = edit(tiny_model, audio=path, mask_start_seconds=0.09, mask_end_seconds=0.2, extend_seconds=0.1)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    sound = record["audio"]
    assert (sound["file"], sound["sample_rate"], sound["seconds"]) == (
        "street.wav",
        RATE,
        FRAMES * CELL / RATE,
    )
    assert sound["sha256"] == InputSound.prepare(tone(), RATE, RATE, "audio").sha256
    assert (record["mask_start_seconds"], record["mask_end_seconds"]) == ([0.09], [0.2])
    assert record["remade_seconds"] == [[0.08, 0.2], [0.28, 0.44]]
    assert record["strength"] == 1.0 and record["extend_seconds"] == [0.0, 0.1]
    assert "audio" not in tiny_model.generate("a dog", audio_length_in_s=0.1, num_inference_steps=2).record()


# Cells.


def test_bands_of_the_published_model():
    bounds = band_bounds(SHAPE)
    assert [round(each) for each in bounds[-5:]] == [3633, 4400, 5328, 6452, 8000]
    assert bounds[0] == 0 and len(bounds) == 17 and bounds == sorted(bounds)


@given(st.integers(0, FRAMES - 1), st.integers(1, FRAMES))
def test_whole_cells_stay_as_they_are(first: int, count: int):
    last = min(first + count, FRAMES)
    found = resolved(mask_start_seconds=first * 0.04, mask_end_seconds=last * 0.04).remake
    rows = found[0, 0].all(dim=1).nonzero().flatten().tolist()
    assert rows == list(range(first, last))


# The model in the box.


@pytest.mark.slow
def test_lines_of_the_readme_run():
    text = (Path(audioldm2.__file__).parent / "sampling" / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    names: dict[str, object] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert isinstance(names["z"], Tensor) and names["z"].isfinite().all()
