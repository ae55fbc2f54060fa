"""AudioMAE's front end: padding, silence, level, and what it refuses. Values: tests/parity/test_fbank.py."""

import math

import pytest
import torch

from audioldm2.audio import audiomae_fbank, kaldi_filters
from audioldm2.errors import ArgumentError

SILENCE = (math.log(2**-23) + 4.2677393) / (2 * 4.5689974)  # -1.278
PADDING = 4.2677393 / (2 * 4.5689974)  # 0.467


def noise(seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(seconds * 16_000))


def test_padding_is_louder_than_silence():
    """Zeros are added to log-mels before they are normalised, as upstream does."""
    found = audiomae_fbank(torch.zeros(1, 16_000))
    whole = 1 + (16_000 - 400) // 160
    torch.testing.assert_close(found[:, :whole], torch.full((1, whole, 128), SILENCE))
    torch.testing.assert_close(found[:, whole:], torch.full((1, 1024 - whole, 128), PADDING))


def test_sound_of_10_24_s_has_1022_frames():
    found = audiomae_fbank(noise(10.24))
    assert found.shape == (1, 1024, 128)
    assert (found[:, 1022:] - PADDING).abs().max() < 1e-6
    assert (found[:, 1021] - PADDING).abs().min() > 1e-3


def test_longer_sound_is_cut():
    wave = noise(15)
    wave -= wave.mean()
    kept = wave[:, : 1023 * 160 + 400]
    torch.testing.assert_close(audiomae_fbank(wave), audiomae_fbank(kept), atol=1e-3, rtol=0)


def test_tone_lies_in_its_band():
    """Bands are evenly spaced in mels, 1127 ln(1 + Hz / 700), between 20 and 8000 Hz."""
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)[None]
    low, high = (1127 * math.log1p(hz / 700) for hz in (20, 8000))
    band = (1000 - low) / ((high - low) / 129) - 1
    assert audiomae_fbank(wave)[0, 50].argmax().item() == round(band)


def test_twice_the_amplitude_adds_the_logarithm_of_four():
    wave = noise(2.56)
    louder = audiomae_fbank(2 * wave)[:, :200] - audiomae_fbank(wave)[:, :200]
    audible = kaldi_filters(128).sum(dim=0) > 0
    assert audible.sum() == 127 and not audible[3], "a band lies between two bins of the transform"
    expected = torch.full_like(louder[..., audible], math.log(4) / (2 * 4.5689974))
    torch.testing.assert_close(louder[..., audible], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (torch.zeros(16_000), r"wave has shape \(16000,\); it has to be \(batch, samples\)"),
        (torch.zeros(1, 399), "wave has 399 samples; it has to have at least 400, a frame"),
    ],
)
def test_rejects_what_has_no_frame(wave: torch.Tensor, words: str):
    with pytest.raises(ArgumentError, match=words):
        audiomae_fbank(wave)
