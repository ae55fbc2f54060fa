"""Writes adapters in PEFT's layout, and names the model that they belong to by a hash."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.lora import NETWORKS, LowRank
from audioldm2.adapters.names import PEFT, Place, folder_of, places
from audioldm2.adapters.reading import CONFIG, WEIGHTS
from audioldm2.checkpoints.tensor_files import naming_folder, save_safetensors
from audioldm2.errors import WeightsError
from audioldm2.files import atomic_folder

PUBLISHED_LICENSE = "cc-by-nc-sa-4.0"  # of the published weights; an adapter of theirs is an adaptation


def license_of(origin: str) -> str:
    """The licence of an adapter that was trained on a model with this origin."""
    return PUBLISHED_LICENSE if origin.startswith(("cvssp/", "haoheliu/")) else "that of the base model"


def hash_of(states: Mapping[str, Callable[[], Mapping[str, Tensor]]], names: Iterable[str]) -> str:
    """SHA-256 of the weights of some networks: their keys, dtypes, shapes and bytes, by our keys in order.

    Args:
        states: of a checkpoint.
        names: of networks.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        for key, tensor in sorted(states[name]().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_replaceable(folder: Path, *files: str) -> None:
    """Raise FileExistsError if a folder holds something, but none of these files."""
    is_ours = any((folder / file).is_file() for file in files)
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise FileExistsError(f"{folder} holds no {files[0]}, and a folder of anything else is not replaced")


def write(
    adapter: Adapter,
    folder: Path,
    configs: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    durable: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter as a PEFT folder, whole or not at all.

    The UNet's adapter lies in the folder, those of other networks in sub-folders. Its `metadata` goes into
    each file. Its weight does not: that is a choice of whoever loads it.

    Args:
        adapter: what to write.
        folder: where to.
        configs: of the model's networks.
        dtype: of the matrices. float16 takes half the space.
        force: replace the folder if it exists and holds an adapter, or nothing.
        durable: wait until the folder is on the disk.
        notes: further JSON files, name -> content; readers of the format ignore them.

    Raises:
        FileExistsError: the folder exists, and `force` is not given or it holds something else.
        WeightsError: a number is not finite in this dtype.
        OSError: the disk refuses.
    """
    if force:
        places_of_files = ("", *map(folder_of, NETWORKS))
        require_replaceable(folder, *(str(Path(place) / WEIGHTS) for place in places_of_files))
    with atomic_folder(folder, force=force, durable=durable) as draft, naming_folder(folder):
        for name, group in places(configs).items():
            layers = adapter.layers.get(name, {})
            if not layers:
                continue
            target = draft if name == "unet" else draft / folder_of(name)
            target.mkdir(exist_ok=True)
            tensors: dict[str, Tensor] = {}
            for place in group:
                if place.path in layers:
                    tensors |= _tensors(place, layers[place.path], dtype)
            save_safetensors(tensors, target / WEIGHTS, folder, **adapter.metadata)
            config = _config(group, layers, dict(adapter.metadata), is_conv1d=name == "gpt2")
            (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in (notes or {}).items():
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tensors(place: Place, low: LowRank, dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for matrix, letter in ((low.A, "A"), (low.B, "B")):
        key = f"{PEFT}{place.module}.lora_{letter}.weight"
        found[key] = place.theirs(matrix.detach().cpu()).to(dtype).contiguous()
        if not found[key].isfinite().all():
            raise WeightsError(f"{key} is not finite in {dtype}; the adapter cannot be written so.")
    return found


def _config(
    group: Sequence[Place], layers: Mapping[str, LowRank], metadata: Mapping[str, str], *, is_conv1d: bool
) -> dict[str, Any]:
    """PEFT's settings: the commonest rank and alpha, and patterns for layers with others."""
    adapted = {place.module: layers[place.path] for place in group if place.path in layers}
    ranks = {module: low.rank for module, low in adapted.items()}
    alphas = {module: low.scale * low.rank for module, low in adapted.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": metadata.get("base_model"),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: each for module, each in ranks.items() if each != rank},
        "alpha_pattern": {module: each for module, each in alphas.items() if each != alpha},
        "target_modules": _targets([place.module for place in group], list(adapted)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": is_conv1d,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _targets(modules: list[str], adapted: list[str]) -> list[str]:
    """The ends of names that select exactly these layers, as PEFT selects; else their whole names."""
    ends = sorted({_end(module) for module in adapted})
    selected = [module for module in modules if any(f".{module}".endswith(f".{end}") for end in ends)]
    return ends if set(selected) == set(adapted) else adapted


def _end(module: str) -> str:
    """The last part of a name; in a list, such as `to_out.0`, with the list's name."""
    parts = module.split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])
