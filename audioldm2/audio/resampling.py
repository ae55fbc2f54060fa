"""Resampling by a band-limited polyphase filter."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# As parts of the lower Nyquist frequency: up to PASS_BAND nothing changes (ripple below 0.001 dB); from 1 on,
# aliases and images are down by STOP_DB. Both are soxr's in its "HQ" setting, which the reference uses.
PASS_BAND = 0.913
STOP_DB = 120.0
_PERIODS = 1 << 16  # to a convolution, which holds several times its result


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """The same sound at another rate, by a band-limited (windowed sinc) polyphase filter.

    wave:     (..., samples) at from_rate; rates in Hz, whole and positive; outside the clip is silence.
    Returns   (..., ceil(samples * to_rate / from_rate)) in the wave's dtype; sample 0 stays at time 0.
    Source:   Kaiser's design of a low pass (Oppenheim & Schafer, "Discrete-time signal processing", 7.5.3).
    """
    if min(from_rate, to_rate) < 1:
        raise ValueError(f"rates are {from_rate} and {to_rate} Hz; both must be at least 1")
    common = math.gcd(from_rate, to_rate)
    down, up = from_rate // common, to_rate // common  # `down` samples in last as long as `up` samples out
    if down == up:
        return wave
    samples = wave.shape[-1]
    length = -(-samples * up // down)

    # float64 on NVIDIA's GPUs, because a float32 convolution there may run in TF32, whose noise is at -60 dB.
    work = wave.reshape(wave.shape[:-1].numel(), 1, samples).to(
        torch.float64 if wave.is_cuda else torch.float32
    )  # (batch, 1, samples)
    half = _kernel_half_width(down, up)
    periods = max(1, -(-length // up))
    work = F.pad(work, (half, periods * down + half + 1 - samples))

    # Output n*up + phase lies at input time n*down + phase*down/up. One convolution does a run of phases that
    # look at almost the same inputs, for a block of n at once.
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
    """Input samples on either side of an output sample; Kaiser's formula is taps = (dB - 8) / (2.285 Δω)."""
    band = min(1.0, up / down)  # the lower Nyquist frequency, in parts of the input's
    transition = math.pi * (1 - PASS_BAND) * band  # Δω, radians per input sample
    return math.ceil((STOP_DB - 8) / (2.285 * transition) / 2) + 1


def _kernel(down: int, up: int, phases: range, half: int) -> tuple[Tensor, int]:
    """The filters of a run of phases, and where in the padded input the first of their taps lies."""
    band = min(1.0, up / down)
    cutoff = band * (1 + PASS_BAND) / 2  # the middle of the transition
    beta = 0.1102 * (STOP_DB - 8.7)
    times = torch.tensor([phase * down / up for phase in phases], dtype=torch.float64)  # input samples
    start, stop = math.floor(times[0].item()), math.floor(times[-1].item())
    taps = torch.arange(start - half, stop + half + 2, dtype=torch.float64)
    offset = taps - times[:, None]  # (phases, taps)
    inside = (1 - (offset / (half + 1)) ** 2).clamp(min=0)
    window = torch.special.i0(beta * inside.sqrt()) / torch.special.i0(
        torch.tensor(beta, dtype=torch.float64)
    )
    window = torch.where(offset.abs() < half + 1, window, 0.0)
    return cutoff * torch.sinc(cutoff * offset) * window, start
