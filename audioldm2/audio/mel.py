"""The two log-mel front ends: one for the VAE and the vocoder, one for CLAP's audio branch.

Waves are float tensors (batch, samples), full scale at ±1; spectrograms are (batch, frames, mels).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError, require_number, require_whole

SAMPLE_RATE = 16_000  # Hz, of the vocoder's waves
DEFAULT_SECONDS = 10.0  # length of a sound if neither the caller nor the checkpoint gives one
MAX_SECONDS = 86_400  # a day; memory runs out long before
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


# The front end of the VAE and HiFi-GAN: 100 frames a second, all frequencies up to half the sample rate.
VAE_MEL = MelSettings(SAMPLE_RATE, n_fft=1024, hop=160, mels=64, f_min=0.0, f_max=8000.0)
VAE_MEL_48K = MelSettings(48_000, n_fft=2048, hop=480, mels=256, f_min=20.0, f_max=24_000.0)
VAE_FLOOR = 1e-5  # smallest magnitude; silence is log(1e-5) = -11.5

# The front end of CLAP's audio branch: also 100 frames a second.
CLAP_MEL = MelSettings(CLAP_SAMPLE_RATE, n_fft=1024, hop=480, mels=64, f_min=50.0, f_max=14_000.0)
CLAP_FLOOR = 1e-10  # smallest power; silence is -100 dB
CLAP_WINDOW = 10 * CLAP_SAMPLE_RATE  # samples; CLAP reads 10 s, which are 480,000 / 480 + 1 = 1,001 frames


def vae_front_end(sample_rate: int, hop: int, mels: int) -> MelSettings:
    """Return AudioLDM's log-mel front end for a vocoder; checkpoints do not store it.

    Args:
        sample_rate: of the vocoder, Hz.
        hop:         samples to a mel frame.
        mels:        bands.

    Raises:
        ValueError: there is no front end for that sample rate.

    Source: the preprocessing in upstream's configs, `audioldm2-full` at 16 kHz and `audioldm_48k` at 48 kHz.
    """
    for settings in (VAE_MEL, VAE_MEL_48K):
        if sample_rate == settings.sample_rate:
            return replace(settings, hop=hop, mels=mels)
    raise ValueError(
        f"the vocoder runs at {sample_rate} Hz; the log-mel front end is known at 16000 and 48000 Hz."
    )


def vae_log_mel(wave: Tensor, settings: MelSettings = VAE_MEL) -> Tensor:
    """Compute the log-mel spectrogram of the VAE and the vocoder: the log of mel-weighted magnitudes.

    Args:
        wave:     (batch, samples) at settings.sample_rate, more than (n_fft - hop) / 2 = 432 samples.
        settings: the front end; the default is the published one.

    Returns:
        float32 (batch, samples // hop, mels), natural logarithm, at least log(1e-5).

    Raises:
        ArgumentError: the wave has another shape or is too short.

    Source: `mel_spectrogram_train` in AudioLDM's data loader, after HiFi-GAN's `mel_spectrogram`. It mirrors
    (n_fft - hop) / 2 samples at each end, which centres frame n on the samples n·hop to (n+1)·hop.
    """
    edge = (settings.n_fft - settings.hop) // 2
    _require_wave(wave, longer_than=edge)
    wave = F.pad(wave.float(), (edge, edge), mode="reflect")  # (batch, samples + 2*edge)
    magnitude = _stft(wave, settings).abs()  # (batch, bins, frames)
    mel = magnitude.transpose(1, 2) @ mel_filters(settings).to(magnitude)  # (batch, frames, mels)
    return mel.clamp(min=VAE_FLOOR).log()


def clap_log_mel(wave: Tensor, settings: MelSettings = CLAP_MEL) -> Tensor:
    """Compute the log-mel spectrogram of CLAP's audio encoder: mel-weighted power in dB, always of 10 s.

    A shorter clip is repeated as often as it fits completely into 10 s; silence fills the rest.

    Args:
        wave:     (batch, samples) at settings.sample_rate, at most 10 s; `clap_crops` cuts longer clips.
        settings: the front end; the default is the published one.

    Returns:
        float32 (batch, 10 s / hop + 1, mels), dB relative to power 1, at least -100.

    Raises:
        ArgumentError: the wave has another shape, no samples, or more than 10 s.

    Source: transformers' `ClapFeatureExtractor` with truncation "rand_trunc" and padding "repeatpad".
    """
    window = 10 * settings.sample_rate
    _require_wave(wave)
    samples = wave.shape[1]
    if samples > window:
        allowed = f"have at most {window}, which is what CLAP reads: cut it with clap_crops"
        raise ArgumentError("wave", wave, allowed, given=f"has {samples} samples")
    # float64, like the reference: beside a pure tone, most bins hold less than the rounding error that a
    # float32 transform spreads from the loudest bin. Apple's GPUs have no float64.
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
    """Cut a clip into as few windows as cover it completely, evenly spaced; CLAP embeds them one by one.

    The reference takes one window at random, so the same sound scores differently each time. We average the
    embeddings of all windows: 10.24 s give two, from 0 s and from 0.24 s.

    Args:
        wave:   (batch, samples).
        window: samples.

    Returns:
        Views (batch, window); a clip no longer than the window, uncut.
    """
    samples = wave.shape[-1]
    count = max(1, math.ceil(samples / window))
    starts = [round(i * (samples - window) / (count - 1)) for i in range(count)] if count > 1 else [0]
    return [wave[..., start : start + window] for start in starts]


def _stft(wave: Tensor, settings: MelSettings) -> Tensor:
    """Complex (batch, n_fft/2 + 1, frames), without padding."""
    window = torch.hann_window(settings.n_fft, dtype=wave.dtype, device=wave.device)
    return torch.stft(wave, settings.n_fft, settings.hop, window=window, center=False, return_complex=True)


def _require_wave(wave: Tensor, longer_than: int = 0) -> None:
    if wave.dim() != 2:
        raise ArgumentError("wave", wave, "be (batch, samples)", given=f"has shape {tuple(wave.shape)}")
    if wave.shape[1] <= longer_than:
        given = f"has {wave.shape[1]} samples"
        raise ArgumentError("wave", wave, f"have at least {longer_than + 1}", given=given)


def mel_filters(settings: MelSettings) -> Tensor:
    """Compute the weight of every frequency bin in every mel band: triangles of area 1.

    Returns:
        float64 (n_fft/2 + 1, mels), on the CPU.

    Source: Slaney's Auditory Toolbox, as in `librosa.filters.mel(..., htk=False, norm="slaney")`.
    """
    edges = mel_edges(settings)
    bins = torch.linspace(
        0, settings.sample_rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64, device="cpu"
    )
    slopes = edges - bins[:, None]  # (bins, mels + 2)
    rising = -slopes[:, :-2] / edges.diff()[:-1]  # (bins, mels)
    falling = slopes[:, 2:] / edges.diff()[1:]  # (bins, mels)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))


def mel_edges(settings: MelSettings) -> Tensor:
    """Compute the corners of the mel bands, evenly spaced on Slaney's mel scale from f_min to f_max.

    Returns:
        float64 (mels + 2), Hz, on the CPU. Band i rises from edge i to its centre, edge i+1, and falls to
        edge i+2.
    """
    ends = torch.tensor([settings.f_min, settings.f_max], dtype=torch.float64, device="cpu")
    low, high = _hz_to_mel(ends)
    steps = torch.linspace(0, 1, settings.mels + 2, dtype=torch.float64, device="cpu")
    return _mel_to_hz(low + (high - low) * steps)


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
