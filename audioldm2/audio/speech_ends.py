"""Where speech begins and ends in a clip, by its loudness."""

import torch
from torch import Tensor

from audioldm2.audio.waves import SILENCE

FRAME = 0.01  # seconds
BELOW_LOUDEST = 35.0  # dB; vocoders leave a floor of noise some 45 dB below a voice, the ends of words do not
LEAST = 0.03  # seconds that speech lasts; what is shorter is a click
BEFORE, AFTER = 0.05, 0.1  # seconds kept: the onset of a consonant, and a final "t" after its closure
FADE = 0.01  # seconds


def speech_ends(wave: Tensor, sample_rate: int) -> tuple[int, int]:
    """The first sample of speech and the one after the last, with a margin; (0, 0) for a silent clip.

    Speech is what is at most 35 dB below the loudest tenth of a second, for 30 ms at least.

    Args:
        wave: float (samples,).
        sample_rate: Hz.
    """
    frame = max(1, int(FRAME * sample_rate))
    count = len(wave) // frame
    if count == 0 or wave.abs().max() <= SILENCE:
        return 0, 0 if count else len(wave)
    power = wave[: count * frame].double().unflatten(0, (count, frame)).square().mean(dim=1)  # (frames,)
    loudest = power.unfold(0, min(10, count), 1).mean(dim=1).max()
    loud = power >= loudest * 10 ** (-BELOW_LOUDEST / 10)
    run = min(round(LEAST / FRAME), count)
    starts = loud.unfold(0, run, 1).all(dim=1).nonzero()[:, 0]  # of runs that are long enough
    if len(starts) == 0:
        return 0, len(wave)
    first = int(starts[0]) * frame - int(BEFORE * sample_rate)
    last = (int(starts[-1]) + run) * frame + int(AFTER * sample_rate)
    return max(0, first), min(len(wave), last)


def trimmed(wave: Tensor, sample_rate: int) -> tuple[Tensor, tuple[int, int]]:
    """A clip without the silence at its ends, faded where it is cut; and where it was cut, in samples."""
    first, last = speech_ends(wave, sample_rate)
    found = wave[first:last].clone()
    fade = min(int(FADE * sample_rate), len(found) // 2)
    ramp = torch.linspace(0, 1, fade, dtype=wave.dtype, device=wave.device)
    if fade and first > 0:
        found[:fade] *= ramp
    if fade and last < len(wave):
        found[-fade:] *= ramp.flip(0)
    return found, (first, last)
