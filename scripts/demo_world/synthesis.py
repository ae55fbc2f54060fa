"""Building blocks of procedural sounds: oscillators, noise, envelopes, events, reverberation, levelling.

A wave is a NumPy array (samples,) at 16 kHz, of any scale until `finish` levels it. All randomness comes from
the generator that a function takes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from audioldm2.audio import SAMPLE_RATE as RATE
from scripts.demo_world.sound_measures import loudness

Wave = np.ndarray  # (samples,), float64 until it is finished

PEAK = 0.95  # of full scale, the largest sample
HIGHEST = 7600.0  # Hz; partials above would be too close to half the sample rate


def draw_between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws from a range: log-uniformly if both ends are positive, otherwise uniformly."""
    return float(low * (high / low) ** rng.random()) if low > 0 else float(rng.uniform(low, high))


def times(n: int) -> np.ndarray:
    """Returns the time of each sample in seconds."""
    return np.arange(n) / RATE


def phase(hz: np.ndarray | float, n: int) -> np.ndarray:
    """Returns the phase in radians of an oscillator with a constant frequency or a frequency curve (n,)."""
    return 2 * np.pi / RATE * (np.cumsum(hz) if np.ndim(hz) else hz * np.arange(n))


def harmonics(hz: np.ndarray | float, n: int, amplitudes: Sequence[float] | np.ndarray) -> Wave:
    """Sums harmonics, of which the first is the fundamental; those above HIGHEST are dropped."""
    rotor = np.exp(1j * phase(hz, n))
    power, wave = np.ones(n, dtype=complex), np.zeros(n)
    for amplitude in amplitudes[: int(HIGHEST / np.max(hz))]:
        power *= rotor  # exp(i k phase), without computing another exponential
        wave += amplitude * power.imag
    return wave


def bandpass(low: float, high: float, order: float = 2.0) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a band-pass gain as a function of frequency in Hz, with slopes of 6 dB per octave and order."""
    return lambda hz: (
        ((1 + (low / np.maximum(hz, 1e-3)) ** (2 * order)) * (1 + (hz / high) ** (2 * order))) ** -0.5
    )


def shaped_noise(rng: np.random.Generator, n: int, gain: Callable[[np.ndarray], np.ndarray]) -> Wave:
    """Draws Gaussian noise of unit power whose spectrum is shaped by `gain`."""
    spectrum = np.fft.rfft(rng.standard_normal(n)) * gain(np.fft.rfftfreq(n, 1 / RATE))
    spectrum[0] = 0
    wave = np.fft.irfft(spectrum, n)
    return wave / wave.std()


def random_curve(rng: np.random.Generator, n: int, low: float, high: float, per_second: float) -> np.ndarray:
    """Interpolates a curve (n,) between random values, `per_second` of them each second."""
    position = times(n) * per_second
    knots = rng.uniform(low, high, size=int(position[-1]) + 2)
    return np.interp(position, np.arange(len(knots)), knots)


def decay(n: int, seconds: float) -> np.ndarray:
    """Returns exp(-t / seconds) with an attack of 1 ms and a fade to zero at the end."""
    t = times(n)
    return np.exp(-t / seconds) * np.minimum(1, t / 0.001) * np.minimum(1, np.linspace(4, 0, n))


def fade(wave: Wave, seconds: float = 0.01) -> Wave:
    """Fades a wave in and out; a hard edge would click."""
    edge = min(round(seconds * RATE), len(wave) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(edge) / edge)
    wave = wave.copy()
    wave[:edge] *= ramp
    wave[len(wave) - edge :] *= ramp[::-1]
    return wave


def onset_times(rng: np.random.Generator, n: int, per_second: float) -> np.ndarray:
    """Returns when regular events start, in samples: the first within 0.1 s, the others with 1.5 % jitter."""
    first = rng.uniform(0.01, 0.1)
    count = int(np.ceil((n / RATE - first - 0.03) * per_second))
    jitter = rng.normal(0, 0.015, size=count)
    return ((first + np.maximum(np.arange(count) + jitter, 0) / per_second) * RATE).astype(int)


def place_events(n: int, starts: Sequence[int] | np.ndarray, events: Sequence[Wave]) -> Wave:
    """Places events, taken in turn, at their start samples in a clip of n samples; the end cuts them off."""
    wave = np.zeros(n)
    for i, start in enumerate(starts):
        if start >= n:  # jitter can push an onset past the end
            continue
        event = events[i % len(events)][: n - start]
        wave[start : start + len(event)] += event
    return wave


def scatter(rng: np.random.Generator, n: int, per_second: float, event: Wave, spread: float) -> Wave:
    """Repeats an event at random times with log-normal amplitudes (width `spread`), at unit power."""
    count = 1 + rng.poisson(per_second * n / RATE)
    sizes = np.exp(spread * rng.standard_normal(count)) * rng.choice([-1, 1], size=count)
    hits = np.bincount(rng.integers(n, size=count), weights=sizes, minlength=n)
    wave = np.fft.irfft(np.fft.rfft(hits) * np.fft.rfft(event, n), n)
    return wave / wave.std()


def sustain(wave: Wave, seconds: float) -> Wave:
    """Keeps the first `seconds` of a wave and silences the rest."""
    sounding = round(seconds * RATE)
    return np.pad(fade(wave[:sounding]), (0, len(wave) - sounding))


def reverberate(rng: np.random.Generator, wave: Wave, seconds: float) -> Wave:
    """Adds the reverberation of a large hall: convolution with noise that decays by 60 dB in `seconds`."""
    n = len(wave)
    echo = rng.standard_normal(round(seconds * RATE))
    echo *= 10 ** (-3 * times(len(echo)) / seconds)
    echo[: round(0.01 * RATE)] = 0  # the first reflection arrives later than the direct sound
    size = 1 << (n + len(echo) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo / np.linalg.norm(echo), size), size)[:n]
    return wave + 0.6 * wet


def finish(wave: Wave, level: float) -> np.ndarray:
    """Fades, levels (in dB), limits and removes the DC offset, but keeps silence silent; returns float32."""
    wave = fade(wave, 0.005)
    wave = wave * 10 ** ((level - loudness(wave, RATE)) / 20)
    if np.abs(wave).max() > PEAK:  # sharp clicks: high peaks, little energy
        wave = PEAK * np.tanh(wave / PEAK)
    wave -= np.abs(wave) * (wave.mean() / np.abs(wave).mean())
    return (wave * min(1, PEAK / np.abs(wave).max())).astype(np.float32)
