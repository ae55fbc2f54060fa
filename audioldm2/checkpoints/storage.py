"""The converted folder, read and written.

It holds `config.json`, one safetensors file a network, and the tokenizers' files in two sub-folders;
convert/README.md describes the fields. Weights stay memory-mapped until they are used.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import DEFAULT_SECONDS
from audioldm2.checkpoints import validate
from audioldm2.checkpoints.checkpoint import (
    TEXT_ENCODERS,
    TOKENIZERS,
    Checkpoint,
    check,
    clap_mel_of,
    phoneme_tokenizer_of,
    schedule_of,
    tokenizers_of,
)
from audioldm2.checkpoints.tensor_files import (
    naming_folder,
    read_json,
    read_safetensors,
    require_fit,
    save_safetensors,
)
from audioldm2.errors import WeightsError, some
from audioldm2.files import atomic_folder
from audioldm2.models import NETWORKS
from audioldm2.runtime.dtypes import DTYPES, cast

__all__ = [  # what other packages import from here
    "DTYPES",
    "TEXT_ENCODERS",
    "TOKENIZERS",
    "Checkpoint",
    "WeightsError",
    "cast",
    "check",
    "clap_mel_of",
    "is_converted",
    "phoneme_tokenizer_of",
    "read",
    "read_json",
    "schedule_of",
    "tokenizers_of",
    "write",
]

FORMAT = 5  # of the converted folder; raised when an old reader could not read a new folder
FIELDS = {  # of config.json
    *("audioldm2_format", "source", "revision", "schedule", "clap_mel", "seconds"),
    *("unconditional", "normalized", "symbols", "pronunciations", "networks"),
}


def is_converted(folder: Path) -> bool:
    """Return whether a folder claims to be in the converted format."""
    path = folder / "config.json"
    return path.is_file() and "audioldm2_format" in read_json(path)


def require_replaceable(folder: Path) -> None:
    """Raise FileExistsError if a folder holds anything but a model of either layout."""
    is_model = is_converted(folder) or (folder / "model_index.json").is_file()
    if folder.is_dir() and any(folder.iterdir()) and not is_model:
        raise FileExistsError(f"{folder} is not the folder of a model, and no other is replaced")


def read(folder: Path) -> Checkpoint:
    """Read a converted folder, memory-mapped; WeightsError if it is not one, or damaged."""
    path = folder / "config.json"
    config = _in_current_format(read_json(path), path)
    odd = sorted(FIELDS ^ set(config))
    if odd:
        raise WeightsError(
            f"{path} lacks, or should not have, {some(odd)}. "
            "Convert the source again with 'audioldm2 convert'."
        )
    networks = validate.typed(f"'networks' in {path}", config["networks"], dict)
    if set(networks) - set(NETWORKS):
        raise WeightsError(
            f"{path} describes the networks {sorted(networks)}; this version knows {sorted(NETWORKS)}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    configs = {
        name: validate.build(kind, networks[name], f"'{name}' in {path}")
        for name, (_, kind) in NETWORKS.items()
        if name in networks
    }
    checkpoint = Checkpoint(
        configs=configs,
        states={name: partial(_open_state, name, config, folder) for name, config in configs.items()},
        schedule=validate.typed(f"'schedule' in {path}", config["schedule"], dict),
        clap_mel=validate.typed(f"'clap_mel' in {path}", config["clap_mel"], dict),
        tokenizers={name: folder / name for name in tokenizers_of(configs)},
        source=validate.typed(f"'source' in {path}", config["source"], str),
        revision=validate.typed(f"'revision' in {path}", config["revision"], str | None),
        seconds=validate.typed(f"'seconds' in {path}", config["seconds"], float),
        unconditional=validate.typed(f"'unconditional' in {path}", config["unconditional"], str),
        normalized=validate.typed(f"'normalized' in {path}", config["normalized"], bool),
        symbols=validate.typed(f"'symbols' in {path}", config["symbols"], tuple[str, ...] | None),
        pronunciations=_pronunciations(config["pronunciations"], path),
    )
    check(checkpoint, str(path))
    return checkpoint


def _pronunciations(value: Any, path: Path) -> dict[str, str] | None:
    found = validate.typed(f"'pronunciations' in {path}", value, dict | None)
    for word, phonemes in (found or {}).items():
        validate.typed(f"{word!r} of 'pronunciations' in {path}", phonemes, str)
    return found


def _in_current_format(config: dict, path: Path) -> dict:
    """Return the config of any format that can be read, as the current format has it."""
    if config.get("audioldm2_format") == 1:  # before speech and 48 kHz: no symbols, no film_dim, no positions
        networks = validate.typed(f"'networks' in {path}", config.get("networks"), dict)
        for name, field in (("unet", "film_dim"), ("projection", "positions")):
            fields = validate.typed(f"'{name}' in {path}", networks.get(name), dict)
            networks = networks | {name: {field: 0} | fields}
        config = config | {"audioldm2_format": 2, "symbols": None, "networks": networks}
    if config.get("audioldm2_format") == 2:  # before models with a length of their own
        config = config | {"audioldm2_format": 3, "seconds": DEFAULT_SECONDS}
    if config.get("audioldm2_format") == 3:  # before models could be trained as upstream trains them
        config = config | {"audioldm2_format": 4, "unconditional": "reference", "normalized": True}
    if config.get("audioldm2_format") == 4:  # before speech models with a list of their own words
        config = config | {"audioldm2_format": FORMAT, "pronunciations": None}
    if config.get("audioldm2_format") != FORMAT:
        raise WeightsError(
            f"{path} has format {config.get('audioldm2_format')!r}; this version reads 1 to {FORMAT}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    return config


def _open_state(name: str, config: Any, folder: Path) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    state = read_safetensors(path)
    require_fit(state, name, config, str(path))
    return state


def ignore_network(name: str, tensors: int, size: int) -> None:
    """What `on_network` does by default."""


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    durable: bool = False,
    notes: Mapping[str, Any] | None = None,
    on_network: Callable[[str, int, int], object] = ignore_network,
) -> None:
    """Write a converted folder, whole or not at all.

    Args:
        checkpoint: what to write.
        folder: where to.
        dtype: cast every tensor to it. The default keeps each dtype, except float64, which becomes
            float32: the published CLAP has two scalars in it by accident.
        force: replace the folder if it exists and holds a model, or nothing.
        durable: wait until the folder is on the disk.
        notes: further JSON files, name -> content; readers of the format ignore them.
        on_network: called with each network's name, number of tensors and bytes before it is written.

    Raises:
        FileExistsError: the folder exists, and `force` is not given or it holds something else than a model.
        WeightsError: a tensor does not fit its network, or holds NaN or infinity.
        OSError: the disk refuses.
    """
    require_tokenizers(checkpoint)
    if force:
        require_replaceable(folder)
    with atomic_folder(folder, force=force, durable=durable) as draft, naming_folder(folder):
        for name, open_state in checkpoint.states.items():
            state = prepare(name, open_state(), dtype, checkpoint.source)
            on_network(name, len(state), sum(tensor.nbytes for tensor in state.values()))
            save_safetensors(state, draft / f"{name}.safetensors", folder, network=name)
            del state  # before the next is read
        for name, source in checkpoint.tokenizers.items():
            copy_tokenizer(name, source, draft / name)
        config = {
            "audioldm2_format": FORMAT,
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "schedule": checkpoint.schedule,
            "clap_mel": checkpoint.clap_mel,
            "seconds": checkpoint.seconds,
            "unconditional": checkpoint.unconditional,
            "normalized": checkpoint.normalized,
            "symbols": checkpoint.symbols,
            "pronunciations": checkpoint.pronunciations,
            "networks": {name: asdict(config) for name, config in checkpoint.configs.items()},
        }
        for name, content in {"config.json": config, **(notes or {})}.items():
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def require_tokenizers(checkpoint: Checkpoint) -> None:
    """Read every tokenizer, so that a bad one raises WeightsError before gigabytes are written."""
    for name, source in checkpoint.tokenizers.items():
        TOKENIZERS[name].from_folder(source)


def prepare(
    name: str, state: Mapping[str, Tensor], dtype: torch.dtype | None, where: str
) -> dict[str, Tensor]:
    """Return one network's tensors ready to be written: cast, contiguous, all finite.

    Args:
        name: the network.
        state: its tensors.
        dtype: see `write`.
        where: the source, which errors name.

    Raises:
        WeightsError: a value is NaN or infinite, in the source or after the cast.
    """
    prepared = {}
    for key, tensor in state.items():
        prepared[key] = cast(name, key, tensor, dtype or _kept_dtype(tensor)).contiguous()
        if prepared[key].isfinite().all():
            continue
        if tensor.isfinite().all():
            raise WeightsError(
                f"'{key}' of '{name}' in {where} has values beyond {prepared[key].dtype}; "
                "use another --dtype."
            )
        raise WeightsError(
            f"'{key}' of '{name}' in {where} holds NaN or infinity, and so would every sound. "
            "Copy or download the checkpoint again."
        )
    return prepared


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype


def copy_tokenizer(name: str, source: Path, target: Path) -> None:
    """Copy the files that the tokenizer called `name` reads, and nothing else, to a new folder."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.name in TOKENIZERS[name].FILES:
            shutil.copyfile(file, target / file.name)
