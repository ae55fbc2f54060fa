"""AudioMAE's front end against transformers' feature extractor, within 1e-6."""

import numpy as np
import pytest
import torch

from audioldm2.audio import audiomae_fbank, kaldi_filters, resample

transformers = pytest.importorskip("transformers")
utils = pytest.importorskip("transformers.audio_utils")

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")

SECONDS = (0.1, 2.56, 10.24, 15.0)


def tones(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Two tones and a little noise, with an offset."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 3100 * time) + 0.01 * noise + 0.05


def assert_same(wave: np.ndarray, frames: int = 1024, mels: int = 128) -> None:
    """The extractor leaves out the first step, subtracting the mean of the whole sound."""
    extractor = transformers.ASTFeatureExtractor(max_length=frames, num_mel_bins=mels)
    centred = (wave - wave.mean()).astype(np.float32)
    expected = extractor(centred, sampling_rate=16_000, return_tensors="pt").input_values
    found = audiomae_fbank(torch.from_numpy(centred)[None], frames, mels)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_offset_is_removed():
    """It is a sound's own; adding one changes nothing."""
    wave = torch.from_numpy(tones(1.0))[None]
    torch.testing.assert_close(audiomae_fbank(wave + 0.25), audiomae_fbank(wave), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seconds", SECONDS)
def test_lengths(seconds: float):
    assert_same(tones(seconds))


SOUNDS = {
    "silence": np.zeros(40_960),
    "noise": 0.1 * np.random.default_rng(1).standard_normal(40_960),
    "clipped": np.clip(20 * tones(2.56), -1, 1),
    "square": np.sign(np.sin(2 * np.pi * 220 * np.arange(40_960) / 16_000)),
    "click": (np.arange(40_960) == 20_000) * 1.0,
    "very quiet": 1e-7 * tones(2.56),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name: str):
    assert_same(SOUNDS[name])


def test_stereo_at_48_khz():
    """The average of the channels, resampled: what callers hand over."""
    stereo = torch.from_numpy(np.stack([tones(2.56, 48_000), tones(2.56, 48_000, seed=1)]))
    assert_same(resample(stereo.mean(dim=0), 48_000, 16_000).numpy())


def test_other_sizes():
    assert_same(tones(2.0), frames=256, mels=64)
    assert_same(tones(2.0), frames=64, mels=80)


@pytest.mark.parametrize("mels", [128, 64])
def test_filters(mels: int):
    theirs = utils.mel_filter_bank(
        257, mels, 20, 8000, 16_000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    np.testing.assert_allclose(kaldi_filters(mels).numpy(), theirs, atol=1e-12, rtol=0)
