"""The loop of all stages: step, log, validate, save, write samples; stop after any step, resume exactly.

run_folder.py describes what a run's folder holds. Whatever ends a run (the last step, a signal, an error, a
full disk), the last good state is saved first; after a kill, the next start repairs the folder.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from audioldm2.errors import require_whole
from audioldm2.training.data import Captioned, Pool, part_of
from audioldm2.training.full_disk import DiskWriter
from audioldm2.training.judging import Judge, Judging, samples_folder, write_samples
from audioldm2.training.metrics import JsonLines, TensorBoard
from audioldm2.training.progress import Progress
from audioldm2.training.run_folder import measure, model_step, save
from audioldm2.training.stage import Stage

Report = Callable[[str], object]


@dataclass(frozen=True)
class Intervals:
    """Steps from one save to the next, between samplings, and between validations; the last step is saved."""

    save: int = 1000
    sample: int = 5000  # 0: never
    validate: int = 500  # if there are validation clips

    def __post_init__(self) -> None:
        require_whole("save", self.save, 1)
        require_whole("sample", self.sample, 0)
        require_whole("validate", self.validate, 1)


def train(
    stage: Stage, data: Captioned, folder: Path, intervals: Intervals, *, validation: Captioned | None = None,
    judging: Judging | None = None, on_full_disk: str = "stop", tensorboard: bool = False,
    report: Report = lambda line: None, should_stop: Callable[[], object] = lambda: False,
) -> bool:  # fmt: skip
    """Trains until the recipe's last step, or until the validation loss has not improved for long.

    Args:
        stage: continues from its current step. Where it shares each batch with other ranks, all call this
            with the same arguments; rank 0 alone writes.
        data: the clips.
        folder: of the run; it must exist.
        intervals: when to save, to write samples and to validate.
        validation: clips that are not trained on.
        judging: what is kept, the samples' prompts, early stopping.
        on_full_disk: "wait" for space, or "stop".
        tensorboard: write curves for TensorBoard too.
        report: called with lines of progress.
        should_stop: called after every step; if it returns something true, the run is saved and ends.

    Returns:
        Whether the run is complete, rather than stopped from outside.

    Raises:
        FloatingPointError: the loss or a gradient is NaN or infinite.
        OSError: the disk refused a write, and the run does not wait.
        OtherRankFailed: another rank raised an error, or disappeared.
        Exception: from the data or the networks. The last good state is saved before any of these is raised.
    """
    ranks = stage.ranks
    report = report if ranks.is_first else lambda line: None
    disk = DiskWriter(folder, on_full_disk, report, should_stop, writes=ranks.is_first)
    run = _Run(stage, data, folder, intervals, judging or Judging(), validation, disk, report)
    with ExitStack() as stack:
        if tensorboard and ranks.is_first:
            run.board = TensorBoard(folder, stage.done)
            stack.callback(run.board.close)
        if ranks.is_first:
            run.log.require_writable()
        run.finish_last_save()
        try:
            stage.compute_ahead(data, validation, report, should_stop)
            complete = run.train(should_stop)
            ranks.wait()  # for what rank 0 writes
            return complete
        except Exception as error:
            ranks.announce(error)
            run.save_before_ending()
            raise


class _Run:
    """One call of `train`."""

    def __init__(
        self, stage: Stage, data: Captioned, folder: Path, intervals: Intervals, judging: Judging,
        validation: Captioned | None, disk: DiskWriter, report: Report,
    ) -> None:  # fmt: skip
        self.stage, self.data, self.folder, self.intervals = stage, data, folder, intervals
        self.disk, self.report, self.prompts = disk, report, judging.prompts
        self.judge = Judge(stage, validation, folder, judging, disk)
        self.log = JsonLines(folder / "metrics.jsonl")
        self.board: TensorBoard | None = None
        self.saved = stage.done  # the step of the last save
        self.save_failed = False

    def train(self, should_stop: Callable[[], object]) -> bool:
        """Takes steps until the end; returns whether the run is complete."""
        stage, steps, size = self.stage, self.stage.recipe.steps, self.stage.recipe.batch
        progress = Progress(stage.done, steps, self.report)
        pool = (
            Pool(self.data, stage.prepare, stage.recipe.pool, size, stage.seed, stage.ranks)
            if stage.recipe.pool
            else None
        )

        def prepared(step: int) -> tuple[Tensor, list[str]]:
            if pool is not None:
                return pool.batch(step)
            wave, captions = part_of(self.data, step, size, stage.ranks.places(size))
            return stage.prepare(wave), captions

        with ThreadPoolExecutor(1) as executor:  # prepares the next batch while the device works on this one
            upcoming: Future = executor.submit(prepared, stage.done)
            while stage.done < steps and not self.judge.gives_up:
                batch = upcoming.result()
                if stage.done + 1 < steps:
                    upcoming = executor.submit(prepared, stage.done + 1)
                metrics = self.step(batch)
                progress.add(stage.done, metrics)
                self.validate()
                stops = stage.done == steps or stage.ranks.any(should_stop()) or self.judge.gives_up
                due = self.is_due(self.intervals.save) or self.is_due(self.intervals.sample)
                if stops or due or stage.done in self.judge.best:
                    self.save()
                if stops:
                    break
        if self.judge.gives_up:
            self.report(f"the validation loss has not improved in {self.judge.judging.patience} validations")
        return stage.done == steps or self.judge.gives_up

    def step(self, batch: tuple[Tensor, list[str]]) -> dict[str, float]:
        """Takes a step and logs its metrics."""
        try:
            metrics = self.stage.step_prepared(*batch)
        except FloatingPointError as error:
            step = self.stage.done + 1
            raise FloatingPointError(f"{error} at step {step}; try a lower learning_rate.") from error
        self.disk.write(partial(self.log.append, {"step": self.stage.done} | metrics))
        if self.board:
            self.board.add("training", self.stage.done, metrics)
        return metrics

    def validate(self) -> None:
        """Validates if it is due."""
        judge = self.judge
        if judge.data is None or not self.is_due(self.intervals.validate) or self.stage.done in judge.losses:
            return
        metrics = judge.validate(self.report)
        if self.board:
            self.board.add("validation", self.stage.done, metrics)

    def is_due(self, interval: int) -> bool:
        """Whether the current step is a multiple of an interval, which is not 0."""
        return interval > 0 and self.stage.done % interval == 0

    def save(self) -> None:
        """Saves, writes samples if they are due, and keeps the model if it is one of the best."""
        self.save_failed = True
        with self.stage.whole_weights():
            self.disk.write(partial(save, self.stage, self.data, self.folder))
        self.save_failed, self.saved = False, self.stage.done
        self.after_saving()

    def after_saving(self) -> None:
        """Does what follows a save."""
        self.judge.keep_models()
        if self.is_due(self.intervals.sample) and not samples_folder(self.folder, self.stage.done).exists():
            arguments = (self.stage, self.data, self.folder, self.report, self.prompts)
            self.disk.write(partial(write_samples, *arguments))

    def finish_last_save(self) -> None:
        """Completes the save of a process that was killed between the state and what follows from it."""
        stage = self.stage
        if not stage.done:
            return
        # A sharded stage is gathered on every rank, which takes time and memory: only where it is needed.
        if stage.ranks.any(stage.ranks.is_first and model_step(stage, self.folder) != stage.done):
            with stage.whole_weights():
                self.disk.write(self.update_model)
        self.validate()
        self.after_saving()

    def update_model(self) -> None:
        """Writes the model of the last saved state."""
        measure(self.stage, self.data)
        self.stage.save_model(self.folder)

    def save_before_ending(self) -> None:
        """Saves the last good state before an error ends the run, and reports what is lost if that fails."""
        stage, step = self.stage, self.stage.done
        if step == self.saved or self.save_failed or not stage.ranks.is_first:
            return
        if stage.sharded:
            self.report(f"a part of step {step} is on other ranks; {self.folder} holds step {self.saved}")
            return
        if stage.torn:
            self.report(f"step {step + 1} failed half-way; {self.folder} holds step {self.saved}")
            return
        try:
            save(stage, self.data, self.folder)
        except Exception as other:
            self.report(f"step {step} could not be saved ({other}); {self.folder} holds step {self.saved}")
        else:
            self.saved = step
            self.report(f"saved at step {step}, before the error")
