"""How seconds become latent frames and samples in a model."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from audioldm2.audio import DEFAULT_SECONDS
from audioldm2.errors import ArgumentError
from audioldm2.options import OVERLAP, SamplingOptions, require_float_tensor
from audioldm2.sampling.windows import Windows


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
        """Latent frames that hold a sound; its mel frames are rounded down, as in the reference."""
        return math.ceil(int(seconds / (self.hop / self.sample_rate)) / self.downsampling)

    def samples(self, seconds: float) -> int:
        return int(seconds * self.sample_rate)

    def seconds(self, latent_frames: int) -> float:
        return latent_frames * self.downsampling * self.hop / self.sample_rate

    def latents(self, batch: int, latent_frames: int) -> tuple[int, int, int, int]:
        """(batch, channels, time, mel) of a batch of latents."""
        return (batch, self.latent_channels, latent_frames, self.mels // self.downsampling)

    def windows(self, options: SamplingOptions, latent_frames: int) -> Windows:
        """Where windows lie over a latent, as the options ask.

        A loop without `window_seconds` has a single window that overlaps itself.

        Raises:
            ArgumentError: a window is too short for the model, or a loop for its overlaps.
        """
        length = latent_frames
        if options.window_seconds is not None:
            length = self.latent_frames(options.window_seconds)
            if length < 2:
                allowed = f"be at least {self.seconds(2):g} seconds, two latent frames"
                raise ArgumentError("window_seconds", options.window_seconds, allowed)
        elif options.overlap != OVERLAP and not options.loop:
            allowed = "be left out unless the sound is a loop, or denoised in windows"
            raise ArgumentError("overlap", options.overlap, allowed)
        overlap = max(1, int(options.overlap * length + 1e-9))  # 0.29 * 100 is 28.999...
        if options.loop and latent_frames < 2 * overlap:
            wanted = (
                f"be at least two overlaps long, {self.seconds(2 * overlap):g} s: ask for a longer sound, a "
                "shorter window or less overlap"
            )
            given = f"is a sound of {self.seconds(latent_frames):g} s"
            raise ArgumentError("loop", options.loop, wanted, given=given)
        if options.loop and options.window_seconds is None:
            length += overlap
        return Windows.over(latent_frames, max(length, 2), overlap, options.loop)

    def require_latents(self, latents: Any, prompts: int) -> Tensor:
        """Check the latents that `denoise` starts from; ArgumentError where they do not fit the prompts."""
        require_float_tensor("latents", latents)
        shape = self.require_map("latents", latents).shape
        if prompts < 1:
            raise ArgumentError("conditioning", prompts, "have one for each prompt", given="has no rows")
        if shape[0] < 1 or shape[0] % prompts:
            wanted = f"have a multiple of {prompts}, the rows of the conditioning"
            raise ArgumentError("latents", latents, wanted, given=f"has {shape[0]} rows")
        return latents

    def require_map(self, name: str, value: Any) -> Tensor:
        """Latents (batch, channels, time, mel) of this model, or as "mel" spectrograms (batch, time, mels).

        Raises:
            ArgumentError: the value is not a float tensor of such a shape.
        """
        _, channels, _, bands = self.latents(1, 1)
        axes: tuple[int | str, ...] = ("batch", channels, "time", bands)
        if name == "mel":
            axes = ("batch", "time", self.mels)
        if not isinstance(value, Tensor):
            given = f"is a {type(value).__name__}"
        elif not value.is_floating_point():
            given = f"has dtype {value.dtype}"
        elif (
            len(value.shape) == len(axes)
            and value.numel()
            and all(axis in ("batch", "time", size) for axis, size in zip(axes, value.shape, strict=True))
        ):
            return value
        else:
            given = f"has shape {tuple(value.shape)}"
        allowed = f"be a float tensor of shape ({', '.join(map(str, axes))}) for this model"
        raise ArgumentError(name, value, allowed, given=given)
