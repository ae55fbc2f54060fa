"""--at of the command line: prompts from a time on, as one timeline."""

import math
from collections.abc import Sequence

from audioldm2.errors import ArgumentError
from audioldm2.prompt.timeline import ROUNDING, Span
from audioldm2.sound_shape import SoundShape


def read_times(at: Sequence[Sequence[str]]) -> list[tuple[float, str]]:
    """The prompts of --at with their times, in order of time.

    Raises:
        ArgumentError: a time is not a number above 0, two are the same, or a prompt is empty.
    """
    found: dict[float, str] = {}
    for text, prompt in at:
        try:
            time = float(text)
        except ValueError:
            time = math.nan
        if not 0 < time < math.inf or time in found:
            raise ArgumentError("at", text, "begin with a time in seconds above 0, each time once")
        if not prompt.strip():
            raise ArgumentError("at", prompt, "end with a prompt", given=f"{text} has an empty prompt")
        found[time] = prompt
    return sorted(found.items())


def timeline(
    prompt: str, later: Sequence[tuple[float, str]], seconds: float, shape: SoundShape
) -> list[Span]:
    """A prompt from 0, each later one from its time to the next one's, and the last to the end.

    Raises:
        ArgumentError: a time lies behind the end, or leaves a prompt less than a latent frame.
    """
    starts = [(0.0, prompt), *later]
    if starts[-1][0] >= seconds:
        raise ArgumentError(
            "at", starts[-1][0], f"be below {seconds:g} seconds, where the sound ends (--duration)"
        )
    ends = [*(time for time, _ in later), seconds]
    least = shape.seconds(1)
    for (start, _), end in zip(starts, ends, strict=True):
        if end - start < least - ROUNDING:
            time = end if start == 0 else start
            allowed = f"leave each prompt at least {least:g} s, one latent frame"
            raise ArgumentError("at", time, allowed)
    return [Span(text, start, end) for (start, text), end in zip(starts, ends, strict=True)]
