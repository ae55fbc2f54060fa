"""The training loop of all stages: step, log, save, write samples; stop after any step and resume exactly.

A run's folder holds
  model/         the whole model so far, in the converted format; `audioldm2.load` reads it at any time
                 (of an adapter's run: adapter/, which `load_lora` reads)
  state.pt       what resuming needs: raw weights, optimizers, averages, the number of steps
  metrics.jsonl  one line per step
  samples/       sounds, and spectrograms if matplotlib is installed; one folder per sampling
Every file but the log, which grows line by line, is replaced atomically.
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
from audioldm2.errors import require_whole
from audioldm2.files import atomic_write, safe_name
from audioldm2.training.data import Captioned, Pool
from audioldm2.training.stage import Stage

Report = Callable[[str], object]
PROGRESS_SECONDS = 5.0  # least time between two lines of progress
SAMPLE_CLIPS = 4  # clips per sampling
MEASURED_BATCHES = 8  # batches that `Stage.measure` gets


@dataclass(frozen=True)
class Intervals:
    """Steps from one save to the next, and between samplings. The last step is always saved."""

    save: int = 1000
    sample: int = 5000  # 0: never

    def __post_init__(self) -> None:
        require_whole("save", self.save, 1)
        require_whole("sample", self.sample, 0)


def train(
    stage: Stage, data: Captioned, folder: Path, intervals: Intervals, *,
    report: Report = lambda line: None, should_stop: Callable[[], bool] = lambda: False,
) -> bool:  # fmt: skip
    """Trains until the recipe's last step.

    Args:
        stage: continues from its current step.
        data: the clips.
        folder: of the run; it must exist.
        intervals: when to save and to write samples.
        report: called with lines of progress.
        should_stop: called after every step; if it returns True, the run is saved and ends.

    Returns:
        Whether the last step was reached.

    Raises:
        FloatingPointError: a metric is NaN or infinite. What was saved before stays.
    """
    steps, size = stage.recipe.steps, stage.recipe.batch
    progress = Progress(stage.done, steps, report)
    pool = Pool(data, stage.prepare, stage.recipe.pool, size, stage.seed) if stage.recipe.pool else None

    def prepared(step: int) -> tuple[Tensor, list[str]]:
        if pool is not None:
            return pool.batch(step)
        wave, captions = data.batch(step, size)
        return stage.prepare(wave), captions

    with (
        ThreadPoolExecutor(1) as executor,  # prepares the next batch while the device works on this one
        open(folder / "metrics.jsonl", "a", encoding="utf-8") as log,
    ):
        upcoming: Future = executor.submit(prepared, stage.done)
        while stage.done < steps:
            batch = upcoming.result()
            if stage.done + 1 < steps:
                upcoming = executor.submit(prepared, stage.done + 1)
            metrics = stage.step_prepared(*batch)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {stage.done}; try a lower learning_rate. "
                        f"{folder} still holds the last save."
                    )
            log.write(json.dumps({"step": stage.done} | metrics) + "\n")
            progress.add(stage.done, metrics)
            stops = stage.done == steps or should_stop()
            samples = intervals.sample and stage.done % intervals.sample == 0
            if stops or samples or stage.done % intervals.save == 0:
                log.flush()
                save(stage, data, folder)
            if samples:
                write_samples(stage, data, folder, report)
            if stops:
                break
    return stage.done == steps


def save(stage: Stage, data: Captioned, folder: Path) -> None:
    """Writes the state for resuming, and the model."""
    with atomic_write(folder / "state.pt") as draft:
        torch.save(stage.state_dict(), draft)
    stage.measure(data.batch(step, stage.recipe.batch)[0] for step in range(MEASURED_BATCHES))
    stage.save_model(folder)


def resume(stage: Stage, folder: Path) -> None:
    """Restores a stage from a run's folder and drops the log lines of later steps.

    Args:
        stage: of the same kind and recipe as the run's.
        folder: of the run.

    Raises:
        ValueError: the state belongs to another stage or model, or is damaged.
    """
    path = folder / "state.pt"
    try:
        if path.exists():  # otherwise the run was stopped before its first save
            stage.load_state_dict(torch.load(path, map_location=stage.device, weights_only=True))
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} does not hold the state of this run: {error}") from error
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    with atomic_write(log) as draft:
        draft.write_text("".join(lines[: stage.done]), encoding="utf-8")


def write_samples(stage: Stage, data: Captioned, folder: Path, report: Report) -> None:
    """Writes sounds of the model that was just saved, and spectrograms if matplotlib is installed."""
    wave, captions = data.batch(0, SAMPLE_CLIPS)
    model = stage.load_model(folder)
    target = folder / "samples" / f"step-{stage.done:07d}"
    frame_seconds = stage.front_end.hop / stage.front_end.sample_rate
    for sample in stage.samples(model, wave, captions):
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"{safe_name(sample.name)}.wav"
        write_wav(path, sample.wave, model.sample_rate)
        if find_spec("matplotlib"):
            save_spectrogram(sample.mel, sample.name, path.with_suffix(".png"), frame_seconds)
        report(f"  {path}")


class Progress:
    """Reports progress: metrics averaged since the last report, speed, and the remaining time."""

    def __init__(self, done: int, steps: int, report: Report) -> None:
        self.steps, self.report = steps, report
        self.pause = 0.0  # report the first step at once
        self._restart(done)

    def add(self, done: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step, and reports if the last report is long enough ago."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        seconds = time.monotonic() - self.since
        if seconds < self.pause and done < self.steps:
            return
        speed = (done - self.first) / max(seconds, 1e-9)
        left = (self.steps - done) / speed
        means = "  ".join(f"{name} {total / self.counts[name]:.4g}" for name, total in self.sums.items())
        self.report(f"step {done}/{self.steps}  {means}  {speed:.3g} steps/s, {_duration(left)} left")
        self.pause = PROGRESS_SECONDS
        self._restart(done)

    def _restart(self, done: int) -> None:
        self.first, self.since = done, time.monotonic()
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}


def _duration(seconds: float) -> str:
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"
