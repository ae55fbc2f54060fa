"""An adapter in memory: its matrices by network and layer, its weight, and where it comes from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from audioldm2.adapters import lora
from audioldm2.adapters.lora import LowRank


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank matrices for some layers of a model."""

    name: str  # what `unload_lora` calls it
    layers: Mapping[str, Mapping[str, LowRank]]  # network -> path of a layer -> its matrices
    weight: float = 1.0  # multiplies every scale
    source: str = ""  # folder, file or hub id that it was read from
    sha256: str = ""  # of its files
    metadata: Mapping[str, str] = field(default_factory=dict)  # of its file: licence, base model, ...

    def describe(self) -> dict[str, Any]:
        """What this adapter is, for the record beside a sound."""
        base = {key: self.metadata[key] for key in ("base_model", "license") if key in self.metadata}
        return {
            "name": self.name,
            "weight": self.weight,
            "file": self.source,
            "sha256": self.sha256,
            **base,
        }

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(
            low.A.numel() + low.B.numel() for layers in self.layers.values() for low in layers.values()
        )


def of_network(adapters: Iterable[Adapter], name: str) -> list[tuple[Mapping[str, LowRank], float]]:
    """The matrices and weights of those adapters that have layers of the network called `name`, in order."""
    return [(each.layers[name], each.weight) for each in adapters if each.layers.get(name)]


def additions(adapters: Iterable[Adapter]) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """For each network that some of these adapters change: what puts their layers on it."""
    adapters = tuple(adapters)
    found = {name: of_network(adapters, name) for name in lora.NETWORKS}
    return {name: partial(lora.add_all, layers) for name, layers in found.items() if layers}
