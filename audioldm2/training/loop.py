"""The one loop of all stages: step, log, save, let hear; stop at any step, and go on as if nothing had been.

A run's folder holds
  model/         the whole model as it is now, in the converted format: `audioldm2.load` reads it at any time
  state.pt       what a run needs to go on: weights as they are, optimisers, averages, the number of steps
  metrics.jsonl  a line a step
  samples/       sounds (and spectrograms, where matplotlib is installed), a folder each time
Each file appears whole or not at all, but for the log, which grows by lines.
"""

import json
import math
import pickle
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from audioldm2.audio import write_wav
from audioldm2.audio.plot import save_spectrogram
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import load
from audioldm2.files import atomic_write, safe_name
from audioldm2.training.data import Captioned, Pool
from audioldm2.training.stage import Stage

Say = Callable[[str], object]
PAUSE = 5.0  # seconds between lines of progress, at least
CLIPS = 4  # heard at each sampling
MEASURED = 8  # batches from which a stage measures what it has to know


@dataclass(frozen=True)
class Cadence:
    """After how many steps what is done; the last step is always saved."""

    save: int = 1000
    sample: int = 5000  # 0: never

    def __post_init__(self) -> None:
        if self.save < 1 or self.sample < 0:
            raise ValueError(f"{self}: needed are save of at least 1 and sample of at least 0.")


def train(
    stage: Stage, data: Captioned, folder: Path, cadence: Cadence, *,
    say: Say = lambda line: None, stopped: Callable[[], bool] = lambda: False,
) -> bool:  # fmt: skip
    """Step until the recipe's last one; returns whether it was reached.

    say:     called with lines of progress.
    stopped: asked after each step; True saves and returns.
    Raises FloatingPointError when the loss is no number any more; what was saved before stays.
    """
    steps, size = stage.recipe.steps, stage.recipe.batch
    progress = Progress(stage.done, steps, say)
    pool = Pool(data, stage.prepare, stage.recipe.pool, size, stage.seed) if stage.recipe.pool else None

    def clips(step: int) -> tuple[Tensor, list[str]]:
        if pool is not None:
            return pool.batch(step)
        wave, captions = data.batch(step, size)
        return stage.prepare(wave), captions

    with (
        ThreadPoolExecutor(1) as beside,  # prepares a batch while the device works on another
        open(folder / "metrics.jsonl", "a", encoding="utf-8") as log,
    ):
        coming: Future = beside.submit(clips, stage.done)
        while stage.done < steps:
            batch = coming.result()
            if stage.done + 1 < steps:
                coming = beside.submit(clips, stage.done + 1)
            metrics = stage.learn(*batch)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {stage.done}; try a lower learning_rate. "
                        f"{folder} is as it was when it was last saved."
                    )
            log.write(json.dumps({"step": stage.done} | metrics) + "\n")
            progress.add(stage.done, metrics)
            ends = stage.done == steps or stopped()
            hears = cadence.sample and stage.done % cadence.sample == 0
            if ends or hears or stage.done % cadence.save == 0:
                log.flush()
                save(stage, data, folder)
            if hears:
                write_samples(stage, data, folder, say)
            if ends:
                break
    return stage.done == steps


def save(stage: Stage, data: Captioned, folder: Path) -> None:
    """Write what a run needs to go on, and the model as it is."""
    with atomic_write(folder / "state.pt") as draft:
        torch.save(stage.state_dict(), draft)
    stage.measure(data.batch(step, stage.recipe.batch)[0] for step in range(MEASURED))
    storage.write(stage.checkpoint(), folder / "model", force=True)


def resume(stage: Stage, folder: Path) -> None:
    """Bring a stage to where a run was saved, and forget what the log says of later steps.

    Raises ValueError for a state of another stage or model, or a damaged one.
    """
    path = folder / "state.pt"
    try:
        if path.exists():  # else it was stopped before anything was saved
            stage.load_state_dict(torch.load(path, map_location=stage.device, weights_only=True))
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} does not hold the state of this run: {error}") from error
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    with atomic_write(log) as draft:
        draft.write_text("".join(lines[: stage.done]), encoding="utf-8")


def write_samples(stage: Stage, data: Captioned, folder: Path, say: Say) -> None:
    """Sounds of the model that was just written, and their spectrograms where matplotlib is installed."""
    wave, captions = data.batch(0, CLIPS)
    model = load(folder / "model", device=stage.device, dtype="float32")
    here = folder / "samples" / f"step-{stage.done:07d}"
    frame = stage.front_end.hop / stage.front_end.sample_rate
    for sample in stage.samples(model, wave, captions):
        here.mkdir(parents=True, exist_ok=True)
        path = here / f"{safe_name(sample.name)}.wav"
        write_wav(path, sample.wave, model.sample_rate)
        if find_spec("matplotlib"):
            save_spectrogram(sample.mel, sample.name, path.with_suffix(".png"), frame)
        say(f"  {path}")


class Progress:
    """Lines that say how far a run is: means over the steps since the last line, and the time left."""

    def __init__(self, done: int, steps: int, say: Say):
        self.steps, self.say = steps, say
        self.pause = 0.0  # the first step has its line at once
        self._begin_line(done)

    def add(self, done: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        seconds = time.monotonic() - self.since
        if seconds < self.pause and done < self.steps:
            return
        speed = (done - self.first) / max(seconds, 1e-9)
        left = (self.steps - done) / speed
        means = "  ".join(f"{name} {total / self.counts[name]:.4g}" for name, total in self.sums.items())
        self.say(f"step {done}/{self.steps}  {means}  {speed:.3g} steps/s, {_duration(left)} left")
        self.pause = PAUSE
        self._begin_line(done)

    def _begin_line(self, done: int) -> None:
        self.first, self.since = done, time.monotonic()
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}


def _duration(seconds: float) -> str:
    for most, unit, name in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"
