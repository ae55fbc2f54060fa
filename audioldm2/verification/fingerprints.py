"""Fingerprints of tensors: two copies of a checkpoint are compared by a small file in place of gigabytes.

A fingerprint holds hashes of the values in float32 and float16, and what survives rounding: mean, standard
deviation and eight samples. Equal hashes prove equal values. Where they differ because a copy is rounded to
bfloat16, or because another machine folded a weight norm, the rest is evidence that it is the same tensor.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HASH_DIGITS = 16  # hexadecimal, of a SHA-256
SAMPLES = 8  # values at evenly spaced places
NEAR = {  # dtype of a copy -> how far its rounding moves a value, relative, with a margin
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
MOSTLY = 0.5  # share of a network's tensors that differ, from which on the whole network is another

SAME, ROUNDED, OTHER = "same", "rounded", "other"


@dataclass(frozen=True)
class Fingerprint:
    """What identifies one tensor."""

    float32: str  # hash of the values in float32, in order, with the shape
    float16: str  # the same after rounding to float16
    mean: float
    std: float
    samples: tuple[float, ...]


def fingerprint(tensor: Tensor) -> Fingerprint:
    """The fingerprint of a tensor of any floating dtype."""
    values = tensor.detach().to("cpu", torch.float32).contiguous().flatten()
    places = torch.linspace(0, len(values) - 1, SAMPLES, dtype=torch.float64, device="cpu").round().long()
    shape = tuple(tensor.shape)
    return Fingerprint(
        float32=_hash(values, shape),
        float16=_hash(values.to(torch.float16), shape),
        mean=_short(values.double().mean()),
        std=_short(values.double().std(correction=0)),
        samples=tuple(_short(value) for value in values[places]),
    )


def _hash(values: Tensor, shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(values.numpy().astype(values.numpy().dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()[:HASH_DIGITS]


def _short(value: Tensor) -> float:
    return float(f"{value.item():.6g}")


def kinship(found: Fingerprint, expected: Fingerprint, dtype: torch.dtype = torch.float32) -> str:
    """Whether a tensor, stored in `dtype`, holds the right values: the SAME, ROUNDED ones, or OTHER ones."""
    if found.float32 == expected.float32:
        return SAME
    if dtype == torch.float16 and found.float16 == expected.float16:
        return ROUNDED
    relative = NEAR[dtype]
    scale = relative * max(expected.std, abs(expected.mean))
    pairs = [(found.mean, expected.mean), (found.std, expected.std)]
    near = all(abs(a - b) <= scale for a, b in pairs)
    near &= all(
        abs(a - b) <= max(scale, relative * abs(b))
        for a, b in zip(found.samples, expected.samples, strict=True)
    )
    return ROUNDED if near else OTHER


@dataclass(frozen=True)
class Comparison:
    """How the tensors of one network compare with the right ones."""

    tensors: int
    rounded: int
    swapped: dict[str, str]  # key -> whose values it holds, "network.key"
    differing: list[str]  # keys with values found nowhere in the right checkpoint

    @property
    def is_other(self) -> bool:
        """Whether most tensors differ, as those of another model or another revision do."""
        return len(self.differing) > MOSTLY * self.tensors


def compare(
    network: str,
    found: Mapping[str, Fingerprint],
    expected: Mapping[str, Mapping[str, Fingerprint]],
    dtypes: Mapping[str, torch.dtype],
) -> Comparison:
    """Compare one network with the right checkpoint.

    Args:
        network: its name.
        found: key -> fingerprint.
        expected: network -> key -> fingerprint, of all networks: a tensor may have come from any.
        dtypes: key -> dtype that the copy is stored in.
    """
    owners: dict[str, list[str]] = {}
    for owner, prints in expected.items():
        for key, each in prints.items():
            owners.setdefault(each.float16, []).append(f"{owner}.{key}")
    right = expected[network]
    kinds = {
        key: kinship(each, right[key], dtypes[key]) if key in right else OTHER for key, each in found.items()
    }
    others = [key for key, kind in kinds.items() if kind == OTHER]
    # Values that several tensors share, such as all ones, do not tell whose they are.
    swapped = {
        key: owners[found[key].float16][0] for key in others if len(owners.get(found[key].float16, [])) == 1
    }
    return Comparison(
        tensors=len(found),
        rounded=Counter(kinds.values())[ROUNDED],
        swapped=swapped,
        differing=[key for key in others if key not in swapped],
    )
