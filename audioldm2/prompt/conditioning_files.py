"""The safetensors file of a saved conditioning."""

import os
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audioldm2.errors import ArgumentError, some
from audioldm2.files import atomic_write, failed_download

TENSORS = ("gpt2_context", "text_context", "t5_mask", "clap_vector")
NEGATIVE = "negative."  # prefix of the negative part's names
RENAMED = {"t5_context": "text_context"}  # names of version 0.1


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors named as in TENSORS, some after NEGATIVE; completely or not at all."""
    # Copies, because the format rejects tensors that share memory.
    copies = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(copies))


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, here or in version 0.1, under today's names.

    Raises:
        ArgumentError: the file is damaged or of another kind.
        OSError: from the system, unchanged.
    """
    mistaken = failed_download(path)
    if mistaken:
        raise not_a_conditioning(path, f"it is {mistaken[0]}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            # Copies, because the file may change later.
            found = {_current_name(name): file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise not_a_conditioning(path, str(error)) from error
    odd = sorted(found.keys() - {*TENSORS, *(NEGATIVE + name for name in TENSORS)})
    if odd:
        raise not_a_conditioning(path, f"it contains {some(odd)}")
    return found


def not_a_conditioning(path: str | os.PathLike, reason: str) -> ArgumentError:
    given = f"is not a saved conditioning ({reason.rstrip('.')})"
    return ArgumentError(str(path), path, "be a file that Conditioning.save wrote", given=given)


def _current_name(name: str) -> str:
    prefix = NEGATIVE if name.startswith(NEGATIVE) else ""
    plain = name.removeprefix(prefix)
    return prefix + RENAMED.get(plain, plain)
