"""Runs of one process and of several that share each batch, on a tiny model.

    python -m tests.support.ranks FOLDER RANDOM UNTRAINED

A program of its own, because forks of a process with one thread are quick and safe. Writes what the runs left
into FOLDER, and failed.json with the tracebacks of modes that failed. RANDOM and UNTRAINED are models.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from traceback import format_exc
from typing import Any

import torch
from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.training import STAGES, judging, loop, run_folder
from audioldm2.training.data import Captioned
from audioldm2.training.distributed import Ranks, joined
from audioldm2.training.mixing import as_old
from audioldm2.training.recipe import override
from audioldm2.training.stage import Stage
from tests.support.crashes import fork, result
from tests.support.training import CAPTIONS, READ_SOUNDS, hearing, sound

QUICK: dict[str, dict[str, Any]] = {
    "ldm": {"seconds": 0.32, "prompt_dropout": 0.5, "ema": 0.9, "min_snr": 5.0, "train_t5": True},
    "lora": {"seconds": 0.32, "prompt_dropout": 0.3, "rank": 2, "prior_weight": 2.0},
    "word": {"seconds": 0.32, "prompt_dropout": 0.5, "word": "<zorp>", "vectors": 2, "learning_rate": 1e-2},
    "vae": {"seconds": 0.32, "adversary_start": 1, "adversary_width": 8, "train_encoder": True},
    "vocoder": {
        "seconds": 0.32, "window": 0.256, "through_vae": 0.3, "adversary_start": 1, "adversary_width": 4,
        "adversary_scales": 1, "additive_weight": 1.0, "learning_rate": 2e-5,
    },
    "audiomae": {"seconds": 0.64, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "loa": {"seconds": 0.32, "clap_dropout": 0.5, "train_t5": True},
    "clap": {"seconds": 0.8, "noise": 0.7, "train_text": True},
}  # fmt: skip
SHARED = {"batch": 4, "steps": 2, "warmup": 0, "learning_rate": 1e-4, "ema": 0.0, "pool": 0}
SAMPLED = "vae"  # samples of one stage are enough


class Sounds:
    """Other sounds at each step, a third of them old; it reads whole batches, as a source without `part`."""

    def __init__(
        self, seconds: float, first: int = 0, fault: Callable[[], None] | None = None, ending: str = ""
    ) -> None:
        self.seconds, self.first, self.fault, self.ending = seconds, first, fault, ending

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        if step == 2 and self.fault is not None:
            self.fault()
        chosen = [(self.first + step * size + place) % len(CAPTIONS) for place in range(size)]
        captions = [CAPTIONS[i] + self.ending for i in chosen]
        captions = [as_old(each) if i % 3 == 0 else each for i, each in zip(chosen, captions, strict=True)]
        return torch.stack([sound(index, self.seconds) for index in chosen]), captions

    def captions(self) -> list[str]:
        return list(CAPTIONS)


def stage_of(name: str, model: Path, ranks: Ranks, *, sharded: bool = False, **values: Any) -> Stage:
    kind = STAGES[name]
    recipe = override(kind.recipes["finetune"], SHARED | QUICK[name] | values, "the test's recipe")
    checkpoint = storage.read(model)
    checkpoint = hearing(checkpoint) if name in READ_SOUNDS or values.get("gt_loa") else checkpoint
    stage = kind(checkpoint, recipe, torch.device("cpu"), seed=3)
    stage.base = str(model)
    stage.join(ranks, sharded=sharded)
    return stage


def train(
    name: str, model: Path, folder: Path, ranks: Ranks, *, sharded: bool = False, resumes: bool = False,
    data: Captioned | None = None, should_stop: Callable[[], object] = lambda: False, **values: Any,
) -> bool:  # fmt: skip
    """Trains a stage on this rank."""
    stage = stage_of(name, model, ranks, sharded=sharded, **values)
    ending = " by a <zorp>" if name == "word" else ""
    data = data or Sounds(stage.recipe.seconds, ending=ending)
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.wait()
    if resumes:
        run_folder.resume(stage, folder, data)
    validation = Sounds(stage.recipe.seconds, first=5, ending=ending)
    intervals = loop.Intervals(save=10, sample=2 if name == SAMPLED else 0, validate=2)
    return loop.train(
        stage, data, folder, intervals, validation=validation, should_stop=should_stop,
        report=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip


def together(count: int, action: Callable[[Ranks], object]) -> list[int]:
    """Runs an action on some ranks, each a process; returns the processes' ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        if count > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update(address, **{name: str(value) for name, value in places.items()})
        with joined("cpu") as (ranks, _):
            action(ranks)

    return [fork(partial(run, rank)) for rank in range(count)]


