"""The settings of a run: run.json, written when it begins and read when it resumes."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from audioldm2.checkpoints import storage, validate
from audioldm2.errors import require_choice, some
from audioldm2.files import atomic_write
from audioldm2.training.full_disk import ON_FULL_DISK
from audioldm2.training.judging import Judging
from audioldm2.training.loop import Intervals
from audioldm2.training.sources import DataOptions

REQUIRED = {"stage", "data", "recipe", "seed", "save", "sample"}  # version 0.1 writes these and no others


@dataclass(frozen=True)
class Settings:
    """All that a run needs to continue, besides its state and model."""

    stage: str
    data: str
    recipe: dict  # its fields
    seed: int
    save: int
    sample: int
    validate: int = Intervals.validate
    validation: str | None = None  # data that are kept out of training: a place, or a fraction of `data`
    audio_column: str | None = None  # of tables; None: a usual name
    caption_column: str | None = None
    skip_bad: bool = False  # leave out sounds that cannot be used
    mix: str | None = None  # data with old sounds
    mix_share: float = 0.0
    prompts: tuple[str, ...] = ()
    keep_best: int = Judging.keep_best
    keep_last: int = Judging.keep_last
    patience: int = Judging.patience
    on_full_disk: str = "wait"
    tensorboard: bool = False
    base: str | None = None  # of a run that makes an adapter: the model that it is for
    base_sha256: str | None = None  # of the weights of that model's adapted networks

    def __post_init__(self) -> None:
        require_choice("on_full_disk", self.on_full_disk, ON_FULL_DISK)
        _ = self.intervals, self.judging  # they check their fields

    @property
    def data_options(self) -> DataOptions:
        """How the data set is read."""
        return DataOptions(self.validation, self.audio_column, self.caption_column, self.skip_bad)

    @property
    def intervals(self) -> Intervals:
        """When to save, sample and validate."""
        return Intervals(self.save, self.sample, self.validate)

    @property
    def judging(self) -> Judging:
        """What is kept, and when the run ends early."""
        return Judging(self.prompts, self.keep_best, self.keep_last, self.patience)


def read_settings(folder: Path) -> Settings:
    """Reads a run's settings; those of version 0.1 lack the later fields.

    Raises:
        ValueError: the folder holds no run, or run.json has other fields than it should.
        WeightsError: run.json is damaged, or a value in it is not allowed.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run to continue; it has no run.json.")
    found = storage.read_json(path)
    known = [field.name for field in fields(Settings)]
    if REQUIRED - set(found) or set(found) - set(known):
        raise ValueError(
            f"{path} has {some(sorted(found))}; it has to have {some(sorted(REQUIRED), 9)}, and may have "
            f"{some(sorted(set(known) - REQUIRED), 99)}."
        )
    defaults = {field.name: field.default for field in fields(Settings) if field.name not in REQUIRED}
    return validate.build(Settings, defaults | found, str(path))


def write_settings(settings: Settings, folder: Path) -> None:
    """Writes a run's settings."""
    with atomic_write(folder / "run.json", durable=True) as draft:
        draft.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
