"""Errors in words: which ones a user can cause, and the sentence for each."""

import torch

from audioldm2.cli.arguments import Parser
from audioldm2.errors import ArgumentError, WeightsError

# PyTorch raises a plain RuntimeError for most of these, so that only the text tells them apart.
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, MPS, ROCm
    "not enough memory",  # the CPU's allocator on Windows
    "can't allocate memory",  # ... and elsewhere
    "Cannot allocate memory",  # the system's own words, as from mmap
    "Invalid buffer size",  # MPS, a tensor larger than Metal allows
    "Storage size calculation overflowed",
    "multiplication overflow",  # a number of elements beyond 64 bits
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
DEVICE_FAILED = (
    "CUDA error",
    "HIP error",
    "CUDA driver error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "MPS error",
)


def in_words(error: Exception, parser: Parser, out_of_memory: str) -> str | None:
    """The sentence for an error; None for a bug of this program, which deserves its traceback.

    Args:
        parser: of the command, for the flags that set the library's arguments.
        out_of_memory: what to try when memory runs out.
    """
    if isinstance(error, ArgumentError):
        return error.sentence(parser.flag_of(error.name))
    if is_out_of_memory(error):
        return f"not enough memory. {out_of_memory}"
    if isinstance(error, (ValueError, WeightsError, FloatingPointError)):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, RuntimeError):
        first = (str(error).splitlines() or [""])[0]
        if is_device_failure(error):
            return f"the device has failed ({first}). Run it again, or on another device with --device cpu."
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the computer or a device has run out of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether a device has failed, and may answer no more in this process."""
    named = isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_FAILED)
    return named and not is_out_of_memory(error)
