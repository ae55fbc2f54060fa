"""The two log-mel front ends: what the VAE and the vocoder read, and what CLAP's audio branch reads.

Waves are float tensors (batch, samples), full scale at ±1; spectrograms are (batch, frames, mels).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError, require_number, require_whole

SAMPLE_RATE = 16_000  # Hz, of the vocoder's waves
USUAL_SECONDS = 10.0  # of a sound, where neither the caller nor the checkpoint says
LONGEST_SECONDS = 86_400  # a day; what fits into memory is far less
CLAP_SAMPLE_RATE = 48_000  # Hz, of the waves that CLAP was trained on


MOST_HZ = 1_000_000  # far beyond every sound card, so that a wrong digit cannot fill the memory


@dataclass(frozen=True)
class MelSettings:
    """A short-time Fourier transform and the mel bands on it, in Slaney's scale and area norm."""

    sample_rate: int  # Hz
    n_fft: int  # samples a frame, under a periodic Hann window as long
    hop: int  # samples between frames
    mels: int  # bands
    f_min: float  # Hz, lower edge of the first band
    f_max: float  # Hz, upper edge of the last band

    def __post_init__(self) -> None:
        require_whole("sample_rate", self.sample_rate, 2, MOST_HZ)
        require_whole("n_fft", self.n_fft, 2, self.sample_rate)
        if self.n_fft % 2:
            raise ArgumentError("n_fft", self.n_fft, "be even")
        require_whole("hop", self.hop, 1, MOST_HZ)
        require_whole("mels", self.mels, 1, MOST_HZ)
        require_number("f_max", self.f_max, 0, self.sample_rate / 2)
        if require_number("f_min", self.f_min, 0) >= self.f_max:
            raise ArgumentError("f_min", self.f_min, f"be below f_max ({self.f_max})")


# What the VAE was trained on and HiFi-GAN reads: 100 frames a second, all frequencies up to half the rate.
VAE_MEL = MelSettings(SAMPLE_RATE, n_fft=1024, hop=160, mels=64, f_min=0.0, f_max=8000.0)
VAE_FLOOR = 1e-5  # smallest magnitude; log(1e-5) = -11.5 is silence

# What CLAP was trained on: also 100 frames a second.
CLAP_MEL = MelSettings(CLAP_SAMPLE_RATE, n_fft=1024, hop=480, mels=64, f_min=50.0, f_max=14_000.0)
CLAP_FLOOR = 1e-10  # smallest power; -100 dB is silence
CLAP_WINDOW = 10 * CLAP_SAMPLE_RATE  # samples; CLAP hears 10 s, that is 480,000 / 480 + 1 = 1,001 frames


def vae_log_mel(wave: Tensor, settings: MelSettings = VAE_MEL) -> Tensor:
    """The log-mel spectrogram that the VAE encodes and the vocoder reads: log of mel-weighted magnitudes.

    wave:     (batch, samples) at settings.sample_rate, more than (n_fft - hop) / 2 = 432 samples.
    Returns   float32 (batch, samples // hop, mels), natural logarithm, at least log(1e-5).
    Source:   `mel_spectrogram_train` of AudioLDM's data loader, after HiFi-GAN's `mel_spectrogram`: mirroring
              the ends by (n_fft - hop) / 2 samples centres frame n on the samples n·hop to (n+1)·hop.
    """
    edge = (settings.n_fft - settings.hop) // 2
    _check_wave(wave, longer_than=edge)
    wave = F.pad(wave.float(), (edge, edge), mode="reflect")  # (batch, samples + 2*edge)
    magnitude = _stft(wave, settings).abs()  # (batch, bins, frames)
    mel = magnitude.transpose(1, 2) @ mel_filters(settings).to(magnitude)  # (batch, frames, mels)
    return mel.clamp(min=VAE_FLOOR).log()


