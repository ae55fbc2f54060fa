"""The dtype that each network computes in.

Half the bits take half the memory and, where the processor multiplies faster in them, less time. What they
cost differs: the denoiser corrects at the next step what it rounds now, the decoder's rounding stays in the
sound.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2 import ops
from audioldm2.errors import require_choice
from audioldm2.models import expected_shapes
from audioldm2.ops import trial_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Weights that stay float32 in a float16 model, where their sums overflow; the reference keeps the same.
FLOAT32_IN_FLOAT16 = {"t5": re.compile(r"\.ff\.out\.")}
# Networks that stay float32 on a CPU where others are bfloat16. The VAE decoder's rounding lies only 32 to 38
# dB below the spectrogram, the vocoder's 36 to 42 dB below the sound, most of it in its last and cheapest
# stages (scripts/benchmark/compare_precision.py, two random checkpoints of the published base size). CLAP's
# scores tell candidates apart that are nearly equal.
EXACT = ("vae", "hifigan", "clap_audio")
# Denoisers with fewer weights take as long in bfloat16, because little of the time is arithmetic.
WORTH_HALVING = 30_000_000
GAIN = 1.15  # how many times as fast bfloat16 has to be on a CPU before "auto" takes it


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of a matrix product and a convolution, of the denoiser's sizes, in both dtypes."""

    float32: float
    bfloat16: float

    @property
    def chosen(self) -> torch.dtype:
        return torch.bfloat16 if self.float32 >= GAIN * self.bfloat16 else torch.float32

    def __str__(self) -> str:
        return (
            f"bfloat16 is {self.float32 / self.bfloat16:.2f} times as fast as float32 on this processor "
            f"({self.bfloat16:.2f} against {self.float32:.2f} ms in a trial); {GAIN} is required"
        )


@lru_cache
def compare_on_cpu(threads: int) -> Comparison:
    """Time both dtypes on this processor, some tens of milliseconds; the fastest of several runs counts.

    Processor flags do not decide this: bfloat16 is slower than float32 on some that have instructions for it.
    Later processes on this machine use the same figures (`ops.trial_file`).
    """
    trial = f"milliseconds in float32 and bfloat16, threads={threads}"
    return Comparison(*trial_file.finding(trial, _milliseconds, _is_pair))


def _is_pair(found: Any) -> bool:
    return isinstance(found, list) and [isinstance(each, float) and each > 0 for each in found] == [
        True,
        True,
    ]


def _milliseconds() -> list[float]:
    """Of the trial in float32 and in bfloat16."""
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    given = {dtype: _denoiser_like(dtype) for dtype in seconds}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for round_ in range(5):
            for dtype, (x, weight, image, kernel) in given.items():
                start = time.perf_counter()
                ops.linear(x, weight)
                F.conv2d(image, kernel, padding=1)
                if round_:  # the first run of each prepares
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return [1000 * each for each in seconds.values()]


def _denoiser_like(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A linear layer and a convolution in about the proportions of a step, laid out as `placement` does."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = (1024, 512), (2048, 512), (1, 256, 64, 8), (256, 256, 3, 3)
    x, weight, image, kernel = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(dtype)
        for shape in shapes
    )
    if dtype == torch.bfloat16:
        kernel = kernel.to(memory_format=torch.channels_last)
    return x, weight, image, kernel


def require_dtype(dtype: str | torch.dtype) -> str:
    """ "auto" or a name from `DTYPES`; ArgumentError for any other."""
    return require_choice("dtype", str(dtype).removeprefix("torch."), ["auto", *DTYPES])


def choose(
    name: str, device: torch.device, configs: Mapping[str, Any]
) -> tuple[dict[str, torch.dtype], Comparison | None]:
    """The dtype of each network, and the measurement that decided, if one did.

    Args:
        name: a name from `DTYPES`, for all networks; or "auto": float16 on CUDA; on a CPU bfloat16 where it
            is faster by GAIN, for all networks but those in EXACT; else float32.
        device: where the networks run.
        configs: of the networks, by name.
    """
    if name != "auto":
        return dict.fromkeys(configs, DTYPES[name]), None
    if device.type == "cuda":
        return dict.fromkeys(configs, torch.float16), None
    dtypes = dict.fromkeys(configs, torch.float32)
    if device.type != "cpu" or _size(configs["unet"]) < WORTH_HALVING:
        return dtypes, None
    comparison = compare_on_cpu(torch.get_num_threads())
    dtypes |= {network: comparison.chosen for network in configs if network not in EXACT}
    return dtypes, comparison


def _size(unet: Any) -> int:
    return sum(shape.numel() for shape in expected_shapes("unet", unet).values())


def describe(dtypes: Mapping[str, torch.dtype]) -> str:
    """In words, such as "float32", or "bfloat16, float32 for vae, hifigan"."""
    most = dtypes["unet"]
    others = [name for name, dtype in dtypes.items() if dtype != most]
    words = str(most).removeprefix("torch.")
    if others:
        words += f", {str(dtypes[others[0]]).removeprefix('torch.')} for {', '.join(others)}"
    return words


def cast(name: str, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight of network `name` in `dtype`, or float32 for the few that need it; uncopied if it is so."""
    keep = FLOAT32_IN_FLOAT16.get(name)
    if dtype == torch.float16 and keep and keep.search(key):
        dtype = torch.float32
    return tensor.to(dtype)
