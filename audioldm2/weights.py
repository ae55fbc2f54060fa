"""Checkpoints: what one holds, reading and writing the converted folder, and filling the networks.

A converted folder is `config.json`, one safetensors file a network, and the tokenizers' files in two sub-folders.
Weights stay memory-mapped until they are used: networks are built without memory and the mapped tensors are put in
their place, strictly.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Size, Tensor, nn

from audioldm2.errors import WeightsError, some
from audioldm2.files import folder_written_whole
from audioldm2.models import NETWORKS, build_on_meta
from audioldm2.text import ClapTokenizer, T5Tokenizer

FORMAT = 1  # of the converted folder; raised when an old reader could not read a new folder
TOKENIZERS = {"clap_tokenizer": ClapTokenizer, "t5_tokenizer": T5Tokenizer}  # sub-folder -> who reads it
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FLOAT32_IN_FLOAT16 = {
    "t5": re.compile(r"\.ff\.out\.")
}  # sums there overflow float16; the reference does the same


@dataclass
class Checkpoint:
    """A whole model on disk or on its way there."""

    configs: dict[str, Any]  # network -> its config dataclass
    states: dict[str, Callable[[], dict[str, Tensor]]]  # network -> opens its tensors, memory-mapped
    schedule: dict[str, Any]  # fields of `samplers.NoiseSchedule`
    clap_mel: dict[str, Any]  # fields of `audio.MelSettings`: how CLAP's audio branch hears
    tokenizers: dict[str, Path]  # each of TOKENIZERS -> folder with its files
    source: str  # hub id or folder it came from
    revision: str | None = None
    notes: list[str] = field(default_factory=list)  # what was decided while converting


def is_converted(folder: Path) -> bool:
    """Whether a folder claims to be in the converted format."""
    return (
        "audioldm2_format" in read_json(folder / "config.json")
        if (folder / "config.json").is_file()
        else False
    )


def read_json(path: Path) -> dict:
    """The object in a JSON file; WeightsError when it cannot be read as one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; the checkpoint is not complete.") from None
    except (OSError, ValueError) as error:
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
    if config.get("audioldm2_format") != FORMAT:
        raise WeightsError(
            f"{path} has format {config.get('audioldm2_format')!r}; this version reads format {FORMAT}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    networks = config.get("networks")
    if not isinstance(networks, dict) or set(networks) != set(NETWORKS):
        raise WeightsError(
            f"{path} describes the networks {sorted(networks or [])}; this version needs {sorted(NETWORKS)}. "
            "Convert the source again with 'audioldm2 convert'."
        )
    return Checkpoint(
        configs={name: config_from_json(name, networks[name], path) for name in NETWORKS},
        states={name: partial(read_safetensors, folder / f"{name}.safetensors") for name in NETWORKS},
        schedule=config.get("schedule", {}),
        clap_mel=config.get("clap_mel", {}),
        tokenizers={name: folder / name for name in TOKENIZERS},
        source=config.get("source", str(folder)),
        revision=config.get("revision"),
    )


def config_from_json(name: str, values: Mapping[str, Any], where: Path) -> Any:
    """A network's config dataclass from JSON, with lists as tuples; an unknown or missing field is a WeightsError."""
    kind = NETWORKS[name][1]
    known = {each.name for each in fields(kind)}
    if set(values) != known:
        odd = sorted(set(values) ^ known)
        raise WeightsError(
            f"{where}: the config of '{name}' and this version differ in {', '.join(odd)}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    return kind(**{key: _tuples(value) for key, value in values.items()})


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_network: Callable[[str, int, int], object] = lambda name, tensors, size: None,
) -> None:
    """Write a converted folder, whole or not at all.

    dtype:      cast every floating tensor to it. The default keeps each as it is, but for float64, which becomes
                float32: published checkpoints have it in two scalars that nobody meant so.
    on_network: called with each network's name, number of tensors and bytes.
    Raises FileExistsError when the folder exists and `force` is not given; OSError when the disk refuses.
    """
    for name, source in checkpoint.tokenizers.items():
        TOKENIZERS[name].from_folder(source)  # complain now, not after gigabytes are written
    with folder_written_whole(folder, force=force) as draft:
        config = {
            "audioldm2_format": FORMAT,
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "schedule": checkpoint.schedule,
            "clap_mel": checkpoint.clap_mel,
            "networks": {name: asdict(config) for name, config in checkpoint.configs.items()},
        }
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, open_state in checkpoint.states.items():
            state = {
                key: cast(name, key, tensor, dtype or _kept_dtype(tensor)).contiguous()
                for key, tensor in open_state().items()
            }
            on_network(name, len(state), sum(tensor.nbytes for tensor in state.values()))
            path = draft / f"{name}.safetensors"
            save_file(state, path, metadata={"format": "pt", "network": name})
            shutil.copymode(draft / "config.json", path)  # safetensors makes its files private
        for name, source in checkpoint.tokenizers.items():
            (draft / name).mkdir()
            for file in sorted(source.iterdir()):
                if file.name in TOKENIZERS[name].FILES:
                    shutil.copyfile(file, draft / name / file.name)


def cast(name: str, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight of the network `name` in `dtype`, but for the few that need float32; itself when nothing changes."""
    if not tensor.is_floating_point():
        return tensor
    keep = FLOAT32_IN_FLOAT16.get(name)
    if dtype == torch.float16 and keep and keep.search(key):
        dtype = torch.float32
    return tensor.to(dtype)


def expected_shapes(name: str, config: Any) -> dict[str, Size]:
    """The keys of a network and their shapes."""
    return {key: tensor.shape for key, tensor in build_on_meta(name, config).state_dict().items()}


def materialise(checkpoint: Checkpoint, name: str, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One network, filled and ready to run, without gradients. No tensor is copied that can stay mapped.

    Raises WeightsError when the checkpoint's keys or shapes are not the network's.
    """
    network = build_on_meta(name, checkpoint.configs[name])
    state = {
        key: cast(name, key, tensor, dtype).to(device) for key, tensor in checkpoint.states[name]().items()
    }
    compare_shapes(
        {key: tensor.shape for key, tensor in state.items()},
        {key: tensor.shape for key, tensor in network.state_dict().items()},
        f"network '{name}' of {checkpoint.source}",
    )
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)


class Networks:
    """The networks of a checkpoint, and where their weights are while others run.

    residence: "device"  all on the device, always (the default);
               "offload" in the computer's memory, on the device only while running;
               "disk"    read for their stage and let go after it.
    Every network's keys and shapes are checked here, at once, whatever the residence.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, residence: str = "device"
    ) -> None:
        self.configs, self.device, self.dtype, self.residence = checkpoint.configs, device, dtype, residence
        self._checkpoint = checkpoint
        home = device if residence == "device" else torch.device("cpu")
        self._loaded = {}
        for name in NETWORKS:
            network = materialise(checkpoint, name, device=home, dtype=dtype)
            if residence != "disk":
                self._loaded[name] = network

    @contextmanager
    def running(self, name: str) -> Iterator[nn.Module]:
        """The network called `name`, on the device while the block lasts."""
        if self.residence == "device":
            yield self._loaded[name]
        elif self.residence == "disk":
            yield materialise(self._checkpoint, name, device=self.device, dtype=self.dtype)
        else:
            network = self._loaded[name]
            home = {key: tensor for key, tensor in network.state_dict().items()}
            network.load_state_dict(
                {key: tensor.to(self.device) for key, tensor in home.items()}, assign=True
            )
            try:
                yield network
            finally:
                network.load_state_dict(home, assign=True)


def compare_shapes(found: Mapping[str, Size], expected: Mapping[str, Size], where: str) -> None:
    """Raise WeightsError unless both hold the same keys with the same shapes; the message names the first few."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    wrong = [
        f"{key} is {tuple(found[key])} and should be {tuple(expected[key])}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    problems = [
        f"{words} {some(keys)}"
        for words, keys in (("missing", missing), ("not expected", extra), ("of the wrong shape", wrong))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{where} does not fit its configuration: {'; '.join(problems)}. "
            "Copy or download it again, or convert the source again with 'audioldm2 convert'."
        )


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
