"""Reads adapters: PEFT's folders, and the files of diffusers and kohya.

    PEFT        base_model.model.MODULE.lora_A.weight  .lora_B.weight   alpha in adapter_config.json
    diffusers   unet.MODULE.lora_A.weight              .lora_B.weight   alpha in metadata, or .alpha
                unet.MODULE.lora.down.weight           .lora.up.weight
    kohya       lora_unet_MODULE.lora_down.weight      .lora_up.weight  lora_unet_MODULE.alpha

MODULE is that of diffusers; kohya writes its dots as "_". Where nothing says alpha, it is the rank. A PEFT
folder holds the UNet's adapter; those of other networks lie in its sub-folders, named as in the diffusers
layout. Every tensor of a file has to fit a layer of the model.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.lora import LowRank
from audioldm2.adapters.names import Place, folder_of, places, table
from audioldm2.adapters.settings import Settings, settings_from
from audioldm2.checkpoints import hub
from audioldm2.checkpoints.tensor_files import read_json, read_safetensors
from audioldm2.errors import ArgumentError, WeightsError, some

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
SUFFIX = ".safetensors"
SETTINGS_IN_METADATA = "lora_adapter_metadata"  # diffusers'
ENDINGS = {  # of a key, behind the layer's name
    "A": re.compile(r"(.+)\.(?:lora_A(?:\.default)?|lora\.down|lora_down)\.weight"),
    "B": re.compile(r"(.+)\.(?:lora_B(?:\.default)?|lora\.up|lora_up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}


class Named(NamedTuple):
    """A tensor and its key in the file."""

    key: str
    tensor: Tensor


def find(source: str | os.PathLike) -> Path:
    """Where an adapter lies: a folder or a file, fetched if it is a hub id ("owner/name", or with "/file").

    Raises:
        ArgumentError: `source` is not a text or path.
        WeightsError: the source does not exist, or is not an adapter.
    """
    if not isinstance(source, (str, os.PathLike)):
        allowed = "be the folder or file of an adapter, or a hub id"
        raise ArgumentError("source", source, allowed)
    path = Path(source).expanduser()
    if not path.exists():
        path = hub.find_adapter(str(source))
    if path.is_file():
        if path.suffix != SUFFIX:
            raise WeightsError(f"{path} is not a {SUFFIX} file, the only format of adapters that is read.")
        return path
    _files_in(path)
    return path


def read(source: str | os.PathLike, configs: Mapping[str, Any], name: str | None = None) -> Adapter:
    """Read an adapter for a model.

    Args:
        source: see `find`.
        configs: of the model's networks.
        name: of the adapter; by default that of its folder or file.

    Raises:
        WeightsError: a tensor fits no layer of the model, or has another shape than the layer needs.
    """
    path, layers, digest = find(source), {}, hashlib.sha256()  # type: ignore[var-annotated]
    files = {path: "unet"} if path.is_file() else _files_in(path)
    metadata: dict[str, str] = {}
    for file, network in files.items():
        for place, low in _read_file(file, network, places(configs)).items():
            layers.setdefault(place.network, {})[place.path] = low
        digest.update(file.read_bytes())
        metadata |= _metadata(file)
    return Adapter(name or _name_of(path), layers, 1.0, str(source), digest.hexdigest(), metadata)


def _name_of(path: Path) -> str:
    """That of the file or folder; of RUN/adapter, as training writes it, that of the run."""
    path = path.resolve()
    return path.parent.name if path.name == "adapter" else path.stem if path.is_file() else path.name


def _files_in(folder: Path) -> dict[Path, str]:
    """The files of a folder, each with the network that it adapts; WeightsError if there is none."""
    found: dict[Path, str] = {}
    for network in ("unet", "gpt2", "projection"):
        inside = folder / folder_of(network)
        for candidate in [folder, inside] if network == "unet" else [inside]:
            if (candidate / WEIGHTS).is_file():
                found[candidate / WEIGHTS] = network
    if found:
        return found
    single = sorted(folder.glob(f"*{SUFFIX}"))
    if len(single) == 1:
        return {single[0]: "unet"}
    holds = f"several {SUFFIX} files ({some([file.name for file in single])})" if single else f"no {WEIGHTS}"
    raise WeightsError(f"{folder} is not the folder of an adapter: it has {holds}. Name one file.")


def _read_file(file: Path, network: str, found: Mapping[str, tuple[Place, ...]]) -> dict[Place, LowRank]:
    tensors = read_safetensors(file)
    names, unknown = table(found, network), []
    parts: dict[Place, dict[str, Named]] = {}
    for key, tensor in tensors.items():
        part, name = _split(key)
        place = names.get(name)
        if place is None:
            unknown.append(key)
        elif part in parts.setdefault(place, {}):
            both = some([parts[place][part].key, key])
            raise WeightsError(f"{file} has two tensors for one layer: {both}. Remove the wrong one.")
        else:
            parts[place][part] = Named(key, tensor)
    if unknown:
        raise WeightsError(
            f"{file} holds {some(unknown)}, which fit no layer of this model. "
            "Is it an adapter of another kind of model, or of another kind than LoRA?"
        )
    if not parts:
        raise WeightsError(f"{file} holds no tensors.")
    settings = _settings(file)
    return {place: _low_rank(place, part, settings, file) for place, part in parts.items()}


def _split(key: str) -> tuple[str, str]:
    """Which part of an adapter a key names, and the layer's name; two empty texts if it names none."""
    for part, ending in ENDINGS.items():
        match = ending.fullmatch(key)
        if match:
            return part, match[1]
    return "", ""


