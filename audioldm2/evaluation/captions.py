"""Captioned folders of sounds: this package's tables, and AudioCaps as it is published.

AudioCaps (Kim et al. 2019) has a CSV with the columns audiocap_id, youtube_id, start_time and caption; in
validation and test a clip has five rows. Its sounds are downloaded from YouTube by whoever uses it, so they
are named in several ways, and some are gone.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audioldm2.audio import find_sounds
from audioldm2.errors import some
from audioldm2.training.data import TABLES, list_items

AUDIOCAPS = {"youtube_id", "caption"}  # the columns by which its tables are known


@dataclass(frozen=True)
class Captioned:
    """A sound file and its captions, of which there may be none."""

    file: Path
    captions: tuple[str, ...] = ()


def list_captioned(source: Path, report: Callable[[str], object]) -> list[Captioned]:
    """List the sounds of a folder with their captions, each file once.

    Args:
        source: a folder of sounds, which may hold one table; or a table in the folder of its sounds.
        report: called with a sentence about what is left out.

    Raises:
        ValueError: there are no sounds, or the table cannot be used.
    """
    table = _table_of(source)
    if table is None:
        sounds, skipped = find_sounds(source)
        if not sounds:
            raise ValueError(f"{source} holds no sound files.")
        if skipped:
            kinds = sorted({file.suffix.lower() or "no suffix" for file in skipped})
            files = f"{len(skipped)} file{'' if len(skipped) == 1 else 's'}"
            report(f"note: {source}: passed over {files} ({', '.join(kinds)})")
        return [Captioned(file) for file in sounds]
    rows = _audiocaps_rows(table, report)
    if rows is None:
        if source.is_file():
            raise ValueError(
                f"{source} is not a table of AudioCaps (columns youtube_id and caption); give the folder "
                "that holds it and its sounds."
            )
        rows = [(item.file, item.caption) for item in list_items(source)]
    found: dict[Path, list[str]] = {}
    for file, caption in rows:
        found.setdefault(file, []).append(caption)
    return [Captioned(file, tuple(dict.fromkeys(captions))) for file, captions in found.items()]


def _table_of(source: Path) -> Path | None:
    """The table of a folder, or the source itself where it is one; None for a folder without a table."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder of sounds.")
    tables = sorted(
        file for file in source.iterdir() if file.suffix.lower() in TABLES and not file.name.startswith(".")
    )
    if len(tables) > 1:
        names = some([table.name for table in tables])
        raise ValueError(f"{source} holds {names}; name one of them, or keep only one table.")
    return tables[0] if tables else None


def _audiocaps_rows(table: Path, report: Callable[[str], object]) -> list[tuple[Path, str]] | None:
    """The (sound, caption) rows of a table of AudioCaps; None where the table is another."""
    if table.suffix.lower() != ".csv":
        return None
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if not set(reader.fieldnames or ()) >= AUDIOCAPS:
                return None
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read as a table in UTF-8: {error}.") from error
    by_name = {file.stem: file for file in find_sounds(table.parent)[0]}
    found, missing = [], []
    for line, row in enumerate(rows, start=2):
        youtube, caption = (row["youtube_id"] or "").strip(), (row["caption"] or "").strip()
        if not youtube or not caption:
            raise ValueError(f"{table}, row {line}: 'youtube_id' and 'caption' have to be non-empty texts.")
        file = next((by_name[name] for name in _names(row) if name in by_name), None)
        if file is None:
            missing.append(youtube)
        else:
            found.append((file, caption))
    if not found:
        raise ValueError(f"{table}: none of its {len(rows)} sounds lies in {table.parent}.")
    if missing:
        gone = list(dict.fromkeys(missing))
        report(f"note: {table}: {len(gone)} of its clips are not there ({some(gone)})")
    return found


def _names(row: dict[str, str]) -> list[str]:
    """The file names, without suffix, that downloaders give to a clip."""
    youtube, start = row["youtube_id"].strip(), (row.get("start_time") or "").strip()
    clip = (row.get("audiocap_id") or "").strip()
    return [
        *(name for name in (youtube, f"Y{youtube}", f"{youtube}_{start}", f"Y{youtube}_{start}")),
        *([clip] if clip else []),
    ]
