"""Pictures: a waveform above a spectrogram in Hz, and a spectrogram alone."""

import sys
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

from audioldm2.audio import CLAP_MEL, VAE_MEL, mel_filters, plot, vae_log_mel
from audioldm2.audio.plot import save_plot, save_spectrogram
from audioldm2.errors import ArgumentError


def tone(frequency: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency / 16_000 * torch.arange(16_000))


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure drawn in a test."""
    drawn, make = [], plot._new_figure
    monkeypatch.setattr(plot, "_new_figure", lambda height: drawn.append(make(height)) or drawn[-1])
    return drawn


def test_plot_is_a_waveform_above_a_spectrogram_in_hz(tmp_path, figures):
    wave = tone(1000)
    save_plot(wave.numpy(), 16_000, vae_log_mel(wave[None])[0], VAE_MEL, "a dog for $5", tmp_path / "dog.png")
    assert matplotlib.image.imread(tmp_path / "dog.png").shape[2] == 4
    above, below = figures[0].axes[:2]
    assert above.get_title() == "a dog for $5" and above.get_ylabel() == "amplitude"
    assert below.get_ylabel() == "Hz"
    heights = dict(zip([t.get_text() for t in below.get_yticklabels()], below.get_yticks(), strict=True))
    assert {"500", "1,000", "2,000", "5,000"} <= set(heights)
    brightest = below.images[0].get_array()[:, 50].argmax() + 0.5
    assert abs(brightest - heights["1,000"]) < 1
    assert below.get_xlim() == above.get_xlim() == (0, 1)


@pytest.mark.parametrize("front_end", [VAE_MEL, CLAP_MEL, replace(VAE_MEL, mels=8)])
def test_hz_ticks_stand_at_their_bands(tmp_path, figures, front_end):
    wave = tone(440)
    save_plot(wave, 16_000, torch.zeros(100, front_end.mels), front_end, "", tmp_path / "dog.png")
    axes = figures[0].axes[1]
    filters = mel_filters(front_end).numpy()
    assert len(axes.get_yticks()) >= 3
    for label, height in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True):
        hz = float(label.get_text().replace(",", ""))
        weights = filters[round(hz / front_end.sample_rate * front_end.n_fft)]
        if weights.any():  # narrow bands lie between the bins of the transform
            assert abs(height - 0.5 - weights.argmax()) < 1.01
    assert (np.abs(np.diff(axes.get_yticks())) >= front_end.mels / 24).all()


def test_plot_keeps_every_peak_of_a_long_waveform(tmp_path, figures):
    wave = torch.zeros(16_000 * 60)
    wave[123_457] = 0.9
    save_plot(wave, 16_000, torch.zeros(6000, 64), VAE_MEL, "click", tmp_path / "click.png")
    vertices = figures[0].axes[0].collections[0].get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(0.9)
    assert len(vertices) < 20_000


@pytest.mark.parametrize("samples", [1, 7, 2001])
def test_plot_of_few_samples(tmp_path, samples):
    save_plot(torch.zeros(samples), 16_000, torch.zeros(1, 64), VAE_MEL, "", tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 1000


def test_plot_rejects_shapes(tmp_path):
    for wave, mel in ((torch.zeros(160), torch.zeros(1, 63)), (torch.zeros(0), torch.zeros(1, 64))):
        with pytest.raises(ArgumentError, match=r"mel has shape .*; it has to be \(time, 64\)"):
            save_plot(wave, 16_000, mel, VAE_MEL, "", tmp_path / "x.png")
    with pytest.raises(ArgumentError, match="wave is int64"):
        save_plot(torch.zeros(160).long(), 16_000, torch.zeros(1, 64), VAE_MEL, "", tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_spectrogram_alone_counts_bands(tmp_path, figures):
    save_spectrogram(torch.zeros(100, 64), "x" * 200, tmp_path / "x.png", 0.01)
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "mel band" and axes.get_xlim() == (0, 1)
    assert len(axes.get_title()) == 100
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_plot_without_matplotlib_raises_import_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        save_spectrogram(torch.zeros(100, 64), "", tmp_path / "x.png", 0.01)
    assert not list(tmp_path.iterdir())
