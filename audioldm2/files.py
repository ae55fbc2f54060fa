"""Files that appear whole or not at all, and names for them that every system accepts."""

import contextlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

# What Windows keeps for devices, alone or before any suffix, in either case; Linux and macOS keep none.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
# What at least one of the three systems refuses inside a name, or reads as part of a path.
RESERVED = '<>:"/\\|?*'
LONGEST_NAME = 240  # bytes; 255 is the limit of the file systems, and a number and a suffix come after


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends well, and vanishes otherwise.

    The temporary file is hidden, lies in the same folder and has the same suffix. A file that stood at `path`
    stays as it is until the last moment, and passes its permissions on; a link is followed. Whatever ends the
    block early, an interrupt too, removes the temporary file.
    Errors: OSError from the system, as it comes (no such folder, no permission, disk full, path is a folder).
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is not a file, and cannot be replaced by one")
    temporary = target.with_name(f".audioldm2-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # perhaps nothing was written; the first error is the one to tell
            temporary.unlink()
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, force: bool = False) -> Iterator[Path]:
    """An empty temporary folder beside `path`, which becomes `path` when the block ends well, else vanishes.

    Raises FileExistsError when `path` exists (at the end too, if another process made it meanwhile), unless
    `force`: then the old folder makes way at the very end, and is back if the new one cannot take its place.
    A link to a folder is followed. Other OSErrors come from the system as they are.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already")
    if path.exists() and not path.is_dir():
        raise OSError(f"{path} is not a folder, and cannot be replaced by one")
    temporary = path.with_name(f".audioldm2-{os.getpid()}-{secrets.token_hex(4)}")
    old = temporary.with_name(f"{temporary.name}-old")
    temporary.mkdir()
    try:
        yield temporary
        if force and path.exists():
            path.rename(old)
        _take_place(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _take_place(folder: Path, path: Path) -> None:
    """Rename a folder. What stands at `path` is a FileExistsError: the system may say something else."""
    try:
        if path.exists():
            raise FileExistsError
        folder.rename(path)
    except OSError as error:
        if not path.exists():
            raise
        raise FileExistsError(f"{path} exists already: another process wrote it meanwhile") from error


def safe_name(text: str, max_length: int = 80) -> str:
    """A file name without suffix for any text, valid on Linux, macOS and Windows.

    Spaces and what some system reserves become "_" (a run of them, one), invisible marks go, the ends lose
    dots, dashes and underscores, a device name gets "_" in front. A text that leaves nothing is "sound".
    max_length: in bytes of UTF-8, 1 to 240, so that a suffix still fits into the 255 of the file systems.
    Returns text in normal form C. The same text gives the same name, but two texts may share one.
    """
    if not 1 <= max_length <= LONGEST_NAME:
        raise ValueError(f"max_length is {max_length}; allowed are 1 to {LONGEST_NAME} bytes")
    text = unicodedata.normalize("NFC", text)
    # Format marks (Cf) can turn the writing direction of a name round, or make two names look the same.
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = "".join("_" if _is_refused(character) else character for character in text)
    text = unicodedata.normalize("NFC", re.sub("_+", "_", text))
    name = _cut(text.lstrip("._-"), max_length) or _cut("sound", max_length)
    return _cut(f"_{name}", max_length) if DEVICE_NAME.fullmatch(name) else name


def _is_refused(character: str) -> bool:
    # Control characters, halves of surrogate pairs, and code points without a character, which macOS refuses.
    unprintable = unicodedata.category(character) in ("Cc", "Cs", "Cn")
    return unprintable or character.isspace() or character in RESERVED


def _cut(text: str, max_length: int) -> str:
    """At most so many bytes, in whole characters, without an end that Windows drops or that joined words."""
    cut = text.encode("utf-8")[:max_length].decode("utf-8", errors="ignore")
    return cut.rstrip("._-") or cut.strip(".")
