"""Resampling with a band-limited polyphase filter."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError, require_whole

# In units of the lower Nyquist frequency: the filter passes everything up to PASS_BAND (ripple below 0.001
# dB) and attenuates aliases and images from 1 on by STOP_DB. soxr's "HQ" setting, which the reference uses,
# has the same two numbers.
PASS_BAND = 0.913
STOP_DB = 120.0
FASTEST_RATE = 1_536_000  # Hz, twice the fastest audio converters; faster rates come from damaged headers
_PERIODS = 1 << 16  # per convolution, which needs several times the memory of its result


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change a sound's sample rate with a band-limited (windowed sinc) polyphase filter.

    The sound is silent outside the clip, and sample 0 stays at time 0.

    Args:
        wave:      floats (..., samples) at from_rate.
        from_rate: Hz, a whole number from 1 to 1,536,000.
        to_rate:   Hz, a whole number from 1 to 1,536,000.

    Returns:
        (..., ceil(samples * to_rate / from_rate)) in the wave's dtype. Equal rates return the wave.

    Raises:
        ArgumentError: a rate is out of range, or the result does not fit in the CPU's memory.

    Source: Kaiser's design of a low-pass filter (Oppenheim & Schafer, "Discrete-time signal processing",
    7.5.3).
    """
    from_rate = require_whole("from_rate", from_rate, 1, FASTEST_RATE)
    to_rate = require_whole("to_rate", to_rate, 1, FASTEST_RATE)
    try:
        return _resample(wave, from_rate, to_rate)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "alloc" not in str(error) and "overflow" not in str(error):
            raise
        given = f"has {wave.shape[-1]} samples at {from_rate} Hz"
        raise ArgumentError("wave", wave, f"fit in memory at {to_rate} Hz", given=given) from error


def input_span(start: int, stop: int, from_rate: int, to_rate: int) -> tuple[int, int, int]:
    """Find the input samples that determine a part of a resampled sound.

    Args:
        start, stop: of the part, in samples at to_rate.
        from_rate: Hz.
        to_rate: Hz.

    Returns:
        (first, last, skipped): `resample` turns the input from `first` up to `last`, which may lie behind
        the end of the sound, into the part, which begins after `skipped` samples. Phases stay as they are.
    """
    common = math.gcd(from_rate, to_rate)
    down, up = from_rate // common, to_rate // common
    half = _kernel_half_width(down, up) if down != up else 0
    period = max(0, (start * down // up - half - 1) // down)
    return period * down, -(-stop * down // up) + half + 2, start - period * up


def _resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    common = math.gcd(from_rate, to_rate)
    down, up = from_rate // common, to_rate // common  # `down` samples in last as long as `up` samples out
    if down == up:
        return wave
    samples = wave.shape[-1]
    length = -(-samples * up // down)

    # float64 on NVIDIA's GPUs: a float32 convolution there may run in TF32, whose noise is at -60 dB.
    work = wave.reshape(wave.shape[:-1].numel(), 1, samples).to(
        torch.float64 if wave.is_cuda else torch.float32
    )  # (batch, 1, samples)
    half = _kernel_half_width(down, up)
    periods = max(1, -(-length // up))
    work = F.pad(work, (half, periods * down + half + 1 - samples))

    # Output n*up + phase lies at input time n*down + phase*down/up. One convolution computes a run of phases
    # that need almost the same inputs, for a block of n at once.
    run = max(1, 2 * half * up // down)
    output = work.new_empty(work.shape[0], periods, up)
    for first in range(0, up, run):
        kernel, start = _kernel(down, up, range(first, min(first + run, up)), half)  # (phases, taps)
        kernel = kernel.to(work)
        taps = kernel.shape[1]
        for begin in range(0, periods, _PERIODS):
            end = min(begin + _PERIODS, periods)
            span = work[..., start + begin * down : start + (end - 1) * down + taps]
            phases = F.conv1d(span, kernel.unsqueeze(1), stride=down)  # (batch, phases, periods)
            output[:, begin:end, first : first + run] = phases.transpose(1, 2)
    return output.flatten(1)[:, :length].reshape(*wave.shape[:-1], length).to(wave.dtype)


def _kernel_half_width(down: int, up: int) -> int:
    """Input samples on each side of an output sample. Kaiser's formula: taps = (dB - 8) / (2.285 Δω)."""
    band = min(1.0, up / down)  # the lower Nyquist frequency over the input's
    transition = math.pi * (1 - PASS_BAND) * band  # Δω, radians per input sample
    return math.ceil((STOP_DB - 8) / (2.285 * transition) / 2) + 1


def _kernel(down: int, up: int, phases: range, half: int) -> tuple[Tensor, int]:
    """The filters of a run of phases (phases, taps), and the index of the first tap in the padded input."""
    band = min(1.0, up / down)
    cutoff = band * (1 + PASS_BAND) / 2  # the middle of the transition
    beta = 0.1102 * (STOP_DB - 8.7)
    # times in input samples; everything on the CPU, whatever the default device is
    times = torch.tensor([phase * down / up for phase in phases], dtype=torch.float64, device="cpu")
    start, stop = math.floor(times[0].item()), math.floor(times[-1].item())
    taps = torch.arange(start - half, stop + half + 2, dtype=torch.float64, device="cpu")
    offset = taps - times[:, None]  # (phases, taps)
    inside = (1 - (offset / (half + 1)) ** 2).clamp(min=0)
    window = torch.special.i0(beta * inside.sqrt()) / torch.special.i0(times.new_tensor(beta))
    window = torch.where(offset.abs() < half + 1, window, 0.0)
    return cutoff * torch.sinc(cutoff * offset) * window, start
