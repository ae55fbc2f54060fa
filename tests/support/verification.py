"""One small random checkpoint in all three layouts, and what spoils a copy of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.verification import CHECKS, Facts, Finding, facts_of, open_subject, verify
from tests.support import checkpoints, originals
from tests.support.checkpoints import State

CPU = torch.device("cpu")
BLOCK = "down.1.layers.0.self_attn.blocks.0"  # of our UNet
UNET = {  # layout -> the file with the UNet, and BLOCK there
    "converted": ("unet.safetensors", BLOCK),
    "diffusers": (
        "unet/diffusion_pytorch_model.safetensors",
        "down_blocks.1.attentions.0.transformer_blocks.0",
    ),
    "original.pth": ("", "model.diffusion_model.input_blocks.3.1.transformer_blocks.0"),
}
NORMS = {
    "converted": ("self_norm", "ff_norm"),
    "diffusers": ("norm1", "norm3"),
    "original.pth": ("norm1", "norm3"),
}
LAYOUTS = ("converted", "diffusers", "original.pth")
NAMES = [check.name for check in CHECKS]


def write_layouts(folder: Path) -> None:
    """Write the same checkpoint three times: `converted`, `diffusers`, `original.pth`; and its tokenizers."""
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
    checkpoints.write_tokenizers(folder / "tokenizer", folder / "tokenizer_2")
    original = originals.save(folder / "original.pth", table())
    checkpoint = open_checkpoint(original)
    storage.write(checkpoint, folder / "converted")
    convert.write_diffusers(checkpoint, folder / "diffusers")


def table(kind: str = "base") -> dict[str, Tensor]:
    """An original file's tensors, with a vocoder that follows its input: a full tanh would hide errors."""
    found, last = originals.table_of(kind), "first_stage_model.vocoder.conv_post"
    return found | {f"{last}.weight": 3 * found[f"{last}.weight"], f"{last}.bias": 0 * found[f"{last}.bias"]}


def findings(model: Path, facts: Facts | None, *checks: str, **more: object) -> dict[str, Finding]:
    """What some checks find, by name."""
    subject = open_subject(str(model), device=CPU, given=facts, **more)
    skip = set(NAMES) - set(checks) if checks else ()
    return {finding.check: finding for finding in verify(subject, skip=skip)}


def failures(found: Mapping[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.status == "failed"]


def facts_from(model: Path, **more: object) -> Facts:
    return facts_of(open_subject(str(model), device=CPU), **more)


def unet_file(folder: Path, layout: str) -> Path:
    """The file that holds the UNet in a layout."""
    return folder / layout / UNET[layout][0] if UNET[layout][0] else folder / layout


def norm_keys(layout: str) -> tuple[str, str]:
    """The weights of the first and the last norm of BLOCK, under their keys in a layout."""
    first, last = (f"{UNET[layout][1]}.{norm}.weight" for norm in NORMS[layout])
    return first, last


def change_unet(folder: Path, layout: str, change: Callable[[State], State]) -> None:
    """Replace some tensors of the file that holds the UNet by those that `change` returns."""
    file = unet_file(folder, layout)
    if file.suffix == ".pth":
        found = torch.load(file, weights_only=True)["state_dict"]
        originals.save(file, found | change(found))
    else:
        checkpoints.change_state(file, lambda state: state | change(state))


def change_converted(folder: Path, network: str, change: Callable[[State], State]) -> None:
    """Replace some tensors of a network in the converted folder."""
    file = folder / "converted" / f"{network}.safetensors"
    checkpoints.change_state(file, lambda state: state | change(state))


def swap(*keys: str) -> Callable[[State], State]:
    """Give two tensors each other's values."""
    return lambda state: dict(zip(keys, [state[key].clone() for key in reversed(keys)], strict=True))
