"""What one request may ask of a server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2.audio.sound_files import opened
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.request import Request


@dataclass(frozen=True)
class Limits:
    """The largest request that a server accepts, and how many requests may wait."""

    seconds: float = 60.0
    steps: int = 200
    candidates: int = 8
    waiting: int = 20  # requests that wait while one runs
    upload_mb: float = 20.0
    characters: int = 2000  # of each text

    def check_text(self, name: str, text: Any) -> None:
        """Raise ArgumentError for a text that is too long, or that is no Unicode."""
        if not isinstance(text, str):
            raise ArgumentError(name, text, "be a text")
        if len(text) > self.characters:
            given = f"has {len(text):,} characters"
            raise ArgumentError(name, text, f"have at most {self.characters:,}", given=given)
        try:
            text.encode()
        except UnicodeEncodeError:
            given = "has half of a surrogate pair"
            raise ArgumentError(name, text, "be Unicode text", given=given) from None

    def check_file(self, name: str, path: Path) -> None:
        """Raise ArgumentError for a sound file that lasts too long, by its header: before it is decoded."""
        with opened(path) as sound:
            seconds = sound.frames / sound.samplerate
        if seconds > self.seconds:
            given = f"lasts {seconds:,.1f} seconds"
            raise ArgumentError(name, path, f"last at most {self.seconds:g} on this server", given=given)

    def check_options(self, options: GenerationOptions | EditOptions) -> None:
        """Raise ArgumentError for more steps or candidates than this server makes."""
        repeats = getattr(options, "resample_times", 1)
        steps = options.num_inference_steps * repeats
        if steps > self.steps:
            given = f"makes {steps:,} with all repetitions" if repeats > 1 else None
            allowed = f"be at most {self.steps} on this server"
            raise ArgumentError("num_inference_steps", steps, allowed, given=given)
        if options.num_waveforms_per_prompt > self.candidates:
            allowed = f"be at most {self.candidates} on this server"
            raise ArgumentError("num_waveforms_per_prompt", options.num_waveforms_per_prompt, allowed)

    def check_length(self, seconds: Any, name: str = "audio_length_in_s", given: str | None = None) -> None:
        """Raise ArgumentError for a sound that lasts longer than this server's; passes what is no number."""
        if isinstance(seconds, (int, float)) and seconds > self.seconds:
            raise ArgumentError(
                name, seconds, f"be at most {self.seconds:g} seconds on this server", given=given
            )

    def check_request(self, request: Request) -> None:
        """Raise ArgumentError for a sound that is too long with what is added to it, or by default."""
        extended = f"makes {request.seconds:g} seconds of the sound" if request.edit else None
        name = "extend_seconds" if request.edit else "audio_length_in_s"
        self.check_length(request.seconds, name, extended)
