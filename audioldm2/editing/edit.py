"""A sound to begin with: prepared for the model, what of it is remade, and put back at its own level.

Times and frequencies widen to whole latent cells. Samples before and after a remade part are the sound's own:
its ends fade over 20 ms inside the remade part. Where only some bands are remade, the others come from the
sound too (`spectral_splice`). (The decoder's norms and attention see the whole sound, and the vocoder chooses
its own phase, so decoded samples differ everywhere, even where latents are kept.)
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import read
from audioldm2.editing.input_sound import InputSound, log_mel
from audioldm2.editing.latent_cells import PARTS, RANGES, band_bounds, fade_samples, remade_cells, runs
from audioldm2.editing.spectral_splice import splice
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.sampling.repainting import Walk, repaint
from audioldm2.sampling.samplers import Denoiser, Noise, OnStep
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

EDITING_OPTIONS = ("audio", "audio_sample_rate", "strength", *PARTS, "resample_times")


@dataclass(frozen=True, eq=False)
class Edit:
    """What a request does to a sound: times, frequencies and strength in latent cells and steps."""

    sound: InputSound
    shape: SoundShape
    walk: Walk
    strength: float
    first: int  # the step at which denoising starts; `walk.steps` for none
    frames: int  # latent frames of the result
    before: int  # of them in front of the sound
    offset: int  # samples cut from the start, where the seconds in front are no whole latent frames
    samples: int  # of the result
    remake: Tensor | None  # bool (1 or batch, 1, time, mel); None: everywhere
    resample_times: int
    asked: dict[str, Any]  # options for the record

    @staticmethod
    def resolve(
        options: GenerationOptions, shape: SoundShape, schedule: NoiseSchedule, batch: int
    ) -> "Edit | None":
        """Read the sound and find what is remade; None without `audio`.

        Args:
            options: what was asked for.
            shape: the model's.
            schedule: the model's.
            batch: prompts * waveforms.

        Raises:
            ArgumentError: the sound cannot be used, or the options do not fit it or each other.
            OSError: the file cannot be opened.
        """
        _check_combinations(options)
        if options.audio is None:
            return None
        sound = read_sound(options.audio, options.audio_sample_rate, shape)
        parts = any(getattr(options, name) is not None for name in PARTS)
        strength = options.strength if options.strength is not None else (1.0 if parts else 0.5)
        walk = Walk(options.sampler, schedule, options.num_inference_steps, options.eta, options.karras)
        seconds_before, seconds_after = options.extend_seconds or (0.0, 0.0)
        lead, tail = (int(each * shape.sample_rate) for each in (seconds_before, seconds_after))
        cell = shape.frame_samples
        before = math.ceil(lead / cell)
        frames = before + math.ceil((len(sound.wave) + tail) / cell)
        remake = remade_cells(options, sound, shape, frames, before, tail, batch)
        if options.resample_times > 1 and (remake is None or remake.all()):
            allowed = "be 1 where nothing of the sound is kept"
            raise ArgumentError("resample_times", options.resample_times, allowed)
        return Edit(
            sound=sound,
            shape=shape,
            walk=walk,
            strength=strength,
            first=_first_step(walk, strength),
            frames=frames,
            before=before,
            offset=before * cell - lead,
            samples=lead + len(sound.wave) + tail,
            remake=remake,
            resample_times=options.resample_times,
            asked={name: getattr(options, name) for name in (*RANGES, "extend_seconds")},
        )

    @property
    def seconds(self) -> float:
        return self.samples / self.shape.sample_rate

    @property
    def denoises(self) -> bool:
        """Whether any step runs."""
        return self.first < self.walk.steps

    @property
    def keeps_something(self) -> bool:
        """False where the result is what `generate` gives without the sound."""
        return self.first > 0 or (self.remake is not None and not bool(self.remake.all()))

    def log_mel(self) -> Tensor:
        """(1, 1, time, mels) of the sound in its place; see `log_mel`."""
        return log_mel(self.sound, self.shape, self.frames, self.before)

    def denoise(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        *,
        given: Tensor,
        rows: slice,
        step_noise: Noise | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """Clean latents of some rows of the batch, from the sound's latent `given` (1, ...) and noise."""
        remake = self.remake if self.remake is None or len(self.remake) == 1 else self.remake[rows]
        return repaint(
            denoiser,
            given.to(noise.device).expand_as(noise),
            noise,
            self.walk,
            remake=None if remake is None else remake.to(noise.device),
            first=self.first,
            resample_times=self.resample_times,
            step_noise=step_noise,
            on_step=on_step,
        )

    def finish(self, wave: Tensor) -> Tensor:
        """Put vocoded waves (batch, samples) at the sound's level, and its own samples and bands where kept.

        Returns:
            (batch, self.samples).
        """
        part = slice(self.offset, self.offset + self.samples)
        if not self.keeps_something:
            return wave[:, part]
        wave = self.sound.at_own_level(wave)
        if self.remake is None:
            return wave[:, part]
        cell, start = self.shape.frame_samples, self.before * self.shape.frame_samples
        marked = self.remake[:, 0]  # (1 or batch, time, bands)
        if (marked.any(dim=2) & ~marked.all(dim=2)).any():
            wave = wave[:, : self.frames * cell]
            bounds, rate = band_bounds(self.shape), self.shape.sample_rate
            wave = splice(wave, self.sound.wave, marked, bounds, rate, start)
        fade = min(fade_samples(self.shape), cell // 2)
        share = torch.stack([_share(row, cell, fade) for row in marked.any(dim=2)])  # (rows, time)
        own = torch.zeros(self.frames * cell, dtype=torch.float32, device="cpu")
        own[start : start + len(self.sound.wave)] = self.sound.wave
        share, own, wave = share[:, part], own[part], wave[:, part]
        mixed = own + share * (wave - own)
        return torch.where(share == 0, own, torch.where(share == 1, wave, mixed))

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: the sound, what was asked, and what was remade, in seconds of the sound."""
        sound = self.sound
        about: dict[str, Any] = {
            "audio": sound.record(),
            "strength": self.strength,
            "steps_taken": self.walk.steps - self.first,
            "resample_times": self.resample_times,
        }
        about |= {name: None if each is None else list(each) for name, each in self.asked.items()}
        if self.remake is not None:
            frame, bounds = self.shape.seconds(1), band_bounds(self.shape)
            times = runs(self.remake.any(dim=3).any(dim=0).flatten())
            bands = runs(self.remake.any(dim=2).any(dim=0).flatten())
            about["remade_seconds"] = [
                [round((end - self.before) * frame, 6) for end in each] for each in times
            ]
            about["remade_hz"] = [[round(bounds[end], 1) for end in each] for each in bands]
            about["remade_share"] = round(self.remake.float().mean().item(), 6)
        return about


def _check_combinations(options: GenerationOptions) -> None:
    if options.audio is None:
        for name in EDITING_OPTIONS:
            value = getattr(options, name)
            if value is not None and (name, value) != ("resample_times", 1):
                given = "is set" if isinstance(value, Tensor) else None
                raise ArgumentError(name, value, "be left out without audio", given=given)
        return
    for name in ("latents", "audio_length_in_s"):
        value = getattr(options, name)
        if value is not None:
            given = "is set" if isinstance(value, Tensor) else None
            why = "length follows" if name == "audio_length_in_s" else "latent comes from"
            raise ArgumentError(name, value, f"be left out with audio, as the {why} the sound", given=given)
    if options.repaint_mask is not None:
        for name in (*RANGES, "extend_seconds"):
            if getattr(options, name) is not None:
                raise ArgumentError(name, getattr(options, name), "be left out with repaint_mask")


def read_sound(audio: Path | Tensor, sample_rate: int | None, shape: SoundShape) -> InputSound:
    """A sound from a file, or from samples at a rate in Hz, by default the model's.

    Raises:
        ArgumentError: it cannot be used, or a rate is given for a file.
        OSError: the file cannot be opened.
    """
    if isinstance(audio, Tensor):
        return InputSound.prepare(audio, sample_rate or shape.sample_rate, shape.sample_rate, "audio")
    if sample_rate is not None:
        raise ArgumentError("audio_sample_rate", sample_rate, "be left out for a file, which has its own")
    wave, rate = read(audio)
    return InputSound.prepare(wave, rate, shape.sample_rate, str(audio), audio.name)


def _first_step(walk: Walk, strength: float) -> int:
    """The step at which a sound of this strength starts: int(steps * strength) are left."""
    left = int(walk.steps * strength + 1e-9)  # 0.29 * 100 is 28.999...
    if strength > 0 and left == 0:
        allowed = f"be 0, or at least {1 / walk.steps:g}: one of {walk.steps} steps"
        raise ArgumentError("strength", strength, allowed)
    return walk.first_of(walk.steps - left) if left else walk.steps


def _share(remade: Tensor, cell: int, fade: int) -> Tensor:
    """How much of each sample is remade, 0 to 1, from the latent frames that are: (frames * cell,)."""
    share = remade.to(torch.float32).repeat_interleave(cell)
    angles = torch.linspace(0, math.pi / 2, fade + 2, dtype=torch.float32, device="cpu")[1:-1]
    ramp = angles.sin().square()
    for start, end in runs(remade):
        if start > 0:
            share[start * cell : start * cell + fade] = ramp
        if end < len(remade):
            share[end * cell - fade : end * cell] = ramp.flip(0)
    return share
