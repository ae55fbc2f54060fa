"""Reads PyTorch's own files (.pth, .ckpt, .pt, .bin) without running code from them.

A file may hold objects, whose classes would run code when they are read. `objects_in` names them without
reading them, so that the error can say what is in the file.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.checkpoints.tensor_files import raise_if_download, read_safetensors
from audioldm2.errors import WeightsError, some

NO_TABLE = (
    "{} does not hold a plain table of tensors; it is another kind of file. "
    "Give a checkpoint in the diffusers layout, or an original one."
)
REWRITE = (  # for one who trusts the file; the same two lines stand in convert/README.md
    "python -c \"import torch; d = torch.load('{}', map_location='cpu', weights_only=False); "
    "torch.save(d.get('state_dict', d), 'plain.pth')\""
)
PLAIN_MODULES = {  # of which every file of tensors names classes
    *("torch", "torch._utils", "torch.storage", "torch._tensor", "torch.nn.parameter"),
    *("collections", "_codecs"),
}
LONGEST_SCAN = 50_000_000  # bytes of a pickle that are searched for classes


def is_table(content: object) -> bool:
    """Return whether something read from a file is a table of tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in content.items()
    )


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a PyTorch file (or a safetensors file): tensors and plain values, memory-mapped if possible.

    Raises:
        WeightsError: the file is damaged, holds objects, is something else, or holds tensors without data.
    """
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # one wrong byte leads an unpickler to KeyError, IndexError, struct.error, ...
        raise_if_download(path)
        # PyTorch before 2.6 wraps what the archive's reader says, which means a damaged file all the same.
        if isinstance(error, pickle.UnpicklingError) and "PytorchStreamReader" not in str(error):
            found = objects_in(path)
            if found:
                raise WeightsError(
                    f"{path} holds objects beside its tensors, of {some(found, 5)}; they would run code when "
                    f"read, which is refused. If you trust the file, run: {REWRITE.format(path)} and convert "
                    "'plain.pth'."
                ) from error
            raise WeightsError(
                f"{path} is not a plain file of tensors: it is damaged, or would run code when read, which "
                f"is refused{_reason(error)}. Use a safetensors file, or download it again."
            ) from error
        raise WeightsError(
            f"{path} is truncated or damaged ({_first_line(error)}). Copy or download it again."
        ) from error
    if not isinstance(state, dict) or not all(map(_has_its_data, _tensors(state))):
        raise WeightsError(NO_TABLE.format(path))
    return state


def objects_in(path: Path) -> list[str]:
    """Return the classes and functions that a file's pickle names besides those of plain tensors.

    Nothing is imported or run. Returns [] where the pickle cannot be read to its end.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                content = archive.read(name)[:LONGEST_SCAN]
        else:
            with open(path, "rb") as file:
                content = file.read(LONGEST_SCAN)
        names = set(_globals(content))
    except Exception:  # a damaged pickle fails in many ways; the caller reports the file
        return []
    return sorted(f"{module}.{name}" for module, name in names if module not in PLAIN_MODULES)


def _globals(content: bytes) -> Iterator[tuple[str, str]]:
    """Every (module, name) that the pickles in a file import, one after the other."""
    start = 0
    while start < len(content):
        texts: list[str] = []  # pushed so far: STACK_GLOBAL takes the last two
        memo: list[str] = []  # what was pushed when each entry was stored; "" for what is not a text
        pushed, end = "", start
        for opcode, argument, position in pickletools.genops(content[start:]):
            end = start + (position or 0) + 1
            if opcode.name == "MEMOIZE":
                memo.append(pushed)
                continue
            pushed = argument if isinstance(argument, str) and "UNICODE" in opcode.name else ""
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                yield module, name
            elif opcode.name == "STACK_GLOBAL":
                yield texts[-2], texts[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET") and int(argument or 0) < len(memo):
                pushed = memo[int(argument or 0)]
            texts += [pushed] if pushed else []
        start = end
        if content[start : start + 1] != b"\x80":  # in old files, four pickles precede the tensors' bytes
            return


def _can_be_mapped(path: Path) -> bool:
    """Whether the tensors' bytes stand in the file uncompressed; not before PyTorch 1.6, or if repacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # no archive, or a damaged one
        return False


def _tensors(content: object) -> Iterator[Tensor]:
    """Every tensor in nested tables."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value)


def _has_its_data(tensor: Tensor) -> bool:
    return (tensor.layout, tensor.device.type) == (torch.strided, "cpu")


def _reason(error: Exception) -> str:
    """The line of PyTorch's long message that says what was found."""
    for line in str(error).splitlines():
        _, marker, reason = line.partition("WeightsUnpickler error:")
        if marker:
            return f" ({reason.strip()})"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
