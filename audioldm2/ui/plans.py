"""What a form of the page asks for, checked, as a call of the library."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from audioldm2.edit_options import EditOptions, edit_options
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.pipeline import AudioLDM2
from audioldm2.request import Request
from audioldm2.result import Result
from audioldm2.ui import forms
from audioldm2.ui.forms import Entry
from audioldm2.ui.limits import Limits
from audioldm2.ui.models import Known
from audioldm2.ui.worker import Job


@dataclass(frozen=True)
class Form:
    """A form: the fields that are options, and those that are not, with their labels."""

    name: str  # of its endpoint
    entries: list[Entry]
    others: dict[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        return self.others.get(name) or next(each.label for each in self.entries if each.name == name)

    def field_of(self, error: ArgumentError) -> str | None:
        return forms.field_of(error, self.entries, self.others)

    def sentence(self, error: ArgumentError) -> str:
        """The message of an error, with the label of its field as its name."""
        name = self.field_of(error)
        return error.sentence(error.name if name is None else self.label(name))


COMMON = {"model": "Model", "prompt": "Prompt", "audio_prompt": "Sound prompt"}
GENERATE = Form("generate", forms.sound_entries(), COMMON)
REMAKE = Form("remake", forms.own_sound_entries(), {**COMMON, "audio": "Your sound"})
SPEAK = Form("speak", forms.sound_entries(), {**COMMON, "transcription": "Words"})
FORMS = (GENERATE, REMAKE, SPEAK)


@dataclass(frozen=True)
class Plan:
    """A request that has been checked: the arguments of `generate` or of `edit`."""

    prompt: str
    options: GenerationOptions | EditOptions
    audio: Path | None = None

    def run(self, model: AudioLDM2, job: Job) -> Result:
        """Make the sound, and report to the job, which may cancel it."""
        job.steps = self.options.num_inference_steps
        follow = {"on_stage": job.on_stage, "on_step": job.on_step}
        if isinstance(self.options, EditOptions):
            return model.edit(self.audio, self.prompt, options=self.options, **follow)
        return model.generate(self.prompt, options=self.options, **follow)


def plan(form: Form, values: Mapping[str, Any], known: Known, limits: Limits) -> Plan:
    """Check what a form asks for; nothing runs.

    Args:
        form: which one.
        values: what it shows, by the names of its fields; `audio` and `audio_prompt` are paths of uploads. An
            empty field, or one that is absent, has its default.
        known: the model that is asked for.
        limits: those of the server.

    Raises:
        ArgumentError: its name is that of an option or of another field.
        OSError: an upload cannot be opened.
    """
    try:
        return _plan(form, values, known, limits)
    except ArgumentError as error:
        uploads = {str(Path(values[name])): name for name in ("audio", "audio_prompt") if values.get(name)}
        if error.name not in uploads:
            raise
        # The name of a file's error is its path on this computer, which is nobody's business.
        raise ArgumentError(uploads[error.name], error.value, error.allowed, given=error.given) from error


def _plan(form: Form, values: Mapping[str, Any], known: Known, limits: Limits) -> Plan:
    prompt = values.get("prompt") or ""
    limits.check_text("prompt", prompt)
    if not prompt.strip() and not values.get("audio_prompt"):
        raise ArgumentError("prompt", prompt, "describe a sound", given="is empty")
    asked = forms.given(form.entries, values)
    for entry in form.entries:
        if entry.kind == forms.TEXT and entry.option in asked:
            limits.check_text(entry.option, asked[entry.option])
    limits.check_length(asked.get("audio_length_in_s"))  # before the library's own, which is larger
    if values.get("audio_prompt"):
        if not known.hears:
            allowed = "be left out: this model has no AudioMAE, which reads it"
            raise ArgumentError("audio_prompt", None, allowed, given="is set")
        limits.check_file("audio_prompt", Path(values["audio_prompt"]))
        asked["audio_prompt"] = Path(values["audio_prompt"])
    if form is SPEAK:
        return _speech(prompt, values, asked, known, limits)
    if form is not REMAKE:
        options = GenerationOptions(**asked)
        _check(prompt, options, known, limits)
        return Plan(prompt, options)
    if not values.get("audio"):
        raise ArgumentError("audio", None, "be a sound file, or a recording", given="is missing")
    audio = Path(values["audio"])
    limits.check_file("audio", audio)
    if asked.get("source_prompt"):
        edit = edit_options(None, asked)
        limits.check_options(edit)
        request = Request.resolve_edit(audio, prompt, edit, known.sound, known.schedule)
        limits.check_request(request)
        return Plan(prompt, edit, audio)
    only = {each.name for each in fields(EditOptions)} - {each.name for each in fields(GenerationOptions)}
    for name in only & set(asked):
        raise ArgumentError(name, asked[name], "be left out without a source, the text of an edit")
    options = GenerationOptions(audio=audio, **asked)
    _check(prompt, options, known, limits)
    return Plan(prompt, options, audio)


def _check(prompt: str, options: GenerationOptions, known: Known, limits: Limits) -> None:
    limits.check_options(options)
    limits.check_request(Request.resolve(prompt, options, known.sound, known.schedule))


def _speech(
    prompt: str, values: Mapping[str, Any], asked: dict[str, Any], known: Known, limits: Limits
) -> Plan:
    words = values.get("transcription") or ""
    limits.check_text("transcription", words)
    if not words.strip():
        raise ArgumentError("transcription", words, "say what is spoken", given="is empty")
    if not known.speaks:
        raise ArgumentError("model", None, "be one that speaks", given="does not speak")
    options = GenerationOptions(**asked, transcription=words)
    _check(prompt, options, known, limits)
    return Plan(prompt, options)
