"""In which dtype each network computes.

Half the bits take half the memory, and where the hardware has units for them, half of the time or less. What
they cost differs: the denoiser corrects at the next step what it rounds now, the decoder's rounding is heard
as it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.models import expected_shapes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Weights that stay float32 in a float16 model, where their sums overflow; the reference keeps the same.
FLOAT32_IN_FLOAT16 = {"t5": re.compile(r"\.ff\.out\.")}
# Networks that stay float32 on a CPU where others are bfloat16. What the VAE's decoder rounds is only 32 to
# 38 dB below the spectrogram, what the vocoder does 36 to 42 dB below the sound, most of it in its last and
# cheapest stages (scripts/compare_precision.py, two random checkpoints of the published base size). CLAP's
# scores tell candidates apart that are nearly equal.
EXACT = ("vae", "hifigan", "clap_audio")
# Fewer weights than this in the denoiser: bfloat16 takes as long, because little of the time is arithmetic.
WORTH_HALVING = 30_000_000
# What processors call it that multiply in bfloat16: x86 by AVX-512 or AMX, and ARM.
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def name_of(dtype: str | torch.dtype) -> str:
    """ "auto" or a name from `DTYPES`; ValueError lists them for any other."""
    name = str(dtype).removeprefix("torch.")
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not supported; choose 'auto' or one of {', '.join(DTYPES)}.")
    return name


def usual(device: torch.device) -> torch.dtype:
    """What "auto" means for the denoiser of a published model."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and multiplies_in_bfloat16() else torch.float32


def of_networks(name: str, device: torch.device, configs: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """The dtype of each network: the one that was asked for or, of "auto", the `usual` one where it pays."""
    if name != "auto":
        return dict.fromkeys(configs, DTYPES[name])
    found = dict.fromkeys(configs, usual(device))
    if device.type == "cpu":
        denoiser = sum(shape.numel() for shape in expected_shapes("unet", configs["unet"]).values())
        exact = EXACT if denoiser >= WORTH_HALVING else configs
        found |= {network: torch.float32 for network in exact if network in configs}
    return found


def multiplies_in_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor does; False where the system does not tell, as outside of Linux."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return any(BFLOAT16 & set(each.split()) for each in flags)


def describe(dtypes: Mapping[str, torch.dtype]) -> str:
    """In words, such as "float32", or "bfloat16, float32 for vae, hifigan"."""
    most = dtypes["unet"]
    others = [name for name, dtype in dtypes.items() if dtype != most]
    told = str(most).removeprefix("torch.")
    if others:
        told += f", {str(dtypes[others[0]]).removeprefix('torch.')} for {', '.join(others)}"
    return told


def cast(name: str, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight of network `name` in `dtype`, or float32 for the few that need it; uncopied if it is so."""
    keep = FLOAT32_IN_FLOAT16.get(name)
    if dtype == torch.float16 and keep and keep.search(key):
        dtype = torch.float32
    return tensor.to(dtype)
