"""Front ends and resampling against transformers, librosa and the published training code."""

import numpy as np
import pytest
import torch

from audioldm2.audio import CLAP_MEL, VAE_MEL, clap_log_mel, mel_filters, resample, vae_log_mel
from audioldm2.models.clap_audio import ClapAudio, ClapAudioConfig

librosa = pytest.importorskip("librosa")
transformers = pytest.importorskip("transformers")

TIME = np.arange(480_000) / 48_000


def white(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples)


SOUNDS = {  # at 48 kHz
    "noise": white(480_000),
    "tone": 0.5 * np.sin(2 * np.pi * 440 * TIME),
    "sweep": 0.5 * np.sin(2 * np.pi * (50 + 600 * TIME) * TIME),
    "click": (np.arange(480_000) == 100_000) * 1.0,
    "silence": np.zeros(480_000),
    "repeated": white(100_001),
    "a few samples": white(7),
}


@pytest.mark.parametrize("settings", [VAE_MEL, CLAP_MEL], ids=["vae", "clap"])
def test_mel_filters(settings):
    expected = librosa.filters.mel(
        sr=settings.sample_rate,
        n_fft=settings.n_fft,
        n_mels=settings.mels,
        fmin=settings.f_min,
        fmax=settings.f_max,
        dtype=np.float64,
    )
    np.testing.assert_allclose(mel_filters(settings).numpy(), expected.T, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", SOUNDS)
def test_clap_log_mel(name):
    extractor = transformers.ClapFeatureExtractor(  # the settings of AudioLDM 2's preprocessor_config.json
        truncation="rand_trunc", padding="repeatpad", frequency_min=50, frequency_max=14_000
    )
    wave = SOUNDS[name].astype(np.float32)
    expected = extractor([wave], sampling_rate=48_000, return_tensors="pt").input_features[:, 0]
    ours = clap_log_mel(torch.from_numpy(wave)[None])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)  # dB


@pytest.mark.parametrize("name", SOUNDS)
def test_vae_log_mel(name):
    """The published training code: librosa's filters in float32, magnitudes, natural logarithm."""
    wave = torch.from_numpy(np.resize(SOUNDS[name], 163_840).astype(np.float32))[None]
    edge = (1024 - 160) // 2
    padded = torch.nn.functional.pad(wave.unsqueeze(1), (edge, edge), mode="reflect").squeeze(1)
    spectrum = torch.stft(
        padded, 1024, 160, 1024, torch.hann_window(1024), center=False, normalized=False, return_complex=True
    )
    filters = torch.from_numpy(
        librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=0, fmax=8000)
    ).float()
    expected = torch.log(torch.clamp(filters @ spectrum.abs(), min=1e-5)).transpose(1, 2)
    torch.testing.assert_close(vae_log_mel(wave), expected, atol=1e-4, rtol=0)


def broadband(kind: str) -> np.ndarray:
    """10 s at 16 kHz."""
    samples = 160_000
    if kind == "pink":
        spectrum = np.fft.rfft(white(samples, seed=1)) / np.sqrt(np.arange(1, samples // 2 + 2))
        return 0.1 * np.fft.irfft(spectrum) / np.fft.irfft(spectrum).std()
    bursts = white(samples, seed=2) * (np.arange(samples) % 8000 < 800)
    return bursts + 0.1 * np.sign(np.sin(2 * np.pi * 220 * np.arange(samples) / 16_000))  # and a square wave


@pytest.mark.parametrize("kind", ["pink", "bursts"])
def test_resampling_hardly_changes_the_clap_embedding(kind):
    """16 to 48 kHz against soxr in its "HQ" setting, compared by CLAP's embeddings."""
    torch.manual_seed(0)
    clap = ClapAudio(
        ClapAudioConfig(dim=16, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), projection_dim=64)
    ).eval()
    wave = broadband(kind).astype(np.float32)
    expected = torch.from_numpy(librosa.resample(wave, orig_sr=16_000, target_sr=48_000))
    ours = resample(torch.from_numpy(wave), 16_000, 48_000)
    other = resample(torch.from_numpy(np.ascontiguousarray(wave[::-1])) * 1.1, 16_000, 48_000)
    assert ours.shape == expected.shape
    with torch.no_grad():
        ours, expected, other = clap(clap_log_mel(torch.stack([ours, expected, other])))
    assert 1 - ours @ expected < 1e-4
    # A random network embeds all sounds close together, so compare with the sound reversed and louder too.
    assert (ours - expected).norm() < 0.1 * (ours - other).norm()


@pytest.mark.parametrize(("from_rate", "to_rate"), [(16_000, 48_000), (44_100, 16_000), (48_000, 16_000)])
@pytest.mark.parametrize("samples", [16_001, 44_100])
def test_resampling_in_length_and_pass_band(from_rate, to_rate, samples):
    """The same length as librosa's, and the same sound below the edge of the band."""
    spectrum = np.fft.rfft(white(samples))
    spectrum[int(0.9 * min(from_rate, to_rate) / from_rate * len(spectrum)) :] = 0
    wave = np.fft.irfft(spectrum, samples).astype(np.float32)
    expected = librosa.resample(wave, orig_sr=from_rate, target_sr=to_rate)
    ours = resample(torch.from_numpy(wave), from_rate, to_rate).numpy()
    assert ours.shape == expected.shape
    middle = slice(1000, -1000)
    # From 44.1 to 16 kHz, soxr's gain falls by 0.002 dB towards 7 kHz, an error of -73 dB; ours by less than
    # 1e-5 dB.
    assert 20 * np.log10(np.std(ours[middle] - expected[middle]) / np.std(expected[middle])) < -70  # dB
