"""Chooses the kernel of an operation: tried once against the reference and timed once against it.

An `Operation` has a reference, a few lines of public PyTorch, and kernels that compute the same faster on
some processors. The first call with a shape of a new class runs both on a part of its input: a kernel must
agree with the reference, and must be faster by MARGIN, to be used for that class in this process. The trial
takes a few milliseconds. `report()` lists what was chosen.

Kernels run on CPUs only, and only in plain inference: gradients, autocast, `torch.compile`, `torch.export`,
`vmap`, tensor subclasses and other devices always get the reference. `using("reference")`, or the environment
variable AUDIOLDM2_OPS=reference, forces it everywhere.

A timing decides, and two processes would decide differently where kernels nearly tie; the same seed would
then give sounds that differ by rounding. The first choice on a machine is therefore kept on disk
(`trial_file`) and later processes only check that the kernel still agrees with the reference. Within one
process a class of shapes keeps its kernel, whatever the batch and the thread.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.errors import require_choice
from audioldm2.ops import trial_file

MODES = ("auto", "reference")
VARIABLE = "AUDIOLDM2_OPS"
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}  # relative distance of kernel and reference
MARGIN = 0.9  # a kernel must take less than this part of the reference's time
LEAST_SECONDS = 2e-4  # below, whichever runs costs nothing, and a trial would only measure noise
ROUNDS = 3  # timed runs of each side, alternating; the fastest counts
ENOUGH_SECONDS = 0.03  # no further round once a trial has taken this long

_mode: ContextVar[str | None] = ContextVar("mode of audioldm2.ops", default=None)
_without: ContextVar[frozenset[str]] = ContextVar("kernels switched off", default=frozenset())


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operation."""

    name: str
    run: Callable[..., Tensor]
    applies: Callable[..., bool]  # to these arguments, by dtype and shape


@dataclass(frozen=True)
class Choice:
    """What runs for one class of shapes, and why."""

    operation: str
    dtype: torch.dtype
    shape: Hashable
    kernel: str
    milliseconds: dict[str, float]  # of the reference and of each kernel that agreed; empty: chosen before


class Operation:
    """A function with several kernels.

    Args:
        name: how reports call it.
        reference: the function in public PyTorch; its first argument is a tensor.
        kernels: faster ways to compute it on some processors.
        shape_class: arguments to a hashable class of shapes, which shares one choice; without the batch size,
            so that a sound is computed alike alone and in a batch.
        excerpt: arguments to smaller ones of the same class, for the trial.
        margin: a kernel must take less than this part of the reference's time.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],
        kernels: list[Kernel],
        shape_class: Callable[..., Hashable],
        excerpt: Callable[..., tuple],
        margin: float = MARGIN,
    ):
        self.name, self.reference, self.kernels = name, reference, kernels
        self.shape_class, self.excerpt, self.margin = shape_class, excerpt, margin
        self.choices: dict[Hashable, tuple[Callable[..., Tensor], Choice]] = {}
        self.lock = threading.Lock()

    def __call__(self, *args: Any) -> Tensor:
        if not _in_plain_inference(args):
            return self.reference(*args)
        without = _without.get()
        usable = [each for each in self.kernels if each.name not in without and each.applies(*args)]
        if not usable:
            return self.reference(*args)
        key = (args[0].dtype, self.shape_class(*args), without, torch.get_num_threads())
        found = self.choices.get(key)
        if found is None:
            with self.lock:
                found = self.choices.get(key) or self._choose(key, usable, args)
        return found[0](*args)

    def _choose(self, key: tuple, usable: list[Kernel], args: tuple) -> tuple[Callable[..., Tensor], Choice]:
        args = self.excerpt(*args)
        expected = self.reference(*args)
        runs: dict[str, Callable[..., Tensor]] = {"reference": self.reference}
        runs |= {each.name: each.run for each in usable if _agrees(each.run, args, expected)}
        times: dict[str, float] = {}

        def fastest() -> str:
            chosen, milliseconds = self._fastest(runs, args)
            times.update(milliseconds)
            return chosen

        if key[2] or not expected.isfinite().all():
            chosen = fastest()  # a measurement, or an input that says nothing about the kernels
        else:
            trial = f"{self.name} {key[0]} {key[1]} threads={key[3]}"
            chosen = trial_file.finding(
                trial, fastest, lambda kernel: isinstance(kernel, str) and kernel in runs
            )
        found = runs[chosen], Choice(self.name, key[0], key[1], chosen, times)
        if expected.isfinite().all():
            self.choices[key] = found
        return found

    def _fastest(self, runs: dict[str, Callable[..., Tensor]], args: tuple) -> tuple[str, dict[str, float]]:
        """The kernel that is faster than the reference by the margin, or the reference; and all times, ms."""
        seconds = _time(runs, args)
        fastest = min(runs, key=lambda name: seconds[name] if name != "reference" else float("inf"))
        worth = (
            seconds["reference"] >= LEAST_SECONDS and seconds[fastest] < self.margin * seconds["reference"]
        )
        return fastest if worth else "reference", {name: 1000 * each for name, each in seconds.items()}


def _time(runs: dict[str, Callable[..., Tensor]], args: tuple) -> dict[str, float]:
    """Seconds of each at its fastest, in turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(*args)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
    return seconds


def _agrees(run: Callable[..., Tensor], args: tuple, expected: Tensor) -> bool:
    """Whether a kernel exists in this PyTorch and computes what the reference does."""
    try:
        found = run(*args)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # by version and platform
        return False
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    error = torch.linalg.vector_norm(found.float() - expected.float())
    return bool(error <= TOLERANCE[expected.dtype] * torch.linalg.vector_norm(expected.float()))


def _in_plain_inference(args: tuple) -> bool:
    """Whether a kernel may be used: nothing but the processor decides what is computed."""
    x = args[0]
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not _transformed()
        and all(type(each) in (Tensor, nn.Parameter) and each.dtype == x.dtype
                for each in args if isinstance(each, Tensor) and each.is_floating_point())
        and x.numel() > 0
        and mode() == "auto"
    )  # fmt: skip


def _transformed() -> bool:
    """Whether torch.func (vmap, jvp, ...) is at work; PyTorch has no public way to ask."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def mode() -> str:
    """ "auto" or "reference": of `using`, else of the environment, else "auto"."""
    return _mode.get() or require_choice(VARIABLE, os.environ.get(VARIABLE) or "auto", MODES)


@contextmanager
def using(mode: str | None, without: frozenset[str] | set[str] = frozenset()) -> Iterator[None]:
    """While the block lasts, in this thread: which kernels may run.

    Args:
        mode: "reference" for the reference alone, "auto" to choose, None as it is outside of the block.
        without: names of kernels that must not run, for measurements.
    """
    before = _mode.set(_mode.get() if mode is None else require_choice("ops", mode, MODES))
    before_without = _without.set(_without.get() | frozenset(without))
    try:
        yield
    finally:
        _mode.reset(before)
        _without.reset(before_without)
