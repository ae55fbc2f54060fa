"""How many sounds fit into memory at once, and a sentence before the work begins where not one does."""

import os
from pathlib import Path

import torch

from audioldm2.errors import ArgumentError
from audioldm2.models.unet import UNetConfig
from audioldm2.models.vae import VAEConfig
from audioldm2.ops.heap import trim_heap

__all__ = [
    "available_bytes", "bytes_for_one_sound", "bytes_to_encode", "require_to_fit", "sounds_at_once",
    "trim_heap", "windows_at_once",
]  # fmt: skip

# Feature maps of its finest level that one call of the UNet holds at its peak. Measured on the published base
# with 61 to 2500 frames: 29 to 39, fewer for longer sounds.
UNET_MAPS = 40
MOST_WINDOWS = 8  # of a sound at once: more gain little speed
# The same of the VAE's encoder, which sees a sound whole: 4.1 of the published one for 5 to 20 s.
ENCODER_MAPS = 5
USABLE = 0.8  # of what is free: other programs run too


def bytes_for_one_sound(config: UNetConfig, frames: int, mel: int, guided: bool, dtype: torch.dtype) -> int:
    """Bytes that denoising one sound of `frames` latent frames takes beside the weights: linear in frames.

    The later stages take less: they run one sound at a time, long ones in windows (`tiling`).
    """
    rows = 2 if guided else 1  # guidance predicts with the prompt and with the negative one at once
    return UNET_MAPS * config.channels[0] * frames * mel * dtype.itemsize * rows


def bytes_to_encode(config: VAEConfig, frames: int, mels: int, dtype: torch.dtype) -> int:
    """Bytes that encoding one sound of `frames` mel frames takes beside the weights: linear in frames."""
    return ENCODER_MAPS * config.channels[0] * frames * mels * dtype.itemsize


def available_bytes(device: torch.device) -> int | None:
    """Bytes still available on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [_available_on_linux(), _left_in_control_group()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _physical()


def sounds_at_once(needed: int, device: torch.device, seconds: float, name: str = "audio_length_in_s") -> int:
    """How many sounds, or windows, of `needed` bytes each can be denoised in one batch; at least one.

    Raises ArgumentError when one does not fit; the message says how many seconds would. `name` is the
    argument that decides the length.
    """
    usable = require_to_fit(needed, device, seconds, name)
    return 1 if usable is None else usable // needed


def require_to_fit(needed: int, device: torch.device, seconds: float, name: str) -> int | None:
    """The bytes that a request may use; ArgumentError where a sound of `seconds` needs more.

    None where the system does not say.
    """
    available = available_bytes(device)
    if available is None:
        return None
    usable = int(available * USABLE)
    if needed > usable:
        is_length = name in ("audio_length_in_s", "window_seconds")  # else a sound, which lasts so long
        allowed = (
            f"{'be' if is_length else 'last'} at most about {seconds * usable / needed:,.0f} seconds: "
            f"{seconds:g} need some {needed / 1e9:,.1f} GB beside the model, and {usable / 1e9:,.1f} GB can "
            f"be used on {device}"
        )
        raise ArgumentError(name, seconds, allowed, given=None if is_length else f"lasts {seconds:g} seconds")
    return usable


def windows_at_once(needed: int, device: torch.device, seconds: float, name: str) -> int:
    """As `sounds_at_once`, for windows of one sound: memory stays the same however long the sound is."""
    return min(sounds_at_once(needed, device, seconds, name), MOST_WINDOWS)


def _available_on_linux() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _left_in_control_group(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still take (control groups, version 2).

    Pages of files count as used there, mapped weights among them, but give way when memory is wanted.
    """
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    files = int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0))
    return max(int(limit) - max(used - files, 0), 0)


def _physical() -> int | None:
    """All the memory of a computer that does not say what is free, such as a Mac."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
