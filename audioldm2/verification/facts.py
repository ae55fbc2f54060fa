"""Facts about a checkpoint that is right, to compare another copy with.

Those of the published checkpoints stand in `published`. Anyone who publishes a checkpoint can write a file of
facts beside it (`audioldm2 verify --write-facts FILE MODEL`), which finds and names every difference, tensor
by tensor.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audioldm2.audio import CLAP_MEL, MelSettings
from audioldm2.checkpoints.storage import read_json
from audioldm2.checkpoints.validate import build, naming_fields, typed
from audioldm2.errors import WeightsError
from audioldm2.files import atomic_write
from audioldm2.models import NETWORKS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.verification.fingerprints import Fingerprint

FORMAT = 1
PROMPT = "A hammer hitting a wooden surface"  # of the slices that the reference's tests recorded
GUIDANCE = 2.5


@dataclass(frozen=True)
class Slice:
    """A few samples of a sound that a right checkpoint generates, in float32.

    The latents are `numpy.random.RandomState(0).standard_normal(latents)`, as in the reference's tests.
    """

    sampler: str
    steps: int
    first: int  # number of the first sample
    values: tuple[float, ...]
    latents: tuple[int, ...] = (1, 8, 128, 16)  # their shape
    prompt: str = PROMPT
    guidance: float = GUIDANCE


@dataclass(frozen=True)
class Facts:
    """What is known of a right checkpoint; what is empty or None is not known."""

    name: str
    configs: Mapping[str, Any]  # network -> its config
    aliases: tuple[str, ...] = ()  # last parts of names that mean this checkpoint and no other
    heads: tuple[int, ...] | None = None  # of the UNet, where they are settled
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    clap_mel: MelSettings = CLAP_MEL  # CLAP's front end
    unconditional: str | None = None  # how an empty negative prompt is encoded
    parameters: Mapping[str, int] = field(default_factory=dict)  # network -> count; buffers do not count
    folders: Mapping[str, tuple[int, str]] = field(
        default_factory=dict
    )  # of the diffusers layout: tensors, hash
    original: tuple[int, int, str] | None = None  # of the original file: tensors, bytes, hash of its keys
    slices: tuple[Slice, ...] = ()
    tokens: Mapping[str, Mapping[str, tuple[int, ...]]] = field(
        default_factory=dict
    )  # tokenizer -> text -> ids
    round_trip: float | None = None  # what `sounds.explained` is
    tensors: Mapping[str, Mapping[str, Fingerprint]] = field(default_factory=dict)  # network -> key -> print


def write(facts: Facts, path: Path) -> None:
    """Write facts as a JSON file, whole or not at all."""
    content = {"audioldm2_facts": FORMAT} | asdict(facts)
    for published_only in ("aliases", "parameters", "folders", "original"):
        del content[published_only]
    content["tensors"] = {  # lists: field names would double the file
        network: {key: list(asdict(each).values()) for key, each in prints.items()}
        for network, prints in facts.tensors.items()
    }
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> Facts:
    """Read a file that `write` has written.

    Raises:
        ValueError: there is no such file.
        WeightsError: it is any other file.
    """
    if not path.is_file():
        raise ValueError(f"{path} cannot be found.")
    content, where = read_json(path), str(path)
    if content.pop("audioldm2_facts", None) != FORMAT:
        raise WeightsError(
            f"{path} holds no facts that this version reads. Write it with 'audioldm2 verify --write-facts'."
        )
    wanted = {
        "name",
        "configs",
        "heads",
        "schedule",
        "clap_mel",
        "unconditional",
        "slices",
        "tokens",
        "round_trip",
        "tensors",
    }
    if set(content) != wanted:
        raise WeightsError(
            f"{path} differs in {sorted(wanted ^ set(content))} from what --write-facts writes."
        )
    configs = _mapping(content, "configs", where)
    if not set(configs) <= set(NETWORKS):
        raise WeightsError(f"{path} has facts of {sorted(configs)}; this version knows {sorted(NETWORKS)}.")
    with naming_fields(f"'slices' in {path}"):
        slices = tuple(
            build(Slice, each, f"'slices' in {path}")
            for each in typed("slices", content["slices"], tuple[dict])
        )
    return Facts(
        name=typed(f"'name' in {path}", content["name"], str),
        configs={
            name: build(NETWORKS[name][1], fields, f"'{name}' in {path}") for name, fields in configs.items()
        },
        heads=typed(f"'heads' in {path}", content["heads"], tuple[int] | None),
        schedule=build(NoiseSchedule, content["schedule"], f"'schedule' in {path}"),
        unconditional=typed(f"'unconditional' in {path}", content["unconditional"], str | None),
        clap_mel=build(MelSettings, content["clap_mel"], f"'clap_mel' in {path}"),
        slices=slices,
        tokens={
            name: {
                text: typed(f"'{text}' in {path}", ids, tuple[int])
                for text, ids in _mapping({name: texts}, name, where).items()
            }
            for name, texts in _mapping(content, "tokens", where).items()
        },
        round_trip=typed(f"'round_trip' in {path}", content["round_trip"], float | None),
        tensors={
            network: {
                key: _fingerprint(row, f"'{network}.{key}' in {path}")
                for key, row in _mapping({network: prints}, network, where).items()
            }
            for network, prints in _mapping(content, "tensors", where).items()
        },
    )


def _mapping(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return typed(f"'{name}' in {where}", content[name], dict)


def _fingerprint(row: Any, what: str) -> Fingerprint:
    names = tuple(Fingerprint.__dataclass_fields__)
    if not isinstance(row, (list, tuple)) or len(row) != len(names):
        raise WeightsError(f"{what} has to be a list of {', '.join(names)}.")
    return build(Fingerprint, dict(zip(names, row, strict=True)), what)