def _low_rank(place: Place, parts: Mapping[str, Named], settings: Settings | None, file: Path) -> LowRank:
    lacks = [part for part in ("A", "B") if part not in parts]
    if lacks:
        alone = next(iter(parts.values())).key
        raise WeightsError(f"{file} holds {alone!r} without its {' and '.join(lacks)}. Copy it again.")
    A, B = (place.ours(parts[part].tensor) for part in ("A", "B"))
    rank = len(A) if A.ndim else 0
    for part, matrix in (("A", A), ("B", B)):
        key, shape, expected = parts[part].key, tuple(matrix.shape), tuple(place.expected(rank)[part])
        if shape != expected:
            raise WeightsError(
                f"{file} does not fit this model: {key} is {shape} and should be {expected}. "
                "It belongs to a model of another size."
            )
        if not (matrix.is_floating_point() and matrix.isfinite().all()):
            raise WeightsError(f"{key} in {file} is not finite floating-point numbers. Copy it again.")
    if rank == 0:
        raise WeightsError(f"{parts['A'].key} in {file} is empty.")
    if settings is not None and settings.rank_of(place.module) != rank:
        raise WeightsError(
            f"{parts['A'].key} in {file} has rank {rank}, and its settings say "
            f"{settings.rank_of(place.module)}. Do the two files belong together?"
        )
    if "alpha" in parts:
        key, tensor = parts["alpha"]
        if tensor.numel() != 1 or not tensor.isfinite().all():
            raise WeightsError(f"{key} in {file} is not one finite number.")
        return LowRank(A, B, float(tensor) / rank)
    return LowRank(A, B, settings.scale_of(place.module, rank) if settings else 1.0)


def _settings(file: Path) -> Settings | None:
    """PEFT's settings, beside the file or in its metadata; None if it has none."""
    beside = file.with_name(CONFIG)
    if file.name == WEIGHTS or beside.is_file():
        return settings_from(read_json(beside), str(beside))
    text = _metadata(file).get(SETTINGS_IN_METADATA)
    if text is None:
        return None
    where = f"'{SETTINGS_IN_METADATA}' in {file}"
    try:
        values = json.loads(text)
        plain = {key.removeprefix("unet."): value for key, value in values.items()}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{where} cannot be read as JSON ({error}).") from error
    return settings_from(plain, where)


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}
