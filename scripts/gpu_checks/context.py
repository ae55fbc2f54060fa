"""What the checks of gpu_check.py share: the device, the model, how long is left, and a row of the table."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import audioldm2
from audioldm2.checkpoints.load import load, open_checkpoint
from audioldm2.checkpoints.storage import Checkpoint
from scripts.benchmark.worker import peak_resident, reset_peak, synchronize


@dataclass
class Row:
    """A line of the table."""

    check: str
    what: str
    ok: bool | None  # None: left out
    figures: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""  # why it failed, or was left out


@dataclass
class Context:
    """What the checks run on.

    Args:
        device: where.
        folder: the model, in the converted format or any other that `load` reads.
        scratch: a folder for what the checks write.
        quick: tiny requests, to run every line of the checks.
        with_peer: whether to measure beside diffusers where it is installed.
        deadline: when no further check begins, by `time.monotonic`.
        report: called with lines of progress.
    """

    device: torch.device
    folder: str
    scratch: Path
    quick: bool = False
    with_peer: bool = True
    deadline: float = math.inf
    report: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        """Length of an ordinary sound."""
        return 0.32 if self.quick else 10.24

    @property
    def steps(self) -> int:
        return 2 if self.quick else 25

    @property
    def dtype(self) -> str:
        """That of requests: half precision where a GPU runs it."""
        return "float16" if self.is_cuda else "float32"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)

    def load(self, **options: Any) -> audioldm2.AudioLDM2:
        return load(self.folder, device=self.device, **({"dtype": self.dtype} | options))

    @contextmanager
    def measured(self, figures: dict[str, Any], prefix: str = "") -> Iterator[None]:
        """Add the seconds and the peak memory of the block to some figures."""
        reset_peak(str(self.device))
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        figures[f"{prefix}s"] = time.perf_counter() - start
        figures[f"{prefix}peak MB"] = self.peak()

    def wait(self) -> None:
        synchronize(str(self.device))

    def peak(self) -> float:
        """Peak MB since `measured` began: allocated on the GPU, or resident."""
        return torch.cuda.max_memory_allocated(self.device) / 1e6 if self.is_cuda else peak_resident()

    def held(self) -> float:
        """MB that are held now on the device."""
        return torch.cuda.memory_allocated(self.device) / 1e6 if self.is_cuda else peak_resident()


Check = Callable[[Context], Iterator[Row]]


def decibels(exact: Tensor, other: Tensor) -> float:
    """The signal-to-error ratio in dB, at most 300; minus infinity where a value is not finite."""
    if not other.isfinite().all():
        return -math.inf
    exact, other = exact.double().cpu(), other.double().cpu()
    error = (other - exact).square().sum().clamp(min=1e-30 * float(exact.square().sum()) + 1e-300)
    return float(10 * (exact.square().sum() / error).log10())


def against(exact: Tensor, found: Tensor, least: float) -> tuple[bool, dict[str, Any], str]:
    """Whether a result is within an error of the exact one; its figures; the sentence where it is not."""
    if exact.shape != found.shape:
        return False, {}, f"the shape is {tuple(found.shape)} in place of {tuple(exact.shape)}."
    ratio = decibels(exact, found)
    if ratio >= least:
        return True, {"dB": ratio}, ""
    what = "a value is not finite" if ratio == -math.inf else f"the error lies only {ratio:.1f} dB below"
    return False, {"dB": ratio}, f"{what}; at least {least:g} dB are required."
