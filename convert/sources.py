"""Reading the files of a source: configs, and weights in one of many forms; never running code from one."""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.checkpoints.hub import choose_weights
from audioldm2.checkpoints.storage import demand_fit, read_json, read_safetensors
from audioldm2.errors import WeightsError, some

from . import keymap
from .keymap import Move

NO_TABLE = (
    "{} does not hold a plain table of tensors; it is another kind of file. "
    "Give a checkpoint in the diffusers layout, or an original one."
)
Opened = tuple[Mapping[str, Tensor], list[Move]]  # a source's tensors, and where each goes


@dataclass(frozen=True)
class Reading:
    """One of our networks in a source. Called, it gives the tensors under our keys, checked."""

    name: str
    config: Any
    where: str  # the file or folder
    open: Callable[[], Opened]
    finish: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] = lambda state, config: state

    def __call__(self) -> dict[str, Tensor]:
        state, moves = self.open()
        converted = self.finish(keymap.convert(state, moves), self.config)
        demand_fit(converted, self.name, self.config, self.where)
        return converted


def is_diffusers_layout(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def read_config(folder: Path, network: str) -> dict[str, Any]:
    """The config.json of one network's folder."""
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is missing: the checkpoint has no '{network}'. "
            "Download it again; a whole checkpoint has every folder that its model_index.json names."
        )
    return read_json(folder / "config.json")


def read_state(folder: Path, prefer_half: bool = False) -> dict[str, Tensor]:
    """Every tensor in a network's folder, memory-mapped: one format, one precision, all shards."""
    names = choose_weights([path.name for path in folder.iterdir()], prefer_half)
    if not names:
        raise WeightsError(
            f"{folder} has no weights; expected a file such as 'model.safetensors' or "
            "'diffusion_pytorch_model.safetensors' (or the same as .bin). Download the checkpoint again."
        )
    _demand_every_shard(folder, names)
    state: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        part = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
        twice = sorted(state.keys() & part.keys())
        if twice:
            raise WeightsError(
                f"{path} repeats {some(twice)} from another shard. Download the checkpoint again."
            )
        state |= part
    return state


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, never running code from it; memory-mapped where the file allows it."""
    state = read_file(path)
    if not is_table(state):
        raise WeightsError(NO_TABLE.format(path))
    return {key: tensor.detach() for key, tensor in state.items()}


def is_table(content: object) -> bool:
    """Whether something out of a file is a table of tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in content.items()
    )


def read_file(path: Path) -> dict[str, Any]:
    """What a PyTorch file (or a safetensors file) holds, tensors and plain values, never running code."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # one wrong byte leads an unpickler to KeyError, IndexError, struct.error, ...
        # Older versions wrap what the archive's reader says; it is a damaged file all the same.
        if isinstance(error, pickle.UnpicklingError) and "PytorchStreamReader" not in str(error):
            raise WeightsError(
                f"{path} is not a plain file of tensors: it is damaged, or holds objects that would run code "
                f"when read, which is refused{_reason(error)}. Use a safetensors file."
            ) from error
        raise WeightsError(
            f"{path} is truncated or damaged ({_first_line(error)}). Copy or download it again."
        ) from error
    if not isinstance(state, dict) or not all(map(_has_its_data, _tensors(state))):
        raise WeightsError(NO_TABLE.format(path))
    return state


def _can_be_mapped(path: Path) -> bool:
    """Whether the bytes of a file's tensors stand in it as they are: not in a packed archive, nor in one from
    before PyTorch 1.6."""
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
    """Of the page that PyTorch writes, the line that says what was found."""
    for line in str(error).splitlines():
        _, marker, reason = line.partition("WeightsUnpickler error:")
        if marker:
            return f" ({reason.strip()})"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _demand_every_shard(folder: Path, names: list[str]) -> None:
    count = re.search(r"-of-(\d+)", names[0])
    if count and int(count[1]) != len(names):
        raise WeightsError(
            f"{folder} has {len(names)} of {int(count[1])} shards ({some(names)}). Download the missing ones."
        )
