"""Frequencies that a mask keeps are the sound's own: how exactly, where the crossover lies, odd lengths."""

import math

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from audioldm2.audio import resample
from audioldm2.editing.edit import Edit
from audioldm2.editing.latent_cells import band_bounds
from audioldm2.editing.spectral_splice import CROSSOVER_HZ, splice
from audioldm2.options import GenerationOptions
from audioldm2.sound_shape import SoundShape
from tests.support.editing import CELL, FADE, FRAMES, RATE, SCHEDULE, SHAPE, broadband, edit, resolved

BOUNDS = band_bounds(SHAPE)
AT_48_KHZ = SoundShape(sample_rate=48_000, hop=480, downsampling=8, latent_channels=16, mels=256)
EDGE = BOUNDS[12]  # 3633 Hz, between bands 11 and 12


def sine(hz: float, samples: int = 16 * CELL, rate: int = RATE, phase: float = 1.0) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * hz * time + phase).float()


def remaking(first: int, last: int, frames: int = 16, bands: int = 16) -> Tensor:
    """A mask (1, frames, bands) that remakes these bands throughout."""
    mask = torch.zeros(1, frames, bands, dtype=torch.bool)
    mask[:, :, first:last] = True
    return mask


def decibels(error: Tensor, signal: Tensor) -> float:
    return 10 * math.log10(error.square().mean().item() / signal.square().mean().item() + 1e-30)


@pytest.mark.parametrize("hz", [0.1, 50, 440, 3000, EDGE - 100, EDGE - 1])
def test_tone_in_the_kept_band_comes_back(hz):
    """Within -60 dB, the 10 ms at either end included, which no filter sees whole."""
    own = sine(hz)
    found = splice(torch.zeros(1, len(own)), own, remaking(12, 16), BOUNDS, RATE)[0]
    ends = torch.cat([(found - own)[:160], (found - own)[-160:]])
    assert decibels(found - own, own) < -60 and decibels(ends, own) < -60


@pytest.mark.parametrize("hz", [EDGE + CROSSOVER_HZ + 1, 4500, 7999])
def test_tone_in_the_remade_band_is_the_models(hz):
    """Neither does the sound leak into the remade band, nor does the splice change the model's wave there."""
    made, silence = sine(hz), torch.zeros(16 * CELL)
    assert decibels(splice(silence[None], made, remaking(12, 16), BOUNDS, RATE)[0], made) < -45
    assert decibels(splice(made[None], silence, remaking(12, 16), BOUNDS, RATE)[0] - made, made) < -45


def test_model_is_not_heard_in_the_kept_band():
    made = sine(1000, phase=2.0)
    found = splice(made[None], torch.zeros(len(made)), remaking(12, 16), BOUNDS, RATE)[0]
    assert decibels(found, made) < -60


@pytest.mark.parametrize(("first", "last"), [(0, 4), (5, 6), (5, 9), (12, 16)])
def test_crossover_lies_inside_the_remade_bands(first, last):
    """White noise: outside the remade bands it is the sound's; at least half of them are the model's."""
    own = torch.randn(64 * CELL, generator=torch.Generator().manual_seed(0))
    found = splice(torch.zeros(1, len(own)), own, remaking(first, last), BOUNDS, RATE)[0]
    spectrum = torch.fft.rfft(found) / torch.fft.rfft(own)
    hz = torch.fft.rfftfreq(len(own), 1 / RATE)
    kept = (hz < BOUNDS[first] - 10) | (hz > BOUNDS[last] + 10)
    assert (spectrum[kept] - 1).abs().square().mean().sqrt() < 1e-2
    share = (1 - spectrum.abs()[(hz > BOUNDS[first]) & (hz < BOUNDS[last])]).mean()
    assert share > 0.45


def test_at_48_khz():
    bounds = band_bounds(AT_48_KHZ)
    own = sine(bounds[24] - 50, 24 * AT_48_KHZ.frame_samples, 48_000)
    mask = remaking(24, 32, frames=24, bands=32)
    assert decibels(splice(torch.zeros(1, len(own)), own, mask, bounds, 48_000)[0] - own, own) < -60


