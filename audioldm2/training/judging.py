"""Judging while training runs: validation, the best and the last models, early stopping, samples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from audioldm2.audio import write_wav
from audioldm2.audio.plot import save_spectrogram
from audioldm2.errors import require_whole
from audioldm2.files import safe_name
from audioldm2.training.data import Captioned, part_of
from audioldm2.training.full_disk import DiskWriter
from audioldm2.training.metrics import JsonLines
from audioldm2.training.randomness import forked_rng, generator
from audioldm2.training.run_folder import copy_model, remove_model
from audioldm2.training.stage import Stage

VALIDATION_CLIPS = 32  # clips per validation, rounded up to whole batches
SAMPLE_CLIPS = 4  # clips per sampling, where the user gives no prompts


@dataclass(frozen=True)
class Judging:
    """How the models of a run are judged and which are kept."""

    prompts: tuple[str, ...] = ()  # of the samples; none: captions of the data
    keep_best: int = 1  # copies of the model with the lowest validation losses
    keep_last: int = 1  # last saved models; 1: model/ alone, more: copies in last/
    patience: int = 0  # validations without a better loss after which the run ends; 0: never

    def __post_init__(self) -> None:
        require_whole("keep_best", self.keep_best, 0)
        require_whole("keep_last", self.keep_last, 1)
        require_whole("patience", self.patience, 0)


class Judge:
    """Validates a stage on the same clips, times and noise each time, and keeps its best models.

    Args:
        stage: what is judged.
        data: the validation clips; None: there is no validation.
        folder: of the run.
        judging: the settings.
        disk: writes into the folder.
    """

    def __init__(
        self, stage: Stage, data: Captioned | None, folder: Path, judging: Judging, disk: DiskWriter
    ) -> None:
        self.stage, self.data, self.folder, self.judging, self.disk = stage, data, folder, judging, disk
        self.log = JsonLines(folder / "validation.jsonl")
        self.losses = {entry["step"]: entry["loss"] for entry in self.log.read()}  # by step
        self._clips: list[tuple[Tensor, list[str]]] = []  # prepared

    def validate(self, report: Callable[[str], object]) -> dict[str, float]:
        """Measures the model as it would be saved now, and logs the result."""
        assert self.data is not None
        metrics = validate(self.stage, self._prepared())
        entry = {"step": self.stage.done} | metrics
        self.disk.write(partial(self.log.append, entry))
        self.losses[self.stage.done] = metrics["loss"]
        best = min(self.losses, key=lambda step: self.losses[step])
        than = "the best so far" if best == self.stage.done else f"the best is {self.losses[best]:.4g}"
        report(f"validation loss {metrics['loss']:.4g} at step {self.stage.done}; {than}")
        return metrics

    @property
    def best(self) -> list[int]:
        """Steps of the models to keep, the best first."""
        return sorted(self.losses, key=lambda step: (self.losses[step], step))[: self.judging.keep_best]

    @property
    def gives_up(self) -> bool:
        """Whether the validation loss has not improved for so long that the run should end."""
        if not self.judging.patience or not self.losses:
            return False
        best = min(self.losses, key=lambda step: (self.losses[step], step))
        return sum(step > best for step in self.losses) >= self.judging.patience

    def keep_models(self) -> None:
        """Copies the model that was just saved if it is to be kept, and removes copies that are not.

        Doing it twice changes nothing, so that a start after a kill can do it again.
        """
        done = self.stage.done
        last, limit = self.folder / "last", self.judging.keep_last
        source = self.folder / self.stage.product
        if done in self.best:
            self.disk.write(partial(copy_model, source, model_folder(self.folder / "best", done)))
        if limit > 1:
            self.disk.write(partial(copy_model, source, model_folder(last, done)))
        kept_last = sorted(step for step in kept(last) if step <= done)[-limit:] if limit > 1 else []
        for folder, steps in ((self.folder / "best", self.best), (last, kept_last)):
            for step in set(kept(folder)) - set(steps):
                self.disk.write(partial(remove_model, model_folder(folder, step)))

    def _prepared(self) -> list[tuple[Tensor, list[str]]]:
        if not self._clips:
            size = self.stage.recipe.batch
            for step in range(-(-VALIDATION_CLIPS // size)):
                places = self.stage.ranks.places(size)
                wave, captions = part_of(self.data, step, size, places)  # type: ignore[arg-type]
                self._clips.append((self.stage.prepare(wave), captions))
        return self._clips


def validate(stage: Stage, batches: list[tuple[Tensor, list[str]]]) -> dict[str, float]:
    """Returns the mean losses of prepared batches, equally large; the same batches give the same numbers.

    Of several ranks, each has its share of every batch, and all get the same losses.
    """
    sums: dict[str, float] = {}
    with stage.as_saved(), forked_rng(stage.device, "validation", stage.seed):
        for number, (clips, captions) in enumerate(batches):
            metrics = stage.validation_step(clips, captions, generator("validation", stage.seed, number))
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    return stage.ranks.means(sums)


def model_folder(parent: Path, step: int) -> Path:
    """Returns the folder of a copy of the model."""
    return parent / f"step-{step:07d}"


def kept(parent: Path) -> list[int]:
    """Returns the steps of the copies of the model in a folder."""
    names = [path.name.removeprefix("step-") for path in parent.glob("step-*")]
    return [int(name) for name in names if name.isdecimal()]


def samples_folder(folder: Path, step: int) -> Path:
    """Returns where the samples of a step lie."""
    return folder / "samples" / f"step-{step:07d}"


def write_samples(
    stage: Stage,
    data: Captioned,
    folder: Path,
    report: Callable[[str], object],
    prompts: tuple[str, ...] = (),
) -> None:
    """Writes sounds of the model that was just saved, and spectrograms if matplotlib is installed."""
    wave, captions = data.batch(0, SAMPLE_CLIPS)
    model = stage.load_model(folder)
    target = samples_folder(folder, stage.done)
    frame_seconds = stage.front_end.hop / stage.front_end.sample_rate
    for sample in stage.samples(model, wave, list(prompts) or captions):
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"{safe_name(sample.name)}.wav"
        write_wav(path, sample.wave, model.sample_rate)
        if find_spec("matplotlib"):
            save_spectrogram(sample.mel, sample.name, path.with_suffix(".png"), frame_seconds)
        report(f"  {path}")
