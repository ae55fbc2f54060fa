"""Checkpoints: what one holds, and reading and writing the converted folder.

A converted folder is `config.json`, one safetensors file a network, and the tokenizers' files in two
sub-folders. Weights stay memory-mapped until they are used (see `residence`). Reading and writing are one
file, a little long, because each is the other's specification.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioldm2.audio import CLAP_MEL, DEFAULT_SECONDS, MAX_SECONDS, MelSettings
from audioldm2.checkpoints import validate
from audioldm2.errors import WeightsError, some
from audioldm2.files import atomic_folder
from audioldm2.models import NETWORKS, expected_shapes
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.runtime.dtypes import DTYPES, cast
from audioldm2.sampling.schedule import NoiseSchedule

FORMAT = 3  # of the converted folder; raised when an old reader could not read a new folder
TOP = {  # of config.json
    *("audioldm2_format", "source", "revision", "schedule", "clap_mel", "seconds", "symbols", "networks")
}
TOKENIZERS = {"clap_tokenizer": ClapTokenizer, "t5_tokenizer": T5Tokenizer}  # sub-folder -> who reads it
TEXT_ENCODERS = {"clap_tokenizer": "clap_text", "t5_tokenizer": "t5"}  # whom they serve


@dataclass
class Checkpoint:
    """A whole model on disk or on its way there. Which networks it has depends on what its denoiser hears."""

    configs: dict[str, Any]  # network -> its config dataclass
    states: dict[str, Callable[[], dict[str, Tensor]]]  # network -> opens its tensors, mapped and checked
    schedule: dict[str, Any]  # fields of `samplers.NoiseSchedule`
    clap_mel: dict[str, Any]  # fields of `audio.MelSettings`: how CLAP's audio branch hears
    tokenizers: dict[str, Path]  # of TOKENIZERS those that its text encoders need -> folder with the files
    source: str  # hub id, folder or file it came from
    revision: str | None = None
    seconds: float = DEFAULT_SECONDS  # how long its sounds are, unless one asks
    symbols: tuple[str, ...] | None = None  # of a speech model: each phoneme id's symbol


def is_converted(folder: Path) -> bool:
    """Whether a folder claims to be in the converted format."""
    path = folder / "config.json"
    return path.is_file() and "audioldm2_format" in read_json(path)


def read_json(path: Path) -> dict:
    """The object in a JSON file; WeightsError when it cannot be read as one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; the checkpoint is not complete.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}). Copy or download it again.") from error
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path} holds a {type(found).__name__}, not an object. Copy or download it again."
        )
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file as a view of its memory-mapped bytes; WeightsError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; the checkpoint is not complete.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged ({error}). Copy, download or convert it again."
        ) from error


def read(folder: Path) -> Checkpoint:
    """A converted folder as a Checkpoint, memory-mapped."""
    path = folder / "config.json"
    config = read_json(path)
    if config.get("audioldm2_format") == 1:
        config = _from_format_1(config, path)
    if config.get("audioldm2_format") == 2:  # its models were all of one length
        config = config | {"audioldm2_format": FORMAT, "seconds": DEFAULT_SECONDS}
    if config.get("audioldm2_format") != FORMAT:
        raise WeightsError(
            f"{path} has format {config.get('audioldm2_format')!r}; this version reads format {FORMAT}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    odd = sorted(TOP ^ set(config))
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
        name: validate.build(kind, networks[name], f"the config of '{name}' in {path}")
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
        symbols=validate.typed(f"'symbols' in {path}", config["symbols"], tuple[str, ...] | None),
    )
    check(checkpoint, str(path))
    return checkpoint


def _from_format_1(config: dict, path: Path) -> dict:
    """Format 1 knew neither of these; its models had none."""
    networks = validate.typed(f"'networks' in {path}", config.get("networks"), dict)
    for name, field in (("unet", "film_dim"), ("projection", "positions")):
        networks = networks | {
            name: {field: 0} | validate.typed(f"'{name}' in {path}", networks.get(name), dict)
        }
    return config | {"audioldm2_format": 2, "symbols": None, "networks": networks}


def tokenizers_of(configs: Mapping[str, Any]) -> list[str]:
    """Which of TOKENIZERS the text encoders of a checkpoint need."""
    return [name for name in TOKENIZERS if TEXT_ENCODERS[name] in configs]


def _open_state(name: str, config: Any, folder: Path) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    state = read_safetensors(path)
    demand_fit(state, name, config, str(path))
    return state


def check(checkpoint: Checkpoint, where: str) -> None:
    """Raise WeightsError unless every network can be built and run, and they fit together; no weight is read.

    where: the file or folder that the configs come from.
    """
    for name, config in checkpoint.configs.items():
        validate.check(name, config, where)
    schedule_of(checkpoint, where)
    hearing_of(checkpoint, where)
    validate.check_together(checkpoint.configs, where)
    if not 0 < checkpoint.seconds <= MAX_SECONDS:
        raise WeightsError(
            f"'seconds' in {where} is {checkpoint.seconds}; it has to be above 0, and at most {MAX_SECONDS}."
        )
    phonemes, symbols = checkpoint.configs.get("phonemes"), checkpoint.symbols
    if phonemes is not None and len(symbols or ()) != phonemes.vocabulary:
        raise WeightsError(
            f"{where} has {len(symbols or ())} phoneme symbols, and its encoder knows {phonemes.vocabulary}. "
            "Do they belong together?"
        )


