"""A sound edited by text: from what a source prompt says of it to what a target prompt says."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from audioldm2 import option_rules
from audioldm2.edit_options import EditOptions
from audioldm2.editing.edit import read_sound
from audioldm2.editing.input_sound import InputSound, log_mel
from audioldm2.errors import ArgumentError
from audioldm2.sampling.inversion import edit_directly, invert, require_invertible
from audioldm2.sampling.repainting import Walk
from audioldm2.sampling.samplers import Denoiser, Noise, OnStep
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape


@dataclass(frozen=True, eq=False)
class TextEdit:
    """What `AudioLDM2.edit` does to a sound; it has the same face as `editing.edit.Edit`."""

    sound: InputSound
    shape: SoundShape
    walk: Walk
    first: int  # the step at which the edit starts
    options: EditOptions

    @staticmethod
    def resolve(audio: Any, options: EditOptions, shape: SoundShape, schedule: NoiseSchedule) -> "TextEdit":
        """Read the sound and find the steps.

        Args:
            audio: a file, or floats (samples,).
            options: what was asked for.
            shape: the model's.
            schedule: the model's.

        Raises:
            ArgumentError: the sound cannot be used, or the options do not fit each other.
            OSError: the file cannot be opened.
        """
        given = option_rules.sound("audio", audio)
        if given is None:
            raise ArgumentError("audio", audio, "be a sound file or floats (samples,)")
        walk = options.walk(schedule)
        if options.method == "ddpm":
            require_invertible(walk)
        sound = read_sound(given, options.audio_sample_rate, shape)
        return TextEdit(sound, shape, walk, first_step_left(walk, options.skip), options)

    @property
    def seconds(self) -> float:
        return self.sound.seconds

    @property
    def frames(self) -> int:
        """Latent frames that hold the sound."""
        return math.ceil(len(self.sound.wave) / self.shape.frame_samples)

    @property
    def denoises(self) -> bool:
        return True

    @property
    def source_prompt(self) -> str:
        return self.options.source_prompt or ""

    def log_mel(self) -> Tensor:
        """(1, 1, time, mels) of the sound; see `log_mel`."""
        return log_mel(self.sound, self.shape, self.frames)

    def denoise(
        self,
        target: Denoiser,
        noise: Tensor,
        *,
        source: Denoiser,
        given: Tensor,
        rows: slice,
        step_noise: Noise,
        on_step: OnStep | None,
    ) -> Tensor:
        """Edited latents for some rows of the batch, from the sound's latent `given` (1, ...).

        All noise comes from `step_noise`; `noise`, the start of a walk without a sound, gives the shape.
        """
        z = given.to(noise.device).expand_as(noise)
        if self.options.method == "direct":
            return edit_directly(source, target, z, self.walk, step_noise, first=self.first, on_step=on_step)
        return invert(source, z, self.walk, step_noise, first=self.first).follow(target, on_step)

    def finish(self, wave: Tensor) -> Tensor:
        """Vocoded waves (batch, samples) at the sound's level and length."""
        return self.sound.at_own_level(wave)[:, : len(self.sound.wave)]

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "audio": self.sound.record(),
            "source_prompt": self.source_prompt,
            "method": self.options.method,
            "skip": self.options.skip,
            "source_guidance_scale": self.options.source_guidance_scale,
            "steps_taken": self.walk.steps - self.first,
        }


def first_step_left(walk: Walk, skip: float) -> int:
    """The step at which an edit starts that skips a share of the steps: int(steps * (1 - skip)) are left.

    Raises:
        ArgumentError: none is left.
    """
    left = int(walk.steps * (1 - skip) + 1e-9)  # 100 * (1 - 0.71) is 28.999...
    if left == 0:
        most = math.floor(1e4 * (1 - 1 / walk.steps)) / 1e4
        raise ArgumentError("skip", skip, f"be at most {most:g}, so that one of {walk.steps} steps is left")
    return walk.first_of(walk.steps - left)
