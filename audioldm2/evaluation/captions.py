"""Captioned folders of sounds: every table that training reads, AudioCaps as it is published among them.

The sounds of AudioCaps (Kim et al. 2019) are downloaded from YouTube by whoever uses it, so some are gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audioldm2.audio import find_sounds
from audioldm2.errors import some
from audioldm2.training.folders import read_items, tables_in


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
    tables = tables_in(source) if source.is_dir() else []
    if len(tables) > 1:
        names = some([table.name for table in tables])
        raise ValueError(f"{source} holds {names}; name one of them, or keep only one table.")
    if source.is_dir() and not tables:
        sounds, skipped = find_sounds(source)
        if not sounds:
            raise ValueError(f"{source} holds no sound files.")
        if skipped:
            kinds = sorted({file.suffix.lower() or "no suffix" for file in skipped})
            files = f"{len(skipped)} file{'' if len(skipped) == 1 else 's'}"
            report(f"note: {source}: passed over {files} ({', '.join(kinds)})")
        return [Captioned(file) for file in sounds]
    items = read_items(source)
    found = [
        Captioned(item.file, tuple(dict.fromkeys(item.captions))) for item in items if item.file.is_file()
    ]
    gone = [item.file.name for item in items if not item.file.is_file()]
    if not found:
        raise ValueError(f"{source}: none of the {len(items)} sounds of its table can be found.")
    if gone:
        report(f"note: {source}: {len(gone)} of its sounds cannot be found ({some(gone)})")
    return found
