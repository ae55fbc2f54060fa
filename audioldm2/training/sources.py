"""Opening data sets: what to train on, and what to validate on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audioldm2.errors import ArgumentError, some
from audioldm2.training.data import SILENT_CROP, Sounds
from audioldm2.training.folders import read_items
from audioldm2.training.randomness import rng
from audioldm2.training.sound_checks import Report, check_sounds, sift
from audioldm2.training.tables import TRAIN, VALIDATION, Columns, Item


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read. Every field has a flag of `audioldm2 train`; a run keeps them."""

    validation: str | None = None  # table, folder, or fraction of the sounds, such as "0.05"
    audio_column: str | None = None  # of tables; None: a usual name (tables.py)
    caption_column: str | None = None
    skip_bad: bool = False  # leave out sounds that cannot be used

    def columns(self) -> Columns:
        """Returns the names of the columns."""
        return Columns(self.audio_column, self.caption_column)


@dataclass(frozen=True)
class ClipSettings:
    """What clips are cut from the sounds; the fields are arguments of `Sounds`."""

    seconds: float
    sample_rate: int
    seed: int = 0
    pad: str = "silence"
    normalize: bool = False
    captioned: bool = True  # whether captions are required
    crops: int = 0
    workers: int = 1


def open_data(
    source: Path, clips: ClipSettings, options: DataOptions | None = None,
    report: Report = lambda line: None,
) -> Sounds:  # fmt: skip
    """Open the sounds to train on: read the tables, and decode every file once.

    Args:
        source: a folder, or a table.
        clips: the clips to cut.
        options: how the data set is read.
        report: called with lines of progress, and with every file that is left out.

    Raises:
        ValueError: a table or an option is unusable; or files are, and the options do not leave them out.
        OSError: from the system, unchanged.
    """
    options = options or DataOptions()
    items, _ = split(source, clips, options)
    return _opened(source, items, clips, options, report)


def open_validation(
    source: Path, clips: ClipSettings, options: DataOptions | None = None,
    report: Report = lambda line: None,
) -> Sounds | None:  # fmt: skip
    """Open the sounds to validate on; None where neither the options nor the data set have any.

    Arguments and errors are those of `open_data`.
    """
    options = options or DataOptions()
    _, items = split(source, clips, options)
    if not items:
        return None
    given = None if options.validation is None else _fraction(options.validation)
    where = source if options.validation is None or given is not None else Path(options.validation)
    return _opened(where, items, clips, options, report, "for validation ")


def split(source: Path, clips: ClipSettings, options: DataOptions) -> tuple[list[Item], list[Item]]:
    """Divide a data set into the sounds to train on and those to validate on.

    Raises:
        ValueError: a table or an option is unusable, or a sound would be in both.
    """
    items = read_items(source, options.columns(), clips.captioned)
    training = [item for item in items if item.split == TRAIN]
    validation = [item for item in items if item.split == VALIDATION]
    if options.validation is not None:
        fraction = _fraction(options.validation)
        if fraction is None:
            validation = read_items(Path(options.validation), options.columns(), clips.captioned)
        else:
            training, validation = _drawn(training, fraction, clips.seed)
    if not training:
        raise ValueError(f"{source} lists no sounds for training.")
    both = {item.file.resolve() for item in training} & {item.file.resolve() for item in validation}
    if both:
        names = some(sorted(file.name for file in both))
        raise ValueError(f"{source} has {names} for training and for validation; keep each in one of them.")
    return training, [replace(item, split=VALIDATION) for item in validation]


def _fraction(validation: str) -> float | None:
    """The fraction that --validation gives; None where it is a path."""
    try:
        fraction = float(validation)
    except ValueError:
        return None
    if not 0 < fraction < 1:
        allowed = "be a table, a folder, or a fraction above 0 and below 1"
        raise ArgumentError("validation", validation, allowed)
    return fraction


def _drawn(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """All but a fraction of the items, and this fraction, at least one; both in the order of the table."""
    if len(items) < 2:
        raise ValueError(f"a fraction for validation needs two sounds or more; there is {len(items)}.")
    count = min(max(1, round(fraction * len(items))), len(items) - 1)
    chosen = set(rng("validation", seed).permutation(len(items))[:count].tolist())
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )


def _opened(
    source: Path, items: Sequence[Item], clips: ClipSettings, options: DataOptions, report: Report,
    purpose: str = "",
) -> Sounds:  # fmt: skip
    checked = check_sounds([item.file for item in items], source, workers=clips.workers, report=report)
    reasons = {file: each.reason for file, each in checked.items() if each.reason}
    if clips.normalize:
        silent = {file for file, each in checked.items() if each.facts and each.facts.peak <= SILENT_CROP}
        reasons |= dict.fromkeys(sorted(silent), "is silent: its peak is below -80 dB")
    sift(reasons, len(checked), source, options.skip_bad, report)
    return Sounds(
        f"{purpose}{source}", [item for item in items if item.file not in reasons], checked, clips.seconds,
        clips.sample_rate, seed=clips.seed, pad=clips.pad, normalize=clips.normalize, crops=clips.crops,
        workers=clips.workers,
    )  # fmt: skip
