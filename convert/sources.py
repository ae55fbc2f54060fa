"""Reads the files of a source: configs, and weights in one of many forms. No file ever runs code."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.checkpoints.hub import choose_weights
from audioldm2.checkpoints.tensor_files import read_json, read_safetensors, require_fit
from audioldm2.errors import WeightsError, some

from . import keymap
from .keymap import Move
from .pickles import NO_TABLE, is_table, read_torch_file

WRAPPERS = {  # path components that wrappers of modules add, anywhere in a key
    "_orig_mod",  # torch.compile
    "module",  # DataParallel and DistributedDataParallel
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
Opened = tuple[Mapping[str, Tensor], list[Move]]  # a source's tensors, and where each goes
State = dict[str, Tensor]


def unchanged(state: State, config: Any) -> State:
    """Return the tensors as they are: the `finish` of networks that need none."""
    return state


@dataclass(frozen=True)
class Reading:
    """One of our networks in a source. Called, it returns the tensors under our keys, checked.

    `open` and `finish` are module-level functions or partials of one, so that a model can be pickled.
    """

    name: str
    config: Any
    where: str  # the file or folder
    open: Callable[[], Opened]
    finish: Callable[[State, Any], State] = unchanged  # after the rows: adds what the source does not store

    def __call__(self) -> State:
        state, moves = self.open()
        converted = self.finish(keymap.convert(state, moves), self.config)
        require_fit(converted, self.name, self.config, self.where)
        return converted


def is_diffusers_layout(folder: Path) -> bool:
    """Return whether a folder claims to be in the diffusers layout."""
    return (folder / "model_index.json").is_file()


def read_config(folder: Path, network: str) -> dict[str, Any]:
    """Read the config.json of one network's folder."""
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is missing: the checkpoint has no '{network}'. "
            "Download it again; a whole checkpoint has every folder that its model_index.json names."
        )
    return read_json(folder / "config.json")


def read_state(folder: Path, prefer_half: bool = False) -> State:
    """Read every tensor in a network's folder, memory-mapped: one format, one precision, all shards."""
    names = choose_weights([path.name for path in folder.iterdir()], prefer_half)
    if not names:
        raise WeightsError(
            f"{folder} has no weights; expected a file such as 'model.safetensors' or "
            "'diffusion_pytorch_model.safetensors' (or the same as .bin). Download the checkpoint again."
        )
    _require_every_shard(folder, names)
    state: State = {}
    for name in names:
        path = folder / name
        part = read_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)
        twice = sorted(state.keys() & part.keys())
        if twice:
            raise WeightsError(
                f"{path} repeats {some(twice)} from another shard. Download the checkpoint again."
            )
        state |= part
    return unwrapped(state, str(folder))


def read_bin(path: Path) -> State:
    """Read a PyTorch file that is one table of tensors, memory-mapped where the file allows it."""
    state = read_torch_file(path)
    if not is_table(state):
        raise WeightsError(NO_TABLE.format(path))
    return {key: tensor.detach() for key, tensor in state.items()}


def unwrapped(state: Mapping[str, Tensor], where: str) -> State:
    """Return the tensors under keys without the path components of WRAPPERS.

    Raises:
        WeightsError: two tensors get the same key.
    """
    plain: State = {}
    for key, tensor in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise WeightsError(
                f"{where} holds '{name}' twice, once with and once without {some(sorted(WRAPPERS), 4)} in "
                "its key. Remove the wrong one."
            )
        plain[name] = tensor
    return plain


def _require_every_shard(folder: Path, names: list[str]) -> None:
    count = re.search(r"-of-(\d+)", names[0])
    if count and int(count[1]) != len(names):
        raise WeightsError(
            f"{folder} has {len(names)} of {int(count[1])} shards ({some(names)}). Download the missing ones."
        )
