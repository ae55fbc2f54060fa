"""The checkpoint that is verified: opened once, with what is known of it."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.checkpoints import hub, storage
from audioldm2.checkpoints.checkpoint import Checkpoint
from audioldm2.checkpoints.load import assemble, open_checkpoint
from audioldm2.errors import WeightsError
from audioldm2.models import expected_shapes
from audioldm2.pipeline import AudioLDM2
from audioldm2.verification.facts import Facts
from audioldm2.verification.finding import Inapplicable
from audioldm2.verification.published import PUBLISHED
from audioldm2.verification.readings import Reading

CONVERTED, DIFFUSERS, ORIGINAL = "converted folder", "diffusers layout", "original file"


@dataclass(frozen=True)
class Effort:
    """How much the long checks do."""

    prompts: int = 20
    seeds: int = 3
    steps: int = 25


@dataclass
class Subject:
    """A checkpoint, the facts to compare it with, and where to run it.

    given: facts of the user, which take the place of the published ones.
    named: the published checkpoint that the user says it is.
    """

    source: str
    path: Path
    layout: str
    checkpoint: Checkpoint
    device: torch.device
    given: Facts | None = None
    named: str | None = None
    effort: Effort = field(default_factory=Effort)
    report: Callable[[str], object] = lambda message: None

    @cached_property
    def states(self) -> dict[str, Callable[[], dict[str, Tensor]]]:
        """What opens the tensors of each network whose file can be read and fits; see `broken`."""
        return {
            name: self.checkpoint.states[name] for name in self.checkpoint.states if name not in self.broken
        }

    @cached_property
    def broken(self) -> dict[str, str]:
        """Network -> why its tensors cannot be opened."""
        found = {}
        for name, open_state in self.checkpoint.states.items():
            try:
                open_state()
            except WeightsError as error:
                found[name] = str(error)
        return found

    @cached_property
    def candidates(self) -> tuple[Facts, ...]:
        """The right checkpoints that this one may be a copy of: those of its architecture."""
        if self.given is not None:
            return (self.given,)
        alike = [facts for facts in PUBLISHED if not differing_shapes(self.checkpoint.configs, facts.configs)]
        if self.named is not None:
            return tuple(facts for facts in PUBLISHED if facts.name == self.named)
        names = {last_part(self.source), last_part(self.checkpoint.source)}
        meant = [facts for facts in alike if names & set(facts.aliases)]
        return tuple(meant or alike)

    @property
    def facts(self) -> Facts | None:
        """What all candidates have in common, taken from the first; None for an unknown architecture."""
        return self.candidates[0] if self.candidates else None

    @property
    def is_settled(self) -> bool:
        """Whether it is known which checkpoint this has to be."""
        return len(self.candidates) == 1

    def require(self, *networks: str) -> None:
        """Raise Inapplicable unless these networks are there and can be opened."""
        for name in networks:
            if name not in self.checkpoint.configs:
                raise Inapplicable(f"the checkpoint has no network '{name}'.")
            if name in self.broken:
                raise Inapplicable(f"'{name}' cannot be opened (see files).")

    def require_runnable(self) -> None:
        """Raise Inapplicable unless the whole model can run."""
        self.require(*self.checkpoint.configs)
        absent = set(storage.tokenizers_of(self.checkpoint.configs)) - set(self.checkpoint.tokenizers)
        if absent:
            raise Inapplicable(f"{', '.join(sorted(absent))} is missing; give it with --tokenizers.")

    def model(self, reading: Reading | None = None, dtype: str = "float32") -> AudioLDM2:
        """The model, loaded with one reading of what the checkpoint does not say."""
        checkpoint = self.checkpoint
        if reading is not None:
            unet = replace(checkpoint.configs["unet"], heads=reading.heads)
            checkpoint = replace(checkpoint, configs=checkpoint.configs | {"unet": unet})
        return assemble(checkpoint, self.source, device=self.device, dtype=dtype)


def open_subject(
    source: str,
    *,
    device: torch.device,
    revision: str | None = None,
    tokenizers: Path | None = None,
    **more: Any,
) -> Subject:
    """Find and open a checkpoint.

    Args:
        source: see `audioldm2.load`.
        device: where networks run.
        revision: see `audioldm2.load`.
        tokenizers: for an original file, the folder with both.
        **more: fields of `Subject`.

    Raises:
        WeightsError: nothing is there, or it is not a checkpoint.
        Unopened: a checkpoint is there and cannot be read.
    """
    path = hub.find(source, revision=revision)
    layout = _layout_of(path)
    with _naming_what_opens(layout):
        checkpoint = open_checkpoint(source, revision=revision, tokenizers=tokenizers)
    return Subject(source, path, layout, checkpoint, device, **more)


class Unopened(Exception):
    """A checkpoint is there, in a layout that is known, and cannot be read; its message says why."""


@contextmanager
def _naming_what_opens(layout: str):
    try:
        yield
    except WeightsError as error:
        raise Unopened(f"the {layout} cannot be opened: {error}") from error


def _layout_of(path: Path) -> str:
    if path.is_file():
        return ORIGINAL
    if storage.is_converted(path):
        return CONVERTED
    if (path / "model_index.json").is_file():
        return DIFFUSERS
    raise WeightsError(
        f"{path} is not a checkpoint: it has neither a model_index.json (diffusers layout) nor a config.json "
        "of a converted model, nor a single original .pth file."
    )


def last_part(name: str) -> str:
    """The last part of a hub id or path, without the suffix of a file, in small letters."""
    last = Path(name).name.lower()
    return last.rsplit(".", 1)[0] if hub.is_original(last) else last


def differing_shapes(configs: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The networks that only one of two checkpoints has, or whose tensors have other keys or shapes."""
    return sorted(
        name
        for name in {*configs, *others}
        if name not in configs
        or name not in others
        or (configs[name] != others[name] and _shapes(name, configs[name]) != _shapes(name, others[name]))
    )


@cache
def _shapes(name: str, config: Any) -> int:
    """A hash of a network's keys and shapes; more are asked for than `expected_shapes` keeps."""
    return hash(tuple(expected_shapes(name, config).items()))
