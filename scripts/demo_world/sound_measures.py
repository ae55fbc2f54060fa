"""Measures of a sound: loudness, length, reverberation, pitch, noisiness, sweep direction, tempo, family.

Each measure takes a mono wave (samples,) of any scale and length and its sample rate in Hz, and returns one
number (or features, for the classifier at the end). They are simple signal processing on purpose: they check
whether a sound matches its caption without having learned from captions.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from audioldm2.audio import VAE_MEL, mel_filters

HOP = 0.01  # s between frames
SILENCE = 1e-10  # the least power that counts: -100 dB full scale


# Level over time --------------------------------------------------------------------------------------------


def levels(audio: np.ndarray, rate: int, window: float = 0.05) -> np.ndarray:
    """Computes the RMS level of a sliding window every 10 ms, in dB to full scale ±1; at least one value.

    Args:
        audio: (samples,); silence completes a wave that is shorter than a window.
        rate: in Hz.
        window: in s.
    """
    length, hop = round(window * rate), round(HOP * rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    starts = np.arange(0, max(len(audio) - length, 0) + 1, hop)
    stops = np.minimum(starts + length, len(audio))
    return 10 * np.log10(np.maximum((energy[stops] - energy[starts]) / length, SILENCE))


def loudness(audio: np.ndarray, rate: int) -> float:
    """Measures the level of the loudest 50 ms in dB to full scale, so that pauses do not count."""
    return float(levels(audio, rate).max())


def active_seconds(audio: np.ndarray, rate: int) -> float:
    """Measures for how many seconds the level is within 30 dB of its maximum."""
    level = levels(audio, rate, window=0.02)
    return HOP * int((level > level.max() - 30).sum())


def steepest_fall(audio: np.ndarray, rate: int) -> float:
    """Measures the largest drop of the level within 100 ms, in dB; it is large for dry sounds.

    Only the upper 50 dB count, and the last 100 ms, where clips fade out, do not.
    """
    level = levels(audio, rate)
    level = np.maximum(level, level.max() - 50)[:-10]
    return float((level[:-10] - level[10:]).max(initial=0.0))


# Spectrum ---------------------------------------------------------------------------------------------------


def power_spectra(
    audio: np.ndarray, rate: int, window: float, hop: float = HOP
) -> tuple[np.ndarray, np.ndarray]:
    """Computes power spectra of Hann windows.

    Args:
        audio: (samples,), surrounded by silence.
        rate: in Hz.
        window: in s.
        hop: in s; frame n is centred on n * hop.

    Returns:
        Power (frames, bins), and the frequency of each bin in Hz.
    """
    length = round(window * rate)
    padded = np.pad(np.asarray(audio, dtype=np.float32), (length // 2, length))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[: len(audio) + 1 : round(hop * rate)]
    spectra = np.fft.rfft(frames * np.hanning(length).astype(np.float32))
    return spectra.real**2 + spectra.imag**2, np.fft.rfftfreq(length, 1 / rate)


def dominant_frequency(audio: np.ndarray, rate: int) -> float:
    """Finds the frequency with the most power over the whole clip, in Hz, above 50 Hz; 0 for silence."""
    power, hz = power_spectra(audio, rate, window=0.128, hop=0.04)
    mean = np.where(hz >= 50, power.mean(axis=0), 0.0)
    if mean.max() <= SILENCE:
        return 0.0
    peak = int(np.clip(mean.argmax(), 1, len(hz) - 2))
    # The peak of a Hann window is nearly parabolic on a log scale.
    left, top, right = np.log(mean[peak - 1 : peak + 2] + SILENCE)
    offset = 0.5 * (left - right) / min(left - 2 * top + right, -SILENCE)
    return float(hz[peak] + np.clip(offset, -0.5, 0.5) * hz[1])


def spectral_flatness(audio: np.ndarray, rate: int) -> float:
    """Divides the geometric by the arithmetic mean of the power spectrum, 100 Hz to 7.5 kHz.

    White noise is close to 1. Power is clamped to 60 dB below the strongest bin, so a pure tone is near 1e-4.
    """
    power, hz = power_spectra(audio, rate, window=0.032)
    mean = power.mean(axis=0)[(hz >= 100) & (hz <= 7500)]
    mean = np.maximum(mean, max(1e-6 * mean.max(), SILENCE))
    return float(np.exp(np.log(mean).mean()) / mean.mean())


def sweep_direction(audio: np.ndarray, rate: int) -> int:
    """Returns +1 if the pitch rises over the clip, -1 if it falls, 0 if it does neither.

    This is the sign of the slope of a line fitted to the strongest frequency of each frame, in octaves,
    weighted by amplitude. A rise of less than a tenth of an octave counts as 0.
    """
    power, hz = power_spectra(audio, rate, window=0.064)
    power, hz = power[:, hz >= 50], hz[hz >= 50]
    weight = np.sqrt(power.max(axis=1))
    if weight.max() ** 2 <= SILENCE:
        return 0
    weight = np.where(weight > 0.03 * weight.max(), weight, 0.0)
    octave = np.log2(hz[power.argmax(axis=1)])
    time = np.arange(len(octave)) - np.average(np.arange(len(octave)), weights=weight)
    slope = np.average(time * octave, weights=weight) / max(np.average(time**2, weights=weight), 1e-9)
    rise = slope * np.count_nonzero(weight)
    return int(np.sign(rise)) if abs(rise) >= 0.1 else 0


# Events -----------------------------------------------------------------------------------------------------


def onsets(audio: np.ndarray, rate: int) -> np.ndarray:
    """Finds when events start, in s: peaks of spectral growth, at least 80 ms apart."""
    power, hz = power_spectra(audio, rate, window=0.032)
    edges = np.geomspace(60, 0.48 * rate, 25)  # about third octaves, so that a click and a thump count alike
    first = np.searchsorted(hz, edges[:-1])
    bands = np.add.reduceat(power[:, : np.searchsorted(hz, edges[-1])], first, axis=1)
    decibels = 10 * np.log10(np.maximum(bands, max(1e-3 * bands.max(), SILENCE)))  # the upper 30 dB
    before = np.pad(decibels, ((2, 0), (0, 0)), constant_values=decibels.min())[:-2]  # 20 ms earlier
    growth = np.maximum(decibels - before, 0).mean(axis=1)
    growth = np.convolve(growth, [0.25, 0.5, 0.25], mode="same")
    reach = 8  # frames on either side that a peak has to exceed
    around = np.lib.stride_tricks.sliding_window_view(np.pad(growth, reach), 2 * reach + 1)
    is_peak = (growth == around.max(axis=1)) & (growth > max(0.3 * growth.max(), 0.5))
    return np.flatnonzero(is_peak) * HOP


def onset_rate(audio: np.ndarray, rate: int) -> float:
    """Measures events per second: the inverse of the median time between onsets.

    The median is robust to an event that is missed or counted twice. A single event counts once per clip.
    """
    times = onsets(audio, rate)
    if len(times) < 2:
        return len(times) * rate / len(audio)
    return float(1 / np.median(np.diff(times)))


# Family -----------------------------------------------------------------------------------------------------


def mel_statistics(audio: np.ndarray, rate: int) -> np.ndarray:
    """Computes features (features,) that distinguish families of sounds at any level, from mel bands.

    Per band: the mean, the standard deviation and the mean absolute difference over time. The mean of the
    bands sorted by size, which does not depend on pitch. Quantiles of the level, of the spectral centroid and
    of their differences over time, the centroid's correlation with time, and the fraction of loud frames.
    """
    power, _ = power_spectra(audio, rate, window=VAE_MEL.n_fft / rate)
    mel = (torch.from_numpy(power).sqrt() @ _filters(rate)).numpy()  # (frames, mels)
    mel = np.log(np.maximum(mel, SILENCE))
    mel = np.maximum(mel - mel.max(), -7.0)  # the upper 60 dB
    steps = np.abs(np.diff(mel, axis=0))
    level = mel.max(axis=1)
    weight = np.exp(mel) / np.exp(mel).sum(axis=1, keepdims=True)
    centroid = weight @ np.arange(mel.shape[1])  # in bands
    loud = np.flatnonzero(level > -4)
    time, path = loud - loud.mean(), centroid[loud] - centroid[loud].mean()
    trend = time @ path / max(np.sqrt(time @ time * (path @ path)), 1e-3)
    fifths = np.linspace(0, 1, 6)
    return np.concatenate(
        [mel.mean(axis=0), mel.std(axis=0), steps.mean(axis=0), np.sort(mel, axis=1).mean(axis=0)]
        + [
            np.quantile(curve, fifths)
            for curve in (level, np.diff(level), path, np.diff(path, prepend=path[0]))
        ]
        + [[trend, len(loud) / len(level)]]
    )


@functools.lru_cache
def _filters(rate: int) -> torch.Tensor:
    return mel_filters(replace(VAE_MEL, sample_rate=rate, f_max=rate / 2)).float()


@dataclass(frozen=True)
class Classifier:
    """Linear discriminant analysis: Gaussian classes with a shared covariance."""

    names: list[str]
    mean: np.ndarray  # (features,)
    scale: np.ndarray  # (features,)
    weight: np.ndarray  # (features, classes)
    bias: np.ndarray  # (classes,)

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence[str], shrinkage: float = 0.05) -> "Classifier":
        """Fits a classifier.

        Args:
            features: (sounds, features).
            labels: the class of each sound.
            shrinkage: variance added to that within the classes, in units of the features' variance.
        """
        names, place = np.unique(labels, return_inverse=True)
        mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
        features = (features - mean) / scale
        centres = np.stack([features[place == i].mean(axis=0) for i in range(len(names))])
        within = features - centres[place]
        covariance = within.T @ within / len(features) + shrinkage * np.eye(len(mean))
        weight = np.linalg.solve(covariance, centres.T)
        return cls(list(map(str, names)), mean, scale, weight, -0.5 * (centres.T * weight).sum(axis=0))

    def predict(self, features: np.ndarray) -> list[str]:
        """Returns the most likely class for each row of features (sounds, features)."""
        scores = (features - self.mean) / self.scale @ self.weight + self.bias
        return [self.names[i] for i in scores.argmax(axis=1)]
