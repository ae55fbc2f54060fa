"""Single files of a checkpoint, JSON and safetensors: read strictly, and called what they are."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioldm2.errors import WeightsError, some
from audioldm2.models import expected_shapes
from audioldm2.runtime.dtypes import DTYPES

POINTER = b"version https://git-lfs.github.com/spec/"  # how every Git LFS pointer begins
PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)  # how HTML and XML begin
LONGEST_ANSWER = 2_000  # bytes; an error that a server sent in place of a file is a line or two


def read_json(path: Path) -> dict:
    """Return the object in a JSON file; WeightsError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; the checkpoint is not complete.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise_if_download(path, may_be_text=True)
        raise WeightsError(f"{path} cannot be read as JSON ({error}). Copy or download it again.") from error
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path} holds a {type(found).__name__}, not an object. Copy or download it again."
        )
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file, as views of its memory-mapped bytes; WeightsError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; the checkpoint is not complete.") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise_if_download(path)
        raise WeightsError(
            f"{path} is truncated or damaged ({error}). Copy, download or convert it again."
        ) from error


def raise_if_download(path: Path, *, may_be_text: bool = False) -> None:
    """Raise WeightsError if an unreadable file is what a download left in its place; else do nothing.

    These are a Git LFS pointer (a clone without LFS), a web page (a link to the page about the file), and the
    line of text with which a server refuses. The last is not reported with `may_be_text`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(LONGEST_ANSWER + 1)
    except OSError:
        return
    again = "Download the file itself, for example with 'hf download OWNER/NAME FILE --local-dir FOLDER'."
    if start.startswith(POINTER):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the file that it stands for. "
            "Run 'git lfs install' and 'git lfs pull' in that clone, or download the file with 'hf download'."
        )
    if PAGE.match(start):
        raise WeightsError(f"{path} is a web page (HTML or XML), not a file of a checkpoint. {again}")
    text = start.decode("ascii", errors="replace").strip()
    if not may_be_text and len(start) <= LONGEST_ANSWER and text and _is_plain(text):
        raise WeightsError(f"{path} holds text ({text.splitlines()[0]!r:.80}), not tensors. {again}")


def _is_plain(text: str) -> bool:
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def save_safetensors(state: Mapping[str, Tensor], path: Path, where: Path, **metadata: str) -> None:
    """Write a safetensors file with the permissions of any other new file.

    Args:
        state: the tensors.
        path: the file.
        where: the folder that the user asked for, which errors name; `path` lies in a draft of it.
        **metadata: entries for the file's header.

    Raises:
        OSError: the disk refuses, for example because it is full.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(state), path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:  # its name for what the system refuses
        raise OSError(f"{where} cannot be written: {error}") from error
    path.chmod(mode)  # safetensors makes its files private


@contextmanager
def naming_folder(where: Path) -> Iterator[None]:
    """Make an OSError from the system, such as a full disk, name the folder that the user asked for."""
    try:
        yield
    except OSError as error:
        if str(where) in str(error):
            raise
        raise OSError(f"{where} cannot be written: {error}") from error


def shapes_of(name: str, config: Any, where: str) -> dict[str, torch.Size]:
    """Return the keys and shapes of a network; WeightsError if its sizes exceed what a tensor can have."""
    try:
        return expected_shapes(name, config)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise WeightsError(
            f"'{name}' in {where} describes a network too large to exist ({reason}). "
            "Does the config belong to this checkpoint?"
        ) from error


def require_fit(state: Mapping[str, Tensor], name: str, config: Any, where: str) -> None:
    """Check that these are the tensors of network `name`: keys, shapes, floating dtypes.

    Args:
        state: the tensors, by our keys.
        name: the network.
        config: its config.
        where: the file or folder that the tensors come from.

    Raises:
        WeightsError: they are not; it names the first few keys.
    """
    expected = shapes_of(name, config, where)
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    misshapen = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(expected[key])}"
        for key in expected
        if key in state and state[key].shape != expected[key]
    ]
    mistyped = [
        f"{key} is {tensor.dtype}"
        for key, tensor in state.items()
        if key in expected and tensor.dtype not in (*DTYPES.values(), torch.float64)
    ]
    problems = [
        f"{words} {some(keys)}"
        for words, keys in (
            ("missing", missing),
            ("not expected", extra),
            ("of the wrong shape", misshapen),
            ("not floating-point", mistyped),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{where} does not fit its configuration: {'; '.join(problems)}. "
            "Copy or download it again, or convert the source again with 'audioldm2 convert'."
        )
