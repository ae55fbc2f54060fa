"""What there is to do for a list of sounds: which sounds are there, whole and of these settings; batches.

A sound is kept where its record says that it was made from these settings, and where it has its length. The
record is written first and the sound last, so that the two together are whole whenever a process was killed.
A sound with other settings, or without a record, is neither kept nor replaced unless the user says which.

Settings are all that the record holds but what the hardware decides: device, dtype and kernels change a sound
by rounding alone. A digest of the weights tells checkpoints apart; names do not.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from audioldm2.cli.output_files import Job, read_record
from audioldm2.cli.prompt_lists import Line
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError
from audioldm2.evaluation.generation import AT_ONCE, is_whole
from audioldm2.options import LARGEST_SEED, GenerationOptions
from audioldm2.pipeline import AudioLDM2
from audioldm2.request import Request
from audioldm2.result import settings_of
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

Options = GenerationOptions | EditOptions
SAMPLES = 64  # values of each tensor in a digest
WORDS = ("transcription", "phonemes")
# Entries of a record that decide nothing, or only rounding, or that are compared in another way.
NOT_COMPARED = {
    *("file", "audioldm2", "device", "dtype", "dtype_chosen_because", "ops"),
    *("model", "converted_from", "revision", "seed", "score", "other_candidates"),
}


@dataclass(frozen=True)
class Batch:
    """Sounds of one length, which are generated together."""

    places: list[int]  # in the list
    missing: list[int]  # those that are written; the others are there

    # The others are generated again, because a batch of another size adds up in another order: a sound would
    # then depend, by rounding, on when the run was interrupted.


class SoundList:
    """The sounds of a list, with the settings of each, for one model."""

    def __init__(
        self,
        model: AudioLDM2,
        jobs: Sequence[Job],
        lines: Sequence[Line],
        options: Options,
        audio: Any = None,
        *,
        with_record: bool = True,
        with_picture: bool = False,
    ) -> None:
        """Raises ArgumentError for a line that the model cannot meet."""
        self.model, self.jobs, self.lines, self.audio = model, jobs, lines, audio
        self.options = replace(options, unconditional=options.unconditional or model.unconditional)
        if isinstance(self.options, GenerationOptions) and any(_hears(line, options) for line in lines):
            self.options = replace(self.options, heard=model.vectors_heard(self.options.heard))
        self.with_record, self.with_picture = with_record, with_picture
        self.weights = weights_digest(model)
        self._requests = requests(lines, self.options, audio, model.sound, model.schedule)
        self._settings = {
            line: _plain(settings_of(request, model.describe(), model.sample_rate) | self.also(line))
            for line, request in self._requests.items()
        }

    @property
    def candidates(self) -> int:
        return getattr(self.options, "num_waveforms_per_prompt", 1)

    def also(self, line: Line) -> dict[str, Any]:
        """What the record of a list's sound has besides that of any sound."""
        words = {name: getattr(line, name) for name in WORDS if getattr(line, name) is not None}
        return {"weights": self.weights} | words

    def settings(self, place: int) -> dict[str, Any]:
        """The record that a sound will have, but for seeds and scores."""
        line = self.lines[place]
        own = {"prompt": line.prompt, "negative_prompt": self.negative_prompt(line)}
        return self._settings[_of_group(line)] | own | self.also(line)

    def seconds(self, place: int) -> float:
        return self._requests[_of_group(self.lines[place])].seconds

    def negative_prompt(self, line: Line) -> str:
        own = line.negative_prompt if line.negative_prompt is not None else self.options.negative_prompt
        return own if isinstance(own, str) else ""

    def seed(self, line: Line) -> int | None:
        """The seed of a line; None where one is drawn."""
        return self.options.seed if line.seed is None else line.seed  # type: ignore[return-value]

    def record(self, place: int) -> dict[str, Any] | None:
        """The record beside a sound, where there is one that this program wrote."""
        job = self.jobs[place]
        return read_record(job.record, job.sound.name)

    def differences(self, place: int) -> list[str] | None:
        """The settings in which a record differs from what is asked; None without a record."""
        record = self.record(place)
        if record is None:
            return None
        wanted, found = _compared(self.settings(place)), _compared(record)
        differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        seed = self.seed(self.lines[place])
        if seed is not None and _seeds(record) != {
            (seed + number) % (LARGEST_SEED + 1) for number in range(self.candidates)
        }:
            differ.append("seed")
        return differ

    def is_there(self, place: int) -> bool:
        """Whether a sound is there, whole and of these settings."""
        job = self.jobs[place]
        if self.with_picture and not job.picture.exists():
            return False
        return self._has_length(place) and self.differences(place) == []

    def _has_length(self, place: int) -> bool:
        samples = self.model.sound.samples(self.seconds(place))
        return is_whole(self.jobs[place].sound, samples, within=1)  # loops and edits round differently

    def require_no_others(self) -> None:
        """Raise ValueError where a sound is there that was made in another way, or nobody knows how."""
        others = []
        for place, job in enumerate(self.jobs):
            if not job.sound.exists():
                continue
            differ = self.differences(place)
            if differ is None:
                others.append(f"{job.sound} has no record that says how it was made")
            elif differ:
                others.append(f"{job.sound} was made with another {' and '.join(sorted(differ))}")
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise ValueError(
                f"{others[0]}{more}; give another folder with -o, move the sounds, or replace them with "
                "--overwrite."
            )

    def plan(self, at_once: int | None = None) -> list[Batch]:
        """The batches of which a sound is missing, lines of one length together, in the list's order.

        Args:
            at_once: sounds in a batch; None: one on a CPU, which gains little by more, else AT_ONCE. How
                many of them a call of the denoiser takes depends on the memory (`runtime.memory`).
        """
        if at_once is None:
            at_once = 1 if self.model.device.type == "cpu" else AT_ONCE
        groups: dict[Any, list[int]] = {}
        for place, line in enumerate(self.lines):
            kind = tuple(getattr(line, name) is not None for name in (*WORDS, "audio_prompt"))
            groups.setdefault((line.duration, kind), []).append(place)
        size = max(1, at_once // self.candidates)
        batches = [places[i : i + size] for places in groups.values() for i in range(0, len(places), size)]
        found = [Batch(each, [place for place in each if not self.is_there(place)]) for each in batches]
        return [batch for batch in sorted(found, key=lambda batch: batch.places[0]) if batch.missing]


def requests(
    lines: Sequence[Line], options: Options, audio: Any, sound: SoundShape, schedule: NoiseSchedule
) -> dict[Line, Request]:
    """A request for each length and sound prompt among some lines; its first prompt stands for the others.

    Raises:
        ArgumentError: a line cannot be met; its duration is named by the line.
        OSError: the file of a sound cannot be opened.
    """
    if getattr(options, "heard", None) is not None and not any(_hears(line, options) for line in lines):
        allowed = "be left out without --audio-prompt or a column audio_prompt"
        raise ArgumentError("heard", options.heard, allowed)  # type: ignore[union-attr]
    found: dict[Line, Request] = {}
    for line in lines:
        if _of_group(line) in found:
            continue
        try:
            own = replace(options, seed=0, **duration_of(line, options), **sounds_of([line], options))
            found[_of_group(line)] = (
                Request.resolve_edit(audio, line.prompt, own, sound, schedule)
                if isinstance(own, EditOptions)
                else _without_waves(Request.resolve(line.prompt, own, sound, schedule))
            )
        except ArgumentError as error:
            if line.duration is None or error.name != "audio_length_in_s":
                raise
            name = f"{line.where}: duration"
            raise ArgumentError(name, error.value, error.allowed, given=error.given) from None
    return found


def duration_of(line: Line, options: Options) -> dict[str, Any]:
    """The length of a line as an option, where it has its own."""
    if line.duration is None:
        return {}
    if "audio_length_in_s" not in {each.name for each in fields(options)}:
        allowed = "be left out with --source: an edit is as long as its audio"
        raise ArgumentError(f"{line.where}: duration", line.duration, allowed)
    return {"audio_length_in_s": line.duration}


def sounds_of(lines: Sequence[Line], options: Options) -> dict[str, Any]:
    """The sound prompts of lines of one batch as options, where they have their own."""
    first = lines[0]
    if isinstance(options, EditOptions):
        if first.audio_prompt is not None:
            allowed = "be left out with --source: an edit is from a text to a text"
            raise ArgumentError(f"{first.where}: audio_prompt", str(first.audio_prompt), allowed)
        return {}
    if first.audio_prompt is not None:
        return {"audio_prompt": [line.audio_prompt for line in lines]}
    return {} if _hears(first, options) else {"heard": None}


def _hears(line: Line, options: Options) -> bool:
    """Whether a line has a sound prompt, of its own or the command's."""
    return line.audio_prompt is not None or getattr(options, "audio_prompt", None) is not None


def _without_waves(request: Request) -> Request:
    """A request without the samples of its sound prompts: those of a long list do not fit into memory."""
    sounds = request.sound_prompts
    if sounds is None:
        return request
    return replace(request, sound_prompts=[replace(each, wave=each.wave.new_empty(0)) for each in sounds])


def weights_digest(model: AudioLDM2) -> str:
    """16 hex digits that tell checkpoints apart: SAMPLES values of each tensor, rounded to float16.

    A SHA-256 of all values would take as long as reading gigabytes. Training changes every tensor.
    """
    digest = hashlib.sha256()
    checkpoint = model.networks.without_additions().checkpoint
    for name in sorted(checkpoint.states):
        for key, tensor in sorted(checkpoint.states[name]().items()):
            digest.update(f"\0{name}.{key}{tuple(tensor.shape)}".encode())
            values = tensor.detach().flatten()
            places = torch.linspace(0, max(len(values) - 1, 0), min(SAMPLES, len(values)), device="cpu")
            digest.update(values[places.long()].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_group(line: Line) -> Line:
    """What stands for all lines of a length and a sound prompt."""
    return Line("", "", "", duration=line.duration, audio_prompt=line.audio_prompt)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _compared(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record decides how a sound comes out; adapters and words count by content, not by file."""
    found = {name: value for name, value in record.items() if name not in NOT_COMPARED}
    for name in ("pronounced_by", "phonemes" if found.get("transcription") is not None else "transcription"):
        found.pop(name, None)  # words decide what is spoken where they are given, else phonemes do
    for name in ("adapters", "words"):
        if isinstance(found.get(name), list):
            found[name] = [
                {key: value for key, value in each.items() if key not in ("file", "name")}
                for each in found[name]
                if isinstance(each, dict)
            ]
    return found


def _seeds(record: dict[str, Any]) -> set[Any]:
    others = record.get("other_candidates")
    candidates = [record, *(others if isinstance(others, list) else [])]
    return {each.get("seed") for each in candidates if isinstance(each, dict)}
