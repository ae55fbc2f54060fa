"""Timelines: prompts with times, for a sound that changes.

    [("rain", 0, 10), ("thunder", 8, 14)]

is one sound of 14 s. Where prompts meet they fade into each other over half a second; where they overlap for
longer, both have an equal share.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError, require_number

FADE = 0.5  # seconds over which a prompt comes in and goes out
ROUNDING = 1e-6  # seconds; no gap


class Span(NamedTuple):
    """A prompt from a start to an end, in seconds; a plain tuple of the three does as well."""

    text: str
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.text} ({self.start:g} to {self.end:g} s)"


Timeline = tuple[Span, ...]


def read_timelines(prompt: Any, least: float, most: float) -> list[Timeline] | None:
    """The timelines of a prompt argument; None if it holds no tuple, and so is a text or several.

    Args:
        prompt: a list of (text, start, end), which is one timeline, or a list of such lists. Lists do in
            place of tuples, as JSON has no tuples.
        least: the shortest time of a text, seconds.
        most: the longest sound, seconds.

    Raises:
        ArgumentError: a timeline that is no list of (text, start, end), leaves a gap, or ends at another time
            than the first one does.
    """
    if not _is_list(prompt) or not prompt or not _is_list(prompt[0]):
        return None
    if prompt[0] and not _is_list(prompt[0][0]):
        return [_read("prompt", prompt, least, most)]
    found = [_read(f"prompt[{i}]", each, least, most) for i, each in enumerate(prompt)]
    for i, timeline in enumerate(found):
        if seconds(timeline) != seconds(found[0]):
            allowed = f"end at {seconds(found[0]):g} s, as prompt[0] does"
            raise ArgumentError(f"prompt[{i}]", prompt, allowed, given=f"ends at {seconds(timeline):g} s")
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _read(name: str, entries: Any, least: float, most: float) -> Timeline:
    if not _is_list(entries) or not entries:
        raise ArgumentError(name, entries, "be a list of (text, start, end)")
    spans = []
    for i, entry in enumerate(entries):
        if not _is_list(entry) or len(entry) != 3:
            raise ArgumentError(f"{name}[{i}]", entry, "be (text, start, end), with times in seconds")
        text, start, end = entry
        if not isinstance(text, str):
            raise ArgumentError(f"{name}[{i}][0]", text, "be a text")
        start = require_number(f"{name}[{i}][1]", start, 0, most)
        end = require_number(f"{name}[{i}][2]", end, 0, most)
        if end - start < least - ROUNDING:
            allowed = f"be at least {least:g} s after the start, which is {start:g}"
            raise ArgumentError(f"{name}[{i}][2]", end, allowed)
        spans.append(Span(text, start, end))
    reached = 0.0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start > reached + ROUNDING:
            given = f"has no text from {reached:g} to {span.start:g} s"
            raise ArgumentError(name, entries, "leave no gap", given=given)
        reached = max(reached, span.end)
    return tuple(spans)


def seconds(timeline: Timeline) -> float:
    """The end of its last prompt."""
    return max(span.end for span in timeline)


def described(timeline: Timeline) -> str:
    """As one line of text."""
    return ", ".join(map(str, timeline))


def shares(timeline: Timeline, frames: int, frame_seconds: float, loop: bool = False) -> Tensor:
    """How much each prompt counts at each latent frame.

    A prompt counts from its start to its end, blurred by a window of half a second and divided by the sum of
    all. The first and the last prompts do not fade at the ends of the sound, unless it is a loop: there the
    last fades into the first.

    Args:
        timeline: the prompts.
        frames: of the sound.
        frame_seconds: the length of a frame.
        loop: the sound is a loop.

    Returns:
        float32 (prompts, frames) on the CPU; each column adds up to 1.
    """
    end, whole = seconds(timeline), frames * frame_seconds
    centres = (torch.arange(frames, dtype=torch.float64, device="cpu") + 0.5) * frame_seconds
    low, high = centres - FADE / 2, centres + FADE / 2

    def count(start: float, stop: float) -> Tensor:
        return (high.clamp(max=stop) - low.clamp(min=start)).clamp(min=0) / FADE

    rows = []
    for span in timeline:
        start, stop = span.start, whole if span.end == end else span.end  # the last frame may outlast the end
        if loop:
            turns = [count(start + turn, stop + turn) for turn in (-whole, 0.0, whole)]
            rows.append(torch.stack(turns).sum(dim=0))
        else:
            rows.append(count(start if start > 0 else -math.inf, math.inf if stop == whole else stop))
    found = torch.stack(rows)
    return (found / found.sum(dim=0)).float()


def parts(
    timelines: Sequence[Timeline], audio: Tensor, sample_rate: int
) -> tuple[list[str], list[Tensor], list[int]]:
    """What of a sound belongs to which text, for scoring it.

    Args:
        timelines: one per sound.
        audio: (sounds, samples).
        sample_rate: Hz.

    Returns:
        The texts, the part of a sound (samples,) that belongs to each, and the number of texts of each sound.
    """
    texts = [span.text for timeline in timelines for span in timeline]
    waves = [
        wave[int(span.start * sample_rate) : math.ceil(span.end * sample_rate)]
        for timeline, wave in zip(timelines, audio, strict=True)
        for span in timeline
    ]
    return texts, waves, [len(timeline) for timeline in timelines]
