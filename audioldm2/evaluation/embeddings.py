"""CLAP's vectors of sound files, one file at a time, kept on disk so that a run that was ended goes on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import read, resample
from audioldm2.evaluation.clap import Judge
from audioldm2.files import atomic_write

HASHED_AT_ONCE = 1 << 20  # bytes


def embed_file(judge: Judge, file: Path, through: Sequence[int] = (), cache: Path | None = None) -> Tensor:
    """Compute CLAP's vector of a sound file, or read it from the cache.

    Args:
        judge: the CLAP.
        file: of any rate and length.
        through: Hz, the rates to resample to, in this order, before CLAP resamples to its own.
        cache: a folder, which is created; vectors are found there by the file's content, the CLAP and the
            rates, so that renamed files are known and changed ones are not. None for no cache.

    Returns:
        float32 (clap_dim,), norm 1.

    Raises:
        ValueError: the file is no sound (see `audio.read`), or CLAP computes NaN for it.
        OSError: from the system.
    """
    kept = None
    if cache is not None:
        key = hashlib.sha256(repr(tuple(through)).encode())
        with open(file, "rb") as content:
            while block := content.read(HASHED_AT_ONCE):
                key.update(block)
        name = key.hexdigest()[:32]
        kept = cache / judge.digest / name[:2] / f"{name}.npy"
        vector = _read(kept)
        if vector is not None:
            return vector
    wave, rate = read(file)
    for to_rate in through:
        wave, rate = resample(wave, rate, to_rate), to_rate
    vector = judge.of_sounds([wave], rate)[0]
    if not vector.isfinite().all():
        raise ValueError(f"{file} has no vector: CLAP computes NaN for it.")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as draft:
            np.save(draft, vector.numpy())
    return vector


def _read(path: Path) -> Tensor | None:
    """A vector of the cache; None where it is not there, or damaged."""
    try:
        vector = torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError):
        return None
    return vector if vector.ndim == 1 and vector.isfinite().all() else None
