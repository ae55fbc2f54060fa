"""Every sound is decoded once before training, so that no bad file ends a run after hours.

What is found is kept in the user's cache folder, by path, size and time of change: a second run on the same
sounds starts at once. The data's own folder is only read.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile

from audioldm2.audio import SoundFacts, examine
from audioldm2.errors import ArgumentError
from audioldm2.files import atomic_write

Report = Callable[[str], object]
PROGRESS_SECONDS = 5.0  # between two lines of progress
KEEP_SECONDS = 60.0  # between two savings of what was found
SHOWN = 3  # bad files that an error names
_FORMAT = f"1, libsndfile {soundfile.__libsndfile_version__}"  # of the cache file


@dataclass(frozen=True)
class Checked:
    """A file as it was when it was checked: its facts, or why it cannot be used."""

    size: int  # bytes
    changed: int  # time of the last change, ns
    facts: SoundFacts | None
    reason: str = ""

    def is_current(self, file: Path) -> bool:
        """Whether the file still has its size and time."""
        try:
            return signature(file) == (self.size, self.changed)
        except OSError:
            return False


def signature(file: Path) -> tuple[int, int]:
    """The size of a file in bytes and the time of its last change in ns."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def check_sounds(
    files: Iterable[Path], source: Path, *, workers: int = 1, report: Report = lambda line: None
) -> dict[Path, Checked]:
    """Decode and measure sound files that have changed since they were last checked.

    Args:
        files: the sounds.
        source: the folder or table that lists them, which names the cache file.
        workers: threads; decoding does not hold Python's lock.
        report: called with lines of progress.
    """
    kept = _Kept(source, report)
    checked: dict[Path, Checked] = {}
    waiting: list[Path] = []
    for file in dict.fromkeys(files):
        known = kept.found.get(os.path.abspath(file))
        if known is not None and known.is_current(file):
            checked[file] = known
        else:
            waiting.append(file)
    started = last = time.monotonic()
    with ThreadPoolExecutor(workers) as executor:
        futures = {executor.submit(check, file): file for file in waiting}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                file = futures[future]
                checked[file] = kept.found[os.path.abspath(file)] = future.result()
                now = time.monotonic()
                if now - last > PROGRESS_SECONDS:
                    last, left = now, (now - started) / count * (len(waiting) - count)
                    report(f"checked {count}/{len(waiting)} sounds, {left:.0f} s left")
                    kept.save(every=KEEP_SECONDS)
        finally:  # after Ctrl-C too
            executor.shutdown(wait=False, cancel_futures=True)
            if waiting:
                kept.save()
    return checked


def check(file: Path) -> Checked:
    """Decode one file completely. What the system refuses has no signature, because it may change."""
    try:
        size, changed = signature(file)
        try:
            return Checked(size, changed, examine(file))
        except ArgumentError as error:
            return Checked(size, changed, None, error.given)
    except FileNotFoundError:
        return Checked(-1, -1, None, "cannot be found")
    except OSError as error:
        return Checked(-1, -1, None, f"cannot be read ({error.strerror or error})")


def sift(reasons: dict[Path, str], total: int, source: Path, skip: bool, report: Report) -> None:
    """Refuse bad files, or report each of them once where they are left out.

    Args:
        reasons: why a file is bad, by file.
        total: number of all files.
        source: the folder or table that lists them.
        skip: leave them out.
        report: called with a line for each bad file.

    Raises:
        ValueError: there are bad files, and `skip` is False; or nothing but bad files.
    """
    if not reasons:
        return
    names = [f"{_shown(file, source)} {reason}" for file, reason in reasons.items()]
    count = f"{len(reasons)} of {total} sounds of {source} cannot be used"
    if not skip or len(reasons) == total:
        more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        advice = "" if len(reasons) == total else " Mend or remove them, or leave them out with --skip-bad."
        raise ValueError(f"{count}: {'; '.join(names[:SHOWN])}{more}.{advice}")
    report(f"{count} and are left out:")
    for name in names:
        report(f"  {name}")


def _shown(file: Path, source: Path) -> str:
    folder = source if source.is_dir() else source.parent
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


# What is kept -----------------------------------------------------------------------------------------------


class _Kept:
    """The cache file of a source: what was found out about each of its files."""

    def __init__(self, source: Path, report: Report) -> None:
        digest = hashlib.blake2s(str(source.resolve()).encode("utf-8", "surrogateescape"), digest_size=8)
        self.path = cache_folder() / "sounds" / f"{digest.hexdigest()}.json"
        self.report, self.saved = report, time.monotonic()
        self.found: dict[str, Checked] = {}
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            if entries["format"] == _FORMAT:
                self.found = {file: _checked(entry) for file, entry in entries["sounds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.found = {}  # no cache file yet, or a damaged one: everything is checked again

    def save(self, every: float = 0.0) -> None:
        """Writes the file if the last time is long enough ago."""
        if time.monotonic() - self.saved < every:
            return
        sounds = {file: asdict(checked) for file, checked in self.found.items() if checked.size >= 0}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as draft:
                draft.write_text(json.dumps({"format": _FORMAT, "sounds": sounds}), encoding="utf-8")
        except OSError as error:
            self.report(
                f"note: {self.path} could not be written ({error}); the next run checks all sounds again"
            )
        self.saved = time.monotonic()


def _checked(entry: dict[str, Any]) -> Checked:
    facts = entry["facts"]
    return Checked(**(entry | {"facts": None if facts is None else SoundFacts(**facts)}))


def cache_folder() -> Path:
    """The folder for what can be computed again: XDG_CACHE_HOME if set, or the system's usual place."""
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    if not base:
        home = os.path.expanduser("~")
        base = os.path.join(home, "Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(base) / "audioldm2"