def test_everything_remade_is_the_wave_and_nothing_remade_waits_for_the_caller():
    made, own = sine(700)[None], sine(300)
    assert torch.equal(splice(made, own, remaking(0, 16), BOUNDS, RATE), made)
    assert torch.equal(splice(made, own, remaking(0, 0), BOUNDS, RATE), made)


def test_frames_that_are_remade_whole_are_the_wave_one_window_further():
    mask = remaking(12, 16)
    mask[:, 8:] = True
    made = torch.randn(1, 16 * CELL)
    found = splice(made, sine(440), mask, BOUNDS, RATE)
    assert torch.equal(found[:, 8 * CELL + 1024 :], made[:, 8 * CELL + 1024 :])
    assert not torch.equal(found[:, 8 * CELL + 200], made[:, 8 * CELL + 200])


def test_kept_frames_do_not_disturb_the_bands_beside_them():
    """The bands of a frame that is kept whole do not fade into the frames that are remade in part."""
    partly = remaking(12, 16)
    some = partly.clone()
    some[:, :5] = False
    made, own = torch.randn(1, 16 * CELL), sine(440)
    assert torch.equal(splice(made, own, some, BOUNDS, RATE), splice(made, own, partly, BOUNDS, RATE))


def test_rows_have_their_own_masks():
    masks = torch.cat([remaking(12, 16), remaking(0, 5), remaking(0, 0)])
    made = torch.randn(3, 16 * CELL)
    together = splice(made, sine(440), masks, BOUNDS, RATE)
    for row in range(3):
        alone = splice(made[row : row + 1], sine(440), masks[row : row + 1], BOUNDS, RATE)
        assert torch.equal(together[row], alone[0])
    shared = splice(made, sine(440), masks[:1], BOUNDS, RATE)
    assert torch.equal(shared[0], together[0])


@pytest.mark.parametrize("samples", [1, 2, 3, 63, 64, 65, CELL - 1, CELL + 1])
@pytest.mark.parametrize("start", [0, CELL])
def test_short_and_odd_lengths(samples, start):
    frames = 3
    found = splice(
        torch.randn(1, frames * CELL), sine(440, samples), remaking(12, 16, frames), BOUNDS, RATE, start
    )
    assert found.shape == (1, frames * CELL) and found.isfinite().all()


def test_blocks_give_what_the_whole_gives(monkeypatch):
    made, own = torch.randn(1, 16 * CELL), sine(440)
    whole = splice(made, own, remaking(12, 16), BOUNDS, RATE)
    monkeypatch.setattr("audioldm2.editing.spectral_splice.BLOCK", 7)
    torch.testing.assert_close(splice(made, own, remaking(12, 16), BOUNDS, RATE), whole, rtol=0, atol=1e-5)


# In an edit.


def energy(wave: Tensor, low: float, high: float) -> float:
    """Of a band, under a Hann window, so that the ends of the clip do not spread it."""
    spectrum = torch.fft.rfft((wave * torch.hann_window(len(wave))).double()).abs().square()
    hz = torch.fft.rfftfreq(len(wave), 1 / RATE)
    return spectrum[(hz >= low) & (hz <= high)].sum().item()


def band_decibels(error: Tensor, signal: Tensor, low: float, high: float) -> float:
    return 10 * math.log10(energy(error, low, high) / energy(signal, low, high) + 1e-30)


@pytest.mark.slow
@pytest.mark.parametrize("sound", [broadband(), 0.01 * broadband() + 0.2], ids=["loud", "quiet, with offset"])
def test_kept_frequencies_are_the_sounds_at_its_level(tiny_model, sound):
    audio = edit(tiny_model, audio=sound, mask_start_hz=4000).audio[0, 0]
    assert band_decibels(audio - sound, sound - sound.mean(), 0, EDGE - 10) < -60
    assert band_decibels(audio - sound, sound, EDGE + CROSSOVER_HZ, 8000) > -20


