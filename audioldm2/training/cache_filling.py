"""Filling the cache of a run before its first step, so that the networks it stands for can be freed."""

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.prompt.encode import Row
from audioldm2.training.cache import CachedTexts
from audioldm2.training.data import Captioned, distinct
from audioldm2.training.judging import VALIDATION_CLIPS
from audioldm2.training.progress import PROGRESS_SECONDS, time_left


def count_clips(data: Captioned, pool: int, cache_gb: float) -> int:
    """Counts the clips that a run uses; ArgumentError if they never repeat, so that a cache is of no use."""
    clips = pool or distinct(data)
    if clips is None:
        allowed = "be 0 where every clip is a new one; set crops (--crops), or a pool in the recipe"
        raise ArgumentError("cache_gb", cache_gb, allowed)
    return clips


def fill(
    encoders: CachedTexts, prepare: Callable[[Tensor], Tensor], data: Captioned, validation: Captioned | None,
    *, size: int, pool: int, report: Callable[[str], object], should_stop: Callable[[], object],
) -> bool:  # fmt: skip
    """Computes everything that a run will ask of its cache, and that the cache lacks.

    Args:
        encoders: of the captions, with the cache.
        prepare: of clips (batch, samples), through the same cache.
        data: the clips to train on.
        validation: those to validate on, if there are any.
        size: of a batch.
        pool: how many clips of the data the run uses; 0: all.
        report: called with lines of progress.
        should_stop: if it returns something true, the rest is left undone.

    Returns:
        Whether the cache holds everything.

    Raises:
        ArgumentError: clips never repeat, so that a cache is of no use.
    """
    cache = encoders.cache
    clips = count_clips(data, pool, cache.limit / 1e9)
    texts = list(dict.fromkeys(["", *data.captions(), *(validation.captions() if validation else [])]))

    def read(group: list[str]) -> None:
        with torch.no_grad():
            length = max(encoders.length(text) for text in group)
            encoders.read([Row(text, text, length) for text in group])

    def encode(source: Captioned, step: int) -> None:
        prepare(source.batch(step, size)[0])

    parts: list[Callable[[], None]] = [partial(encode, data, step) for step in range(-(-clips // size))]
    if validation is not None:
        parts += [partial(encode, validation, step) for step in range(-(-VALIDATION_CLIPS // size))]
    parts += [partial(read, texts[i : i + size]) for i in range(0, len(texts), size)]
    report(f"cache: {clips} clips and {len(texts)} captions, in {cache.folder}")
    began = reported = time.monotonic()
    for done, compute in enumerate(parts, 1):
        if should_stop():
            return False
        compute()
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            left = (len(parts) - done) * (reported - began) / done
            report(f"cache: {done} of {len(parts)} batches, {time_left(left, datetime.now())}")
    if not cache.complete:
        report(f"cache: full at {cache.bytes / 1e9:.3g} GB; what it lacks is computed each time")
    return cache.complete
