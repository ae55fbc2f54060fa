"""How seconds become latent frames and samples in a model."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from audioldm2.audio import DEFAULT_SECONDS
from audioldm2.errors import ArgumentError
from audioldm2.options import require_float_tensor


@dataclass(frozen=True)
class SoundShape:
    """How seconds become latent frames and samples in a model."""

    sample_rate: int  # Hz
    hop: int  # samples to one mel frame
    downsampling: int  # mel frames, and bands, to one latent frame or band
    latent_channels: int
    mels: int
    default_seconds: float = DEFAULT_SECONDS  # of a sound, where nobody says

    @property
    def frame_samples(self) -> int:
        """Samples to one latent frame: 640, 40 ms, in the published model."""
        return self.hop * self.downsampling

    def latent_frames(self, seconds: float) -> int:
        """Whole mel frames in so many seconds, raised to whole latent frames; rounded as in the reference."""
        return math.ceil(int(seconds / (self.hop / self.sample_rate)) / self.downsampling)

    def samples(self, seconds: float) -> int:
        return int(seconds * self.sample_rate)

    def seconds(self, latent_frames: int) -> float:
        return latent_frames * self.downsampling * self.hop / self.sample_rate

    def latents(self, batch: int, latent_frames: int) -> tuple[int, int, int, int]:
        """(batch, channels, time, mel) of a batch of latents."""
        return (batch, self.latent_channels, latent_frames, self.mels // self.downsampling)

    def require_latents(self, latents: Any, prompts: int) -> Tensor:
        """Latents that `denoise` can start from, for so many encoded prompts; ArgumentError for others."""
        require_float_tensor("latents", latents)
        _, channels, _, mel = self.latents(1, 1)
        shape = tuple(latents.shape)
        if len(shape) != 4 or shape[1] != channels or shape[3] != mel or shape[2] < 1:
            wanted = f"have shape (batch, {channels}, time, {mel}) for this model"
            raise ArgumentError("latents", latents, wanted, given=f"has shape {shape}")
        if prompts < 1:
            raise ArgumentError("conditioning", prompts, "have one for each prompt", given="has no rows")
        if shape[0] < 1 or shape[0] % prompts:
            wanted = f"have a multiple of {prompts}, the rows of the conditioning"
            raise ArgumentError("latents", latents, wanted, given=f"has {shape[0]} rows")
        return latents