def clap_log_mel(wave: Tensor, settings: MelSettings = CLAP_MEL) -> Tensor:
    """The log-mel spectrogram that CLAP's audio encoder reads: mel-weighted power in dB, of 10 s exactly.

    A shorter clip is repeated as often as it fits whole into the 10 s, and the rest is silence.
    wave:     (batch, samples) at settings.sample_rate, at most 10 s: `clap_crops` cuts what is longer.
    Returns   float32 (batch, 10 s / hop + 1, mels), dB to full scale power 1, at least -100.
    Source:   transformers' `ClapFeatureExtractor` with truncation "rand_trunc" and padding "repeatpad".
    """
    window = 10 * settings.sample_rate
    _check_wave(wave)
    samples = wave.shape[1]
    if samples > window:
        raise ValueError(f"wave has {samples} samples; CLAP hears {window} at most: cut it with clap_crops")
    # float64, as in the reference: beside a pure tone, most bins hold less than the rounding error that a
    # float32 transform spreads from the loudest one. Apple's GPUs have no float64.
    wave = wave.to(torch.float32 if wave.device.type == "mps" else torch.float64)
    wave = wave.repeat(1, window // samples)  # (batch, samples * whole repetitions)
    wave = F.pad(wave, (0, window - wave.shape[1]))  # (batch, window)
    half = settings.n_fft // 2
    wave = F.pad(wave, (half, half), mode="reflect")  # (batch, window + n_fft): frame n is centred on n * hop
    spectrum = _stft(wave, settings)  # (batch, bins, frames)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = power.transpose(1, 2) @ mel_filters(settings).to(power)  # (batch, frames, mels)
    return (10 * mel.clamp(min=CLAP_FLOOR).log10()).float()


def clap_crops(wave: Tensor, window: int = CLAP_WINDOW) -> list[Tensor]:
    """The parts of a clip that CLAP hears one by one: as few windows as cover it, evenly spaced, end to end.

    The reference takes one window at random, so that the same sound scores differently each time. Here the
    embeddings of all windows are averaged: 10.24 s give two windows, from 0 s and from 0.24 s on.
    wave: (batch, samples). Returns views (batch, window); a clip no longer than the window is returned whole.
    """
    samples = wave.shape[-1]
    count = max(1, math.ceil(samples / window))
    starts = [round(i * (samples - window) / (count - 1)) for i in range(count)] if count > 1 else [0]
    return [wave[..., start : start + window] for start in starts]


def _stft(wave: Tensor, settings: MelSettings) -> Tensor:
    """Complex (batch, n_fft/2 + 1, frames) of the whole frames in the wave."""
    window = torch.hann_window(settings.n_fft, dtype=wave.dtype, device=wave.device)
    return torch.stft(wave, settings.n_fft, settings.hop, window=window, center=False, return_complex=True)


def _check_wave(wave: Tensor, longer_than: int = 0) -> None:
    if wave.dim() != 2:
        raise ValueError(f"wave has shape {tuple(wave.shape)}; it must be (batch, samples)")
    if wave.shape[1] <= longer_than:
        raise ValueError(f"wave has {wave.shape[1]} samples; at least {longer_than + 1} are needed")


def mel_filters(settings: MelSettings) -> Tensor:
    """The weight of every frequency bin in every mel band: triangles, evenly spaced in mel, each of area 1.

    Returns float64 (n_fft/2 + 1, mels), on the CPU.
    Source: Slaney's Auditory Toolbox, as `librosa.filters.mel(..., htk=False, norm="slaney")`.
    """
    low, high = (_hz_to_mel(torch.tensor(f, dtype=torch.float64)) for f in (settings.f_min, settings.f_max))
    steps = torch.linspace(0, 1, settings.mels + 2, dtype=torch.float64)
    edges = _mel_to_hz(low + (high - low) * steps)  # (mels + 2): band i rises from i to i+1 and falls to i+2
    bins = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64)
    slopes = edges - bins[:, None]  # (bins, mels + 2)
    rising = -slopes[:, :-2] / edges.diff()[:-1]  # (bins, mels)
    falling = slopes[:, 2:] / edges.diff()[1:]  # (bins, mels)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))


# Slaney's mel scale: linear up to 1,000 Hz (= 15 mel), then 27 steps to each factor of 6.4.
_HZ_PER_MEL = 200 / 3
_LINEAR_HZ = 1000.0
_LINEAR_MEL = _LINEAR_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: Tensor) -> Tensor:
    log_part = _LINEAR_MEL + (hz.clamp(min=_LINEAR_HZ) / _LINEAR_HZ).log() / _LOG_STEP
    return torch.where(hz < _LINEAR_HZ, hz / _HZ_PER_MEL, log_part)


def _mel_to_hz(mel: Tensor) -> Tensor:
    log_part = _LINEAR_HZ * ((mel - _LINEAR_MEL) * _LOG_STEP).exp()
    return torch.where(mel < _LINEAR_MEL, mel * _HZ_PER_MEL, log_part)
