"""Which latent cells of a sound are remade: ranges of seconds and Hz, widened to whole cells."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from audioldm2.audio import PASS_BAND, mel_edges, vae_front_end
from audioldm2.editing.input_sound import InputSound
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.sound_shape import SoundShape

FADE_SECONDS = 0.02  # between kept and remade samples
RANGES = ("mask_start_seconds", "mask_end_seconds", "mask_start_hz", "mask_end_hz")
PARTS = (*RANGES, "repaint_mask", "extend_seconds")  # options that say which part is remade

Range = tuple[float, float]


def band_bounds(shape: SoundShape) -> list[float]:
    """The frequencies between latent bands, Hz: one more than there are bands.

    Each lies midway between the centres of the last mel band below it and of the first above. For the
    published model: ..., 3633, 4400, 5328, 6452, 8000.
    """
    settings = vae_front_end(shape.sample_rate, shape.hop, shape.mels)
    edges = mel_edges(settings).tolist()
    inner = [(edges[i] + edges[i + 1]) / 2 for i in range(shape.downsampling, shape.mels, shape.downsampling)]
    return [settings.f_min, *inner, settings.f_max]


def fade_samples(shape: SoundShape) -> int:
    return round(FADE_SECONDS * shape.sample_rate)


def remade_cells(
    options: GenerationOptions,
    sound: InputSound,
    shape: SoundShape,
    frames: int,
    before: int,
    tail: int,
    batch: int,
) -> Tensor | None:
    """Which latent cells are remade: bool (1 or batch, 1, time, mel); None for all, by no mask."""
    bands = shape.mels // shape.downsampling
    if options.repaint_mask is not None:
        mask = options.repaint_mask.cpu()
        mask = mask[None, None] if mask.ndim == 2 else mask
        if mask.shape[0] not in (1, batch) or mask.shape[2:] != (frames, bands):
            allowed = f"have shape ({frames}, {bands}) or ({batch}, 1, {frames}, {bands}) for this sound"
            given = f"has shape {tuple(options.repaint_mask.shape)}"
            raise ArgumentError("repaint_mask", mask, allowed, given=given)
        return mask
    if all(getattr(options, name) is None for name in PARTS):
        return None
    remake = torch.zeros(1, 1, frames, bands, dtype=torch.bool, device="cpu")
    if any(getattr(options, name) is not None for name in RANGES):
        cell, cells = shape.seconds(1), math.ceil(len(sound.wave) / shape.frame_samples)
        times = _ranges("mask_start_seconds", "mask_end_seconds", options, sound.seconds, cells * cell, "s")
        bounds = band_bounds(shape)
        pitches = _ranges("mask_start_hz", "mask_end_hz", options, bounds[-1], bounds[-1], "Hz")
        pitches = [(_from_where_it_fades(start, sound), end) for start, end in pitches]
        rows = torch.zeros(frames, dtype=torch.bool, device="cpu")
        columns = torch.zeros(bands, dtype=torch.bool, device="cpu")
        for start, end in times:
            first, last = math.floor(start / cell + 1e-6), math.ceil(end / cell - 1e-6)
            rows[before + first : before + max(last, first + 1)] = True
        for start, end in pitches:
            for band, (low, high) in enumerate(pairwise(bounds)):
                columns[band] |= low < end and start < high
        remake[0, 0] = rows[:, None] & columns
    if options.extend_seconds is not None:
        # The fade needs samples of the sound inside the remade part: its outermost cells are remade too.
        fade, length = min(fade_samples(shape), shape.frame_samples // 2), len(sound.wave)
        kept_from = before + 1 if before else 0
        kept_to = before + (length - fade) // shape.frame_samples if tail else frames
        if kept_from >= kept_to:
            least = (1 + (before > 0)) * shape.frame_samples + (fade if tail else 0)
            allowed = f"be used with a sound of at least {least / shape.sample_rate:g} s"
            given = f"is {options.extend_seconds} for a sound of {sound.seconds:g} s"
            raise ArgumentError("extend_seconds", options.extend_seconds, allowed, given=given)
        remake[:, :, :kept_from] = True
        remake[:, :, kept_to:] = True
    return remake


def _from_where_it_fades(hz: float, sound: InputSound) -> float:
    """The start of a range, moved down to where resampling has faded a file of a lower rate by 6 dB.

    From there to the file's Nyquist frequency hardly anything is left; keeping it would leave a dull band.
    """
    nyquist = sound.given_rate / 2
    fade = nyquist * (1 + PASS_BAND) / 2
    return fade if sound.given_rate < sound.sample_rate and fade < hz <= nyquist else hz


def _ranges(
    start_name: str, end_name: str, options: GenerationOptions, whole: float, most: float, unit: str
) -> list[Range]:
    """Pairs of starts and ends; an absent start is 0, an absent end that of the whole.

    most: the largest end that is allowed, which may lie behind the whole by less than a cell.
    """
    starts: Sequence[float] | None = getattr(options, start_name)
    ends: Sequence[float] | None = getattr(options, end_name)
    if starts is None and ends is None:
        return [(0.0, whole)]
    starts = [0.0] * len(ends or ()) if starts is None else starts
    ends = [whole] * len(starts) if ends is None else ends
    if len(starts) != len(ends):
        given = f"has {len(ends)} entries for {len(starts)} of {start_name}"
        raise ArgumentError(end_name, ends, "have one for each start", given=given)
    for start, end in zip(starts, ends, strict=True):
        if start >= whole:
            raise ArgumentError(start_name, start, f"be below {whole:g} {unit}, where the sound ends")
        if end > most + 1e-9:
            raise ArgumentError(end_name, end, f"be at most {whole:g} {unit}, where the sound ends")
        if start >= end:
            raise ArgumentError(end_name, end, f"be above the start, which is {start:g}")
    return list(zip(starts, ends, strict=True))


def runs(marked: Tensor) -> list[tuple[int, int]]:
    """The first and, exclusive, the last place of each run of True."""
    edges = torch.diff(torch.nn.functional.pad(marked.int(), (1, 1)))
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return list(zip(starts, ends, strict=True))
