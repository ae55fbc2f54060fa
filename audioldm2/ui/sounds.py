"""The files of the page's sounds: a folder for each, which is there whole or not at all."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from audioldm2.audio import vae_front_end
from audioldm2.files import atomic_folder, safe_name
from audioldm2.result import Result
from audioldm2.sound_shape import SoundShape
from audioldm2.ui import picture

SECRET = 16  # random bytes in the name of a sound's folder: nobody can guess where another's sound is


@dataclass(frozen=True)
class Sound:
    """A sound that is done: its files and its record."""

    sound: Path
    record_file: Path
    picture: Path
    record: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for the list of earlier sounds."""
        about = self.record
        words = [f"{about['audio_length_in_s']:g} s", f"{about['num_inference_steps']} steps"]
        words += [about["sampler"], f"guidance {about['guidance_scale']:g}", f"seed {about['seed']}"]
        prompt = about["prompt"] or f"like {about['audio_prompt']['file']}"
        return f"{_short(str(prompt))} · {' · '.join(words)}"


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def write(result: Result, shape: SoundShape, folder: Path) -> Sound:
    """Write the best sound of a result, its record and its picture into a new folder in `folder`.

    Raises:
        OSError: from the system, unchanged.
    """
    home = folder / secrets.token_hex(SECRET)
    record = result.record()
    name = f"{safe_name(str(record['prompt']), 60)}-{record['seed']}"
    sound, about, drawn = (home / f"{name}{suffix}" for suffix in (".wav", ".wav.json", ".wav.png"))
    record = {"file": sound.name, **record}
    with atomic_folder(home) as draft:
        result.save(draft / sound.name)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (draft / about.name).write_text(text, encoding="utf-8", errors="backslashreplace")
        _picture(result, shape).save(draft / drawn.name)
    return Sound(sound, about, drawn, record)


def _picture(result: Result, shape: SoundShape) -> Image:
    wave = result.audio[0, 0]
    seconds = len(wave) / shape.sample_rate
    mel = result.mel[0, : max(1, len(wave) // shape.hop)]  # its last frames may lie behind the end
    try:
        front_end = vae_front_end(shape.sample_rate, shape.hop, shape.mels)
    except ValueError:  # of another sample rate: nobody knows its frequencies
        front_end = None
    return picture.draw(wave, mel, seconds, front_end)
