"""Sound files that a command is given: folders are searched, and what cannot be read is named, not fatal."""

from collections.abc import Callable, Sequence
from pathlib import Path

from audioldm2.audio import find_sounds
from audioldm2.cli.failures import is_out_of_memory


def expand(paths: Sequence[Path], report: Callable[[str], object]) -> list[Path]:
    """The files among some paths, and every sound in the folders among them, each once.

    Reports how many files of a folder are passed over. Raises ValueError for a folder without sounds.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        sounds, skipped = find_sounds(path)
        if not sounds:
            raise ValueError(f"{path} holds no sound files.")
        if skipped:
            kinds = sorted({file.suffix.lower() or "no suffix" for file in skipped})
            report(f"note: {path}: passed over {_count(len(skipped), 'file')} ({', '.join(kinds)})")
        found += sounds
    return list(dict.fromkeys(found))


def why_skipped(file: Path, error: Exception) -> str | None:
    """Why one file is left out where others go on; None for an error that is not the file's."""
    if is_out_of_memory(error):
        return f"{file} does not fit into memory"
    if isinstance(error, OSError):
        return f"{file}: {error.strerror or error}"
    return str(error) if isinstance(error, ValueError) else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
