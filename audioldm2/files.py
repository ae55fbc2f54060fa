"""Atomic writes of files and folders, file names that every system accepts, and failed downloads."""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from audioldm2.errors import require_whole

# Windows reserves these names, alone or before a suffix, in either case. Linux and macOS reserve none.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
# At least one of the three systems forbids these in a name or treats them as part of a path.
RESERVED = '<>:"/\\|?*'
LONGEST_NAME = 240  # bytes; file systems allow 255, and a number and a suffix are appended
_DIGEST = 8  # hex digits
DRAFT = re.compile(r"\.audioldm2-(\d+)-[0-9a-f]+.*")  # how the temporary files and folders below are named
# What PyTorch, which raises a plain RuntimeError, and safetensors say when the system refuses a write.
NOT_WRITTEN = ("PytorchStreamWriter failed", "file write failed", "unexpected pos", "No space left on device")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` when the block succeeds, delete it when the block raises.

    The temporary file is hidden and has the folder and the suffix of `path`. Until the final rename the old
    file stays untouched; the new one inherits its permissions. Symbolic links are followed. Interrupts count
    as exceptions: they too delete the temporary file.

    Args:
        path: the file to write.
        durable: wait until the new file is on the disk, so that not even a power failure loses both.

    Raises:
        OSError: from the system, unchanged: no such folder, no permission, disk full, `path` is a folder.
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
        if durable:
            flush_to_disk(temporary)
        os.replace(temporary, target)
        if durable:
            flush_to_disk(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the block may have written nothing; keep the first error
            temporary.unlink()
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, force: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder; rename it to `path` when the block succeeds, delete it when it raises.

    No system swaps two folders in one step, so `force` takes two renames: `path` moves aside, then the new
    folder takes its name. If the second rename fails, the old folder returns. If the process is killed
    between the two, both folders survive under hidden names beside `path`; the next `atomic_folder` for
    `path`, or a call of `recover_folder`, finishes the replacement. Symbolic links are followed.

    Args:
        path:  the folder to write.
        force: replace a folder that exists.
        durable: wait until the new folder is on the disk, so that not even a power failure loses both.

    Raises:
        FileExistsError: `path` exists and `force` is False; it is or contains the current folder; or another
            process created it during the block.
        OSError: from the system, unchanged.
    """
    recover_folder(path)
    path = Path(os.path.realpath(path))
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already")
    if path.exists() and not path.is_dir():
        raise OSError(f"{path} is not a folder, and cannot be replaced by one")
    if path.exists() and Path.cwd().is_relative_to(path):  # such as "", the name that a variable lacks
        raise FileExistsError(f"{path} is or contains the current folder, which nothing replaces")
    temporary = path.with_name(f".audioldm2-{os.getpid()}-{_draft_tag(path)}-{secrets.token_hex(4)}")
    old = temporary.with_name(f"{temporary.name}-old")
    temporary.mkdir()
    try:
        yield temporary
        if durable:
            for each in (*temporary.rglob("*"), temporary):
                flush_to_disk(each)
        if force and path.exists():
            path.rename(old)
        _take_place(temporary, path)
        if durable:
            flush_to_disk(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        if path.exists() or not old.exists():  # otherwise neither rename succeeded: `recover_folder` finishes
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: str | os.PathLike, *, sole_owner: bool = False) -> bool:
    """Finish what a killed `atomic_folder(path, force=True)` began, and delete its leftovers.

    A draft is complete exactly if the old folder has already moved aside. So:

        path missing, old and draft present   the draft becomes `path`, the old folder is deleted
        path missing, only old present        the old folder becomes `path` again
        anything else                         leftovers are deleted; `path` stays as it is

    Folders of processes that still run, or that ran on another machine, stay untouched. The names of drafts
    carry the process id and a tag of machine and target, so a draft of another target is safe too.

    Args:
        path: the folder that was to be written.
        sole_owner: nobody else writes into the parent of `path`, and nobody wrote another folder there, so
            that every draft in it is a leftover, whatever machine or container it comes from.

    Returns:
        True if `path` was missing and exists now.

    Raises:
        OSError: from the system, unchanged, when the rename fails.
    """
    path = Path(os.path.realpath(path))
    tag = "[0-9a-f]+" if sole_owner else _draft_tag(path)
    name = re.compile(rf"\.audioldm2-(\d+)-{tag}-[0-9a-f]+(?:-old)?")
    try:
        siblings = sorted(os.listdir(path.parent))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False  # the caller's own access to `path` reports it better
    found = [(path.with_name(each), name.fullmatch(each)) for each in siblings]
    leftovers = [
        folder for folder, match in found if match and (sole_owner or not _is_running(int(match[1])))
    ]
    recovered = False
    for old in leftovers:
        if old.name.endswith("-old") and not path.exists():
            draft = old.with_name(old.name.removesuffix("-old"))
            try:
                (draft if draft.exists() else old).rename(path)
                recovered = True
            except OSError:
                if not path.exists():  # if it exists, another process recovered it meanwhile
                    raise
    if path.exists() or not any(folder.name.endswith("-old") for folder in leftovers):
        for folder in leftovers:
            shutil.rmtree(folder, ignore_errors=True)
    return recovered


def remove_drafts(folder: Path, *, sole_owner: bool = False, only_files: bool = False) -> list[int]:
    """Delete the drafts of files and folders that killed processes left in `folder`.

    Call `recover_folder` first where a folder may be missing: its draft may be all that is left of it.

    Args:
        folder: where to look; not in its sub-folders.
        sole_owner: nobody else writes there. Otherwise, drafts of processes that run on this machine stay.
        only_files: drafts of folders stay, among which an old folder may be that `recover_folder` returns.

    Returns:
        The size of each in bytes.
    """
    sizes = []
    for draft in sorted(folder.iterdir()):
        match = DRAFT.fullmatch(draft.name)
        if not match or (not sole_owner and _is_running(int(match[1]))):
            continue
        if only_files and draft.is_dir():
            continue
        files = draft.rglob("*") if draft.is_dir() else [draft]
        sizes.append(sum(file.stat().st_size for file in files if file.is_file()))
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()
    return sizes


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if sys.platform == "win32":  # which opens no folders, and flushes files only if they are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_refused_write(error: BaseException) -> bool:
    """Whether an error that was raised while writing says that the system refused, as with a full disk."""
    return isinstance(error, OSError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NOT_WRITTEN)
    )


def _draft_tag(path: Path) -> str:
    """The same for every draft of one folder on one machine: process ids mean nothing on another."""
    return _digest(f"{platform.node()}\0{path.name}")


def _is_running(pid: int) -> bool:
    """Whether a process of this machine runs; True in doubt."""
    if sys.platform == "win32":  # os.kill(pid, 0) would end the process there
        import ctypes

        query, still_active = 0x1000, 259
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = kernel.OpenProcess(query, False, pid)
        if not handle:
            return ctypes.get_last_error() != 87  # ERROR_INVALID_PARAMETER: no process has this id
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
        kernel.CloseHandle(ctypes.c_void_p(handle))
        return not known or code.value == still_active
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _take_place(folder: Path, path: Path) -> None:
    """Rename a folder; raise FileExistsError if `path` exists, whatever error the system reports for that."""
    try:
        if path.exists():
            raise FileExistsError
        folder.rename(path)
    except OSError as error:
        if not path.exists():
            raise
        raise FileExistsError(f"{path} exists already: another process wrote it meanwhile") from error


def failed_download(path: str | os.PathLike) -> tuple[str, str] | None:
    """Recognise what often lies where a binary file should: an empty file, a Git LFS pointer, a web page.

    Returns:
        (what it is, what to do), which complete "PATH is ..." and "it has to ...", or None for other files.

    Raises:
        OSError: from the system, unchanged.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file", "be downloaded or copied again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself", "be fetched: run `git lfs pull` in its repository"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page", "be downloaded from a direct link (on the Hugging Face hub: resolve/, not blob/)"
    return None


def safe_name(text: str, max_length: int = 80) -> str:
    """Turn any text into a file name without suffix that is valid on Linux, macOS and Windows.

    White space and reserved characters become "_" (a run of them, one); invisible marks disappear; dots,
    dashes and underscores at the ends disappear; device names such as "con" get a leading "_". A text with
    nothing left becomes "sound". A name that has to be cut ends in "-" and 8 hex digits, a hash of the whole
    text, so that two prompts with the same beginning get different names.

    Args:
        text:       any text, such as a prompt.
        max_length: bytes of UTF-8, 1 to 240, which leaves room for a suffix within 255. Below 10 bytes, a
                    name that has to be cut is the hash alone.

    Returns:
        The name in Unicode normal form C. It depends on the text alone. Names that were not cut may
        coincide: "a dog" and "a dog?".

    Raises:
        ArgumentError: `max_length` is out of range.
    """
    max_length = require_whole("max_length", max_length, 1, LONGEST_NAME)
    text = unicodedata.normalize("NFC", text)
    # Format marks (Cf) can reverse the writing direction of a name, or make two names look the same.
    name = "".join(character for character in text if unicodedata.category(character) != "Cf")
    name = "".join("_" if _is_refused(character) else character for character in name)
    name = unicodedata.normalize("NFC", re.sub("_+", "_", name)).strip("._-") or "sound"
    if DEVICE_NAME.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) <= max_length:
        return name
    digest, room = _digest(text), max_length - _DIGEST - 1
    head = name.lstrip("_").encode()[: max(room, 0)].decode(errors="ignore").rstrip("._-")
    if not head:
        return digest[:max_length]
    if DEVICE_NAME.fullmatch(f"{head}-{digest}"):  # "con.txt": without its dot it is an ordinary name
        head = re.sub(r"\.[._-]*", "_", head, count=1)
    return f"{head}-{digest}"


def _digest(text: str) -> str:
    return hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST // 2).hexdigest()


def _is_refused(character: str) -> bool:
    # Control characters, halves of surrogate pairs, and unassigned code points, which macOS refuses.
    unprintable = unicodedata.category(character) in ("Cc", "Cs", "Cn")
    return unprintable or character.isspace() or character in RESERVED