@pytest.mark.slow
def test_time_and_frequency_together(tiny_model):
    how = dict(mask_start_seconds=0.12, mask_end_seconds=0.2, mask_start_hz=4000)  # frames 3 and 4
    audio = edit(tiny_model, audio=broadband(), **how).audio[0, 0]
    for kept in (slice(0, 3 * CELL), slice(5 * CELL, None)):
        assert torch.equal(audio[kept], broadband()[kept])
    part = slice(3 * CELL + FADE, 5 * CELL - FADE)
    throughout = edit(tiny_model, audio=broadband(), mask_start_hz=4000).audio[0, 0]
    assert not torch.equal(audio[part], throughout[part])
    error, own = audio[part] - broadband()[part], broadband()[part]
    assert band_decibels(error, own, 0, EDGE - 100) < -60
    assert band_decibels(error, own, EDGE + CROSSOVER_HZ, 8000) > -20


@pytest.mark.slow
def test_batch_of_several_and_candidates(tiny_model):
    result = edit(
        tiny_model,
        ["a dog", "rain"],
        audio=broadband(),
        seed=[1, 2],
        num_waveforms_per_prompt=2,
        mask_end_hz=900,
    )
    for row, prompt in enumerate(("a dog", "rain")):
        for place, seed in enumerate(result.seeds[row]):
            alone = edit(tiny_model, prompt, audio=broadband(), seed=seed, mask_end_hz=900).audio[0, 0]
            assert (result.audio[row, place] - alone).norm() <= 1e-4 * alone.norm()


def test_continuation_with_kept_frequencies(tiny_model):
    """Both at once: silence beyond the sound does not reach into its kept band."""
    found = resolved(broadband(), mask_start_hz=4000, extend_seconds=(0.1, 0.1))
    made = torch.zeros(1, found.frames * CELL)
    made[:, found.before * CELL :][:, : FRAMES * CELL] = broadband()
    audio = found.finish(found.sound.normalized.mean() + (made - found.sound.mean) * found.sound.scale)[0]
    lead = int(0.1 * RATE)
    own = audio[lead : lead + FRAMES * CELL]
    assert decibels(own - broadband(), broadband()) < -60


@pytest.mark.parametrize("samples", [1, 2, 97, CELL - 1, CELL + 1, 4163])
def test_lengths_of_sounds(tiny_model, samples):
    sound = torch.linspace(0.3, -0.2, samples) + 0.1 * (torch.arange(samples) % 2)
    if samples == 1:  # one sample has no level of its own
        with pytest.raises(ValueError, match="audio is silent"):
            edit(tiny_model, audio=sound, mask_start_hz=4000)
        return
    result = edit(tiny_model, audio=sound, mask_start_hz=4000)
    assert result.audio.shape == (1, 1, samples) and result.audio.isfinite().all()


# Files of a lower rate.


def test_file_of_a_lower_rate_is_extended_from_where_it_fades(tiny_model, tmp_path):
    wave = broadband()[: FRAMES * CELL // 2]
    path = tmp_path / "phone.wav"
    soundfile.write(path, wave.numpy(), RATE // 2, subtype="FLOAT")
    result = edit(tiny_model, audio=path, mask_start_hz=4000)
    assert result.record()["remade_hz"] == [[3633.1, 8000.0]] and result.audio.shape[-1] == FRAMES * CELL
    own, audio = resample(wave, RATE // 2, RATE), result.audio[0, 0]
    assert band_decibels(audio - own, own, 0, EDGE - 10) < -60
    assert energy(audio, 4000, 8000) > 100 * energy(own, 4000, 8000)


@pytest.mark.parametrize(
    ("rate", "start", "remade"),
    [
        (22_050, 11_025.0, 9556),  # 10,888 Hz on alone would leave 10,545 to 10 887 Hz dull
        (22_050, 10_550.0, 9556),
        (22_050, 11_100.0, 10_888),  # above what the file holds: as asked
        (16_000, 8_000.0, 7363),
        (16_000, 7_640.0, 7363),
        (16_000, 8_001.0, 7363),
        (48_000, 11_025.0, 10_888),
        (96_000, 11_025.0, 10_888),
    ],
)
def test_remade_band_covers_what_resampling_fades(rate, start, remade):
    sound = torch.from_numpy(np.random.default_rng(0).standard_normal(rate // 4)).float()
    options = GenerationOptions(audio=sound, audio_sample_rate=rate, mask_start_hz=start)
    found = Edit.resolve(options, AT_48_KHZ, SCHEDULE, 1)
    [[low, high]] = found.record()["remade_hz"]
    assert (round(low), high) == (remade, 24_000.0)