def run(count: int, action: Callable[[Ranks], object]) -> list[int]:
    """The exit codes of an action on some ranks."""
    return [result(pid) for pid in together(count, action)]


def alone(action: Callable[[Ranks], object]) -> None:
    """Runs an action in this process. What it imports, later forks need not import."""
    with joined("cpu") as (ranks, _):
        action(ranks)


# Modes ------------------------------------------------------------------------------------------------------


def compare(model: Path, home: Path) -> None:
    """Every stage on one process and on two."""
    for name in QUICK:
        alone(partial(train, name, model, home / f"{name}-1"))
        assert run(2, partial(train, name, model, home / f"{name}-2")) == [0, 0], name


def resume(model: Path, home: Path) -> None:
    """A run whose steps are taken sharded and not, by two ranks and by one; and one of a single process."""
    for name in ("torch.distributed.fsdp", "torch.distributed.tensor"):
        import_module(name)  # before the forks
    whole = partial(train, "ldm", model, steps=5)
    alone(partial(whole, home / "whole"))
    parts = partial(whole, home / "parts")

    # One pair of processes takes all three turns: planning how to shard costs each pair seconds.
    def steps_of_two(ranks: Ranks) -> None:
        parts(ranks, sharded=True, should_stop=partial(next, iter([False, True])))
        parts(ranks, resumes=True, should_stop=lambda: True)
        parts(ranks, resumes=True, sharded=True, should_stop=lambda: True)

    assert run(2, steps_of_two) == [0, 0]
    alone(partial(parts, resumes=True))


def faults(model: Path, home: Path) -> None:
    """Runs whose second rank fails, stops or dies in the third step; writes exit codes and seconds."""

    def on_second(ranks: Ranks, name: str, data: Sounds) -> None:
        try:
            train("ldm", model, home / name, ranks, data=data if ranks.rank == 1 else None, steps=3)
        except Exception as error:
            (home / f"{name}-{ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")
            raise

    outcome = {}
    for name, fault in FAULTS.items():
        started = time.monotonic()
        codes = run(2, partial(on_second, name=name, data=Sounds(0.32, fault=fault)))
        outcome[name] = {"codes": codes, "seconds": time.monotonic() - started}
    stops = lambda ranks: train(  # noqa: E731
        "ldm", model, home / "stops", ranks, should_stop=lambda: ranks.rank == 1
    )
    outcome["stops"] = {"codes": run(2, stops)}
    (home / "outcome.json").write_text(json.dumps(outcome))


def raise_error() -> None:
    raise ValueError("bell.wav is gone")


def raise_bug() -> None:
    raise ZeroDivisionError


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {"error": raise_error, "bug": raise_bug, "killed": die}

if __name__ == "__main__":
    torch.set_num_threads(1)
    judging.VALIDATION_CLIPS, judging.SAMPLE_CLIPS = 4, 1
    judging.find_spec = lambda name: None  # no pictures, which take time
    home, random, untrained = map(Path, sys.argv[1:])
    failed = {}
    for mode, model in ((compare, random), (faults, untrained), (resume, untrained)):
        try:
            mode(model, home)
        except Exception:
            failed[mode.__name__] = format_exc()
    (home / "failed.json").write_text(json.dumps(failed))
