"""Layers and what files call them: the converter's rows, which map our modules to those of diffusers.

A file names a layer by diffusers' module, behind a prefix that says which network it belongs to. All names
that a layer may have stand in a table, so no name is taken apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Size, Tensor

from audioldm2.adapters.lora import NETWORKS
from audioldm2.models import build_on_meta, expected_shapes
from audioldm2.models.layers import Conv2d, Linear

PEFT = "base_model.model."  # before every module in PEFT's files
KOHYA = {"unet": "lora_unet_"}  # before the module, whose dots are "_", in kohya's files


@dataclass(frozen=True)
class Place:
    """A layer that can be adapted."""

    network: str
    path: str  # our module
    module: str  # diffusers' module
    weight: Size  # shape of our weight
    is_image: bool  # diffusers has a 1x1 convolution where we have a linear layer

    def expected(self, rank: int) -> dict[str, Size]:
        """The shapes of A and B as we have them."""
        outputs, inputs, *kernel = self.weight
        return {"A": Size((rank, inputs, *kernel)), "B": Size((outputs, rank, *[1] * len(kernel)))}

    def ours(self, matrix: Tensor) -> Tensor:
        """A or B of a file as we have it."""
        if self.is_image and matrix.ndim == 4 and matrix.shape[2:] == (1, 1):
            return matrix.flatten(1)
        if len(self.weight) == 4 and matrix.ndim == 2:  # 1x1 convolutions may be stored flat
            return matrix[:, :, None, None]
        return matrix

    def theirs(self, matrix: Tensor) -> Tensor:
        """A or B of ours as a file has it."""
        return matrix[:, :, None, None] if self.is_image else matrix


def folder_of(network: str) -> str:
    """The folder that a network has in the diffusers layout."""
    return _convert().PARTS[network].folder


def places(configs: Mapping[str, Any]) -> dict[str, tuple[Place, ...]]:
    """Of each network that can be adapted: its linear layers and convolutions, in the order of our modules.

    Args:
        configs: of all networks of a model.
    """
    return {name: _places(name, configs[name]) for name in NETWORKS if name in configs}


@lru_cache(maxsize=2 * len(NETWORKS))  # two models' worth: every file of an adapter asks
def _places(name: str, config: Any) -> tuple[Place, ...]:
    convert = _convert()
    shapes = expected_shapes(name, config)
    moves = convert.keymap.plan(shapes, convert.keymap.reverse(convert.PARTS[name].rows(config)))
    theirs = {move.source: move for move in moves}
    prefix = "transformer." if name == "gpt2" else ""  # as `gpt2.with_language_head` has it
    found = []
    for path, layer in build_on_meta(name, config).named_modules():
        if isinstance(layer, (Linear, Conv2d)):
            move = theirs[f"{path}.weight"]
            is_image = (
                move.row.transform is not None and move.row.transform.name == convert.keymap.pointwise.name
            )
            module = prefix + str(move.target).removesuffix(".weight")
            found.append(Place(name, path, module, shapes[f"{path}.weight"], is_image))
    return tuple(found)


def table(found: Mapping[str, tuple[Place, ...]], network: str) -> dict[str, Place]:
    """Every name that a file may have for a layer.

    Args:
        found: what `places` returned.
        network: the one that names without a network's prefix belong to.
    """
    names: dict[str, Place] = {}
    for name, group in found.items():
        for place in group:
            spellings = {place.module, place.module.removeprefix("transformer.")}
            for module in spellings:
                names[f"{folder_of(name)}.{module}"] = place
                if name == network:
                    names |= {module: place, PEFT + module: place}
            if name in KOHYA:
                names[KOHYA[name] + place.module.replace(".", "_")] = place
    return names


def _convert() -> Any:
    from audioldm2.checkpoints.converter import require_converter

    require_converter()
    from audioldm2 import convert

    return convert
