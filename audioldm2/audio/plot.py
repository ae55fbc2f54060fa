"""Pictures of sounds. They need matplotlib, which is optional and imported on first use."""

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from audioldm2.audio.mel import MelSettings, mel_edges
from audioldm2.audio.waves import require_waves
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2000  # of the waveform, each from its lowest to its highest sample
TICKS = [digit * decade for decade in (10, 100, 1_000, 10_000) for digit in (1, 2, 5)]  # Hz


def save_plot(
    wave: Tensor | np.ndarray,
    sample_rate: int,
    mel: Tensor,
    front_end: MelSettings,
    title: str,
    path: str | os.PathLike,
) -> None:
    """Write a PNG, completely or not at all: the waveform above the log-mel spectrogram, with an axis in Hz.

    Args:
        wave:        floats (samples,), full scale at ±1.
        sample_rate: Hz, of `wave`.
        mel:         (time, mels), log magnitudes.
        front_end:   the settings that `mel` was computed with; they give its frequencies and frame rate.
        title:       any text; the picture shows the first 100 characters.
        path:        the file.

    Raises:
        ArgumentError: the wave or the spectrogram has another shape.
        ImportError: matplotlib is not installed.
        OSError: from the system, unchanged.
    """
    wave = require_waves("wave", wave, most_dims=1).float().cpu().numpy()
    sample_rate = require_whole("sample_rate", sample_rate, 1)
    if mel.ndim != 2 or mel.shape[1] != front_end.mels or not len(mel) or not len(wave):
        given = f"has shape {tuple(mel.shape)}, beside a wave of {len(wave)} samples"
        raise ArgumentError("mel", mel, f"be (time, {front_end.mels}), and neither empty", given=given)
    figure = _new_figure(height=5.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    _draw_wave(above, wave, len(wave) / sample_rate)
    _draw_spectrogram(figure, below, mel, len(mel) * front_end.hop / front_end.sample_rate)
    _label_hz(below, front_end)
    _write(figure, above, title, path)


def save_spectrogram(mel: Tensor, title: str, path: str | os.PathLike, seconds_per_frame: float) -> None:
    """Write a PNG, completely or not at all, of a log-mel spectrogram whose frequencies are not known.

    Args:
        mel:               (time, mels), log magnitudes.
        title:             any text; the picture shows the first 100 characters.
        path:              the file.
        seconds_per_frame: seconds from one frame to the next.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: from the system, unchanged.
    """
    figure = _new_figure(height=4)
    axes = figure.subplots()
    _draw_spectrogram(figure, axes, mel, len(mel) * seconds_per_frame)
    axes.set_ylabel("mel band")
    _write(figure, axes, title, path)


def _new_figure(height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot, which has global state and opens windows

    return Figure(figsize=(10, height), layout="constrained")


def _draw_wave(axes: "Axes", wave: np.ndarray, seconds: float) -> None:
    """The range of the samples in each column: Agg cannot draw a line of many millions of points."""
    starts = np.linspace(0, len(wave), min(COLUMNS, len(wave)), endpoint=False).astype(int)
    low, high = np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
    times = starts * (seconds / len(wave))
    axes.fill_between(times, low, high, step="post", linewidth=0.5, edgecolor="C0")
    axes.set(ylabel="amplitude", ylim=(-1.05, 1.05))


def _draw_spectrogram(figure: "Figure", axes: "Axes", mel: Tensor, seconds: float) -> None:
    image = axes.imshow(
        mel.detach().float().cpu().T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, mel.shape[1]),
        cmap="magma",
    )
    axes.set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="log magnitude")


def _label_hz(axes: "Axes", front_end: MelSettings) -> None:
    """Label the vertical axis, which counts mel bands, in Hz: band i has its centre, edge i+1, at i + 1/2."""
    edges = mel_edges(front_end).numpy()
    heights = np.interp(TICKS, edges, np.arange(len(edges)) - 0.5, left=-1, right=-1)
    ticks: dict[float, str] = {}
    below = float("inf")
    for height, hz in sorted(zip(heights.tolist(), TICKS, strict=True), reverse=True):
        if 0 <= height <= min(below, front_end.mels):
            ticks[height] = f"{hz:,}"
            below = height - front_end.mels / 24  # labels closer than that overlap
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylabel("Hz")


def _write(figure: "Figure", axes: "Axes", title: str, path: str | os.PathLike) -> None:
    axes.set_title(title if len(title) <= 100 else f"{title[:99]}…", parse_math=False)  # "$" is a dollar
    with atomic_write(path) as draft, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font's box stands for the letter
        figure.savefig(draft, format="png", dpi=120)