def schedule_of(checkpoint: Checkpoint, where: str) -> NoiseSchedule:
    """The noise schedule that a checkpoint's denoiser was trained on."""
    schedule = validate.build(NoiseSchedule, checkpoint.schedule, f"'schedule' in {where}", NoiseSchedule())
    validate.check("schedule", schedule, where)
    return schedule


def hearing_of(checkpoint: Checkpoint, where: str) -> MelSettings:
    """The log-mel front end that a checkpoint's CLAP was trained with."""
    hearing = validate.build(MelSettings, checkpoint.clap_mel, f"'clap_mel' in {where}", CLAP_MEL)
    validate.check("clap_mel", hearing, where)
    return hearing


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_network: Callable[[str, int, int], object] = lambda name, tensors, size: None,
) -> None:
    """Write a converted folder, whole or not at all.

    dtype:      cast every tensor to it. The default keeps each as it is, but for float64, which becomes
                float32: published checkpoints have it in two scalars that nobody meant so.
    on_network: called with each network's name, number of tensors and bytes.
    Raises FileExistsError when the folder exists and `force` is not given; OSError when the disk refuses.
    """
    demand_tokenizers(checkpoint)
    with atomic_folder(folder, force=force) as draft:
        for name, open_state in checkpoint.states.items():
            state = ready(name, open_state(), dtype, checkpoint.source)
            on_network(name, len(state), sum(tensor.nbytes for tensor in state.values()))
            save(state, draft / f"{name}.safetensors", folder, network=name)
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
            "symbols": checkpoint.symbols,
            "networks": {name: asdict(config) for name, config in checkpoint.configs.items()},
        }
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def demand_tokenizers(checkpoint: Checkpoint) -> None:
    """Complain of tokenizers that cannot be read before gigabytes are written."""
    for name, source in checkpoint.tokenizers.items():
        TOKENIZERS[name].from_folder(source)


def ready(name: str, state: Mapping[str, Tensor], dtype: torch.dtype | None, where: str) -> dict[str, Tensor]:
    """One network's tensors as they are to be written: in `dtype` (see `write`), contiguous, all finite."""
    made = {}
    for key, tensor in state.items():
        made[key] = cast(name, key, tensor, dtype or _kept_dtype(tensor)).contiguous()
        if not made[key].isfinite().all():
            if tensor.isfinite().all():
                raise WeightsError(
                    f"'{key}' of '{name}' in {where} has values beyond {made[key].dtype}; "
                    "use another --dtype."
                )
            raise WeightsError(
                f"'{key}' of '{name}' in {where} holds values that are no numbers (NaN or infinite), so the "
                "model would make none either. Copy or download the checkpoint again."
            )
    return made


def save(state: Mapping[str, Tensor], path: Path, where: Path, **metadata: str) -> None:
    """Write a safetensors file, readable to whom other new files are.

    Raises OSError, which names the folder `where` that the draft is for, when the disk refuses.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(state), path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:  # its word for what the system refuses, such as a full disk
        raise OSError(f"{where} cannot be written: {error}") from error
    path.chmod(mode)  # safetensors makes its files private


def copy_tokenizer(name: str, source: Path, target: Path) -> None:
    """Copy what the tokenizer called `name` reads, and nothing else, to a new folder."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.name in TOKENIZERS[name].FILES:
            shutil.copyfile(file, target / file.name)


def demand_fit(state: Mapping[str, Tensor], name: str, config: Any, where: str) -> None:
    """Raise WeightsError unless the tensors are those of network `name`: keys, shapes, floating dtypes.

    where: the file or folder that they come from; the message names the first few offending keys.
    """
    try:
        expected = expected_shapes(name, config)
    except RuntimeError as error:  # sizes beyond what a tensor can have
        raise WeightsError(f"the config of '{name}' for {where} cannot work: {error}") from error
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    wrong = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(expected[key])}"
        for key in expected
        if key in state and state[key].shape != expected[key]
    ]
    odd = [
        f"{key} is {tensor.dtype}"
        for key, tensor in state.items()
        if key in expected and tensor.dtype not in (*DTYPES.values(), torch.float64)
    ]
    problems = [
        f"{words} {some(keys)}"
        for words, keys in (
            ("missing", missing),
            ("not expected", extra),
            ("of the wrong shape", wrong),
            ("of a dtype that is no weight's", odd),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{where} does not fit its configuration: {'; '.join(problems)}. "
            "Copy or download it again, or convert the source again with 'audioldm2 convert'."
        )


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
