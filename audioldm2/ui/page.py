"""The page: forms on the left, the sound and the session's earlier sounds on the right."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from audioldm2.editing.latent_cells import RANGES
from audioldm2.errors import ArgumentError
from audioldm2.ui import plans
from audioldm2.ui.components import BESIDE_A_PROMPT, Page, component
from audioldm2.ui.forms import SWITCH, Entry
from audioldm2.ui.limits import Limits
from audioldm2.ui.models import Models, cost
from audioldm2.ui.plans import Form
from audioldm2.ui.sounds import Sound, write
from audioldm2.ui.worker import Cancelled, Job, Worker

PROGRESS = gr.Progress()  # as a default value: how Gradio finds out that an event reports progress
DEVICE = "device"  # Gradio's name for the queue of what runs on the device
EARLIER = 50  # sounds that a session's list keeps
DAY = 86400  # seconds after which files of sounds and uploads are deleted
Explain = Callable[[Exception], str | None]  # an error to its sentence; None for a bug

SECTIONS = {  # of the form for a sound of one's own: heading -> its fields
    "Remake only a part (inpainting)": (*RANGES, "resample_times"),
    "Continue: add seconds": ("extend_before", "extend_seconds"),
    "Edit by text: describe the sound as it is": ("source_prompt", "method", "source_guidance_scale", "skip"),
}


class Server:
    """What the events of the page share."""

    def __init__(self, models: Models, limits: Limits, folder: Path, explain: Explain):
        self.models, self.limits, self.folder, self.explain = models, limits, folder, explain
        self.worker = Worker()

    def make(self, form: Form, values: dict[str, Any], job: Job[Sound]) -> Sound:
        """Runs on the worker's thread."""
        name = values["model"]
        known = self.models.known(name)
        plan = plans.plan(form, values, known, self.limits)
        result = plan.run(self.models.get(name), job)
        job.on_stage("writing the files")
        return write(result, known.sound, self.folder)

    def refusals(self, form: Form, values: dict[str, Any]) -> dict[str, str]:
        """Field -> why its value is refused; empty where the request can be made."""
        try:
            plans.plan(form, values, self.models.known(values.get("model") or ""), self.limits)
        except ArgumentError as error:
            return {form.field_of(error) or "prompt": form.sentence(error)}
        except OSError:
            return {"audio": "Your sound is no longer on the server; upload it again."}
        return {}

    def error(self, error: Exception, form: Form | None = None) -> gr.Error:
        """The error for the page: a sentence, or for a bug a hint at the server's log."""
        sentence = self.explain(error)
        if isinstance(error, ArgumentError) and form is not None:
            sentence = form.sentence(error)
        if sentence is None:
            return gr.Error("The request failed; the log of the server says why.", print_exception=True)
        return gr.Error(sentence, print_exception=False)


def build(server: Server) -> Page:
    """The page of a server whose first model is loaded."""
    names = server.models.names
    with Page(title="audioldm2", analytics_enabled=False, delete_cache=(DAY // 24, DAY)) as page:
        earlier = gr.State([])
        gr.Markdown("# audioldm2\nSound effects, music and speech from text.", elem_id="title")
        with gr.Row(equal_height=False):
            model = gr.Dropdown(names, value=names[0], label="Model", scale=3, elem_id="model")
            price = gr.Textbox(cost(names[0]), label="What it costs", interactive=False, lines=2, scale=6)
            load = gr.Button("Loaded", interactive=False, scale=1, min_width=110, elem_id="load")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=330), gr.Tabs():
                with gr.Tab("From text", id="generate"):
                    text = _inputs(plans.GENERATE)
                    text_buttons = _buttons()
                with gr.Tab("From a sound", id="remake"):
                    own = _inputs(plans.REMAKE)
                    own_buttons = _buttons()
                speaks = server.models.known(names[0]).speaks
                with gr.Tab("Speech", id="speak", visible=speaks) as speech_tab:
                    speech = _inputs(plans.SPEAK)
                    speech_buttons = _buttons()
            with gr.Column(scale=6, min_width=330):
                shown = _result()
                listed = gr.Radio([], label="Earlier sounds", visible=False, elem_id="earlier")
        forms = [
            (plans.GENERATE, text, text_buttons),
            (plans.REMAKE, own, own_buttons),
            (plans.SPEAK, speech, speech_buttons),
        ]
        for form, inputs, buttons in forms:
            _connect(server, form, {"model": model, **inputs}, buttons, shown, earlier, listed)
        listed.input(_show, [earlier, listed], [*shown.values()], queue=False, api_visibility="private")
        _connect_models(server, model, price, load, speech_tab)
    return page


# Layout -----------------------------------------------------------------------------------------------------


def _inputs(form: Form) -> dict[str, Any]:
    """The fields of a form, by name, laid out; in the order of the API."""
    made: dict[str, Any] = {}
    entries = {each.name: each for each in form.entries}
    sections = SECTIONS if form is plans.REMAKE else {}
    apart = {name for section in sections.values() for name in section}
    if "audio" in form.others:
        made["audio"] = gr.Audio(label=form.label("audio"), type="filepath", sources=["upload", "microphone"])
    hint = {"speak": "Who speaks, and how: a calm woman in a quiet room"}
    made["prompt"] = gr.Textbox(
        label=form.label("prompt"), lines=2, max_lines=6, submit_btn=False,
        placeholder=hint.get(form.name, "Describe the sound: heavy rain on a tin roof"),
        elem_id=f"{form.name}-prompt",
    )  # fmt: skip
    if "transcription" in form.others:
        made["transcription"] = gr.Textbox(label=form.label("transcription"), lines=2, max_lines=8)
    common = [each for each in form.entries if each.common and each.name not in apart]
    made |= {each.name: component(each) for each in common if each.name in BESIDE_A_PROMPT}
    made |= _grid([each for each in common if each.name not in BESIDE_A_PROMPT])
    for heading, members in sections.items():
        with gr.Accordion(heading, open=False):
            texts = [entries[each] for each in members if each in BESIDE_A_PROMPT and each in entries]
            made |= {each.name: component(each) for each in texts}
            made |= _grid([entries[each] for each in members if each in entries and each not in made])
    with gr.Accordion("More options", open=False):
        made |= _grid([each for each in form.entries if each.name not in made])
    return made


def _grid(entries: list[Entry]) -> dict[str, Any]:
    """Fields side by side, as many as fit; the seed beside a button for a new one, and the switches last."""
    plain = [each for each in entries if each.name != "seed" and each.kind != SWITCH]
    with gr.Row():
        made = {each.name: component(each) for each in plain}
    for entry in (each for each in entries if each.name == "seed"):
        with gr.Row(equal_height=True):
            seed = made[entry.name] = component(entry)
            gr.Button("New seed", scale=0, min_width=120).click(
                lambda: secrets.randbelow(2**31), None, seed, queue=False, api_visibility="private"
            )
    with gr.Row():
        return made | {each.name: component(each) for each in entries if each.kind == SWITCH}


def _buttons() -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button("Make the sound", variant="primary", scale=3), gr.Button("Cancel", scale=1)


def _result() -> dict[str, Any]:
    """What shows a sound; the first three are what the API returns."""
    made: dict[str, Any] = {
        "sound": gr.Audio(label="Sound", type="filepath", interactive=False, elem_id="sound"),
        "picture": gr.Image(
            label="Waveform and spectrogram", type="filepath", interactive=False, elem_id="picture",
            buttons=["download", "fullscreen"],
        ),
    }  # fmt: skip
    with gr.Row():
        files = {
            "sound_file": gr.DownloadButton("Download the sound", interactive=False, elem_id="sound-file"),
            "record_file": gr.DownloadButton("Download its record", interactive=False, elem_id="record-file"),
        }
    with gr.Accordion("Settings of this sound", open=False):
        made["record"] = gr.JSON(label="Record", show_label=False, elem_id="record")
    return made | files


# Events -----------------------------------------------------------------------------------------------------


def _connect(
    server: Server,
    form: Form,
    inputs: dict[str, Any],
    buttons: tuple[gr.Button, gr.Button],
    shown: dict[str, Any],
    earlier: gr.State,
    listed: gr.Radio,
) -> None:
    """The events of a form: make, cancel, and what is shown afterwards."""
    start, stop = buttons

    def make(
        earlier: list[Sound],
        progress: gr.Progress = PROGRESS,
        **values: Any,
    ) -> Iterator[Any]:
        job = server.worker.submit(lambda job: server.make(form, values, job))
        try:
            for news in job.progress():
                at = None if news.steps is None else (news.step, news.steps)
                progress(at, desc=news.stage.capitalize(), unit="steps")
                yield [gr.skip()] * 4  # here Gradio closes this generator where the request is cancelled
            sound = job.outcome.result()
        except Cancelled:
            return
        except Exception as error:
            raise server.error(error, form) from error
        finally:
            job.cancel()
        yield [str(sound.sound), str(sound.picture), sound.record, [*earlier, sound][-EARLIER:]]

    def validate(earlier: list[Sound], **values: Any) -> list[Any]:
        refused = server.refusals(form, values)
        return [gr.validate(name not in refused, refused.get(name, "")) for name in ["", *inputs]]

    made = gr.on(
        [start.click, inputs["prompt"].submit],
        make,
        [earlier],
        [shown["sound"], shown["picture"], shown["record"], earlier],
        inputs_kwargs=inputs,
        validator=validate,
        api_name=form.name,
        api_description=DESCRIPTIONS[form.name],
        concurrency_id=DEVICE,
        concurrency_limit=1,
        show_progress_on=[shown["sound"]],
    )
    made.success(
        _listed, [earlier], [listed, shown["sound_file"], shown["record_file"]], queue=False,
        api_visibility="private",
    )  # fmt: skip
    stop.click(None, cancels=[made], queue=False, api_visibility="private")


DESCRIPTIONS = {
    "generate": "A sound from a prompt. Returns the sound file, its picture and its record.",
    "remake": "A sound from one of your own: varied, remade in part, continued, or edited by text.",
    "speak": "Speech, where the model speaks.",
}


def _listed(earlier: list[Sound]) -> list[Any]:
    """The list of earlier sounds, the latest first, and the files of the latest."""
    choices = [(f"{place + 1}. {each.summary}", place) for place, each in enumerate(earlier)][::-1]
    latest = earlier[-1]
    return [gr.Radio(choices, value=len(earlier) - 1, visible=len(earlier) > 1), *_files(latest)]


def _files(sound: Sound) -> list[Any]:
    return [
        gr.DownloadButton(value=str(sound.sound), interactive=True),
        gr.DownloadButton(value=str(sound.record_file), interactive=True),
    ]


def _show(earlier: list[Sound], place: Any) -> list[Any]:
    """An earlier sound, in the order of `_result`."""
    if not isinstance(place, int) or not 0 <= place < len(earlier):
        return [gr.skip()] * 5
    sound = earlier[place]
    return [str(sound.sound), str(sound.picture), sound.record, *_files(sound)]


def _connect_models(
    server: Server, model: gr.Dropdown, price: gr.Textbox, load: gr.Button, speech_tab: gr.Tab
) -> None:
    """The picker: what a model costs is shown when it is chosen; it is fetched when Load is pressed."""

    def chosen(name: str) -> list[Any]:
        try:
            known, words = server.models.known(name), "Loaded"
        except ArgumentError:
            known, words = None, "Load"
        return [
            cost(name),
            gr.Button(words, interactive=known is None, variant="primary" if known is None else "secondary"),
            gr.Tab(visible=known is not None and known.speaks),
        ]

    def fetch(name: str, progress: gr.Progress = PROGRESS) -> list[Any]:
        progress(None, desc=f"Loading {name}")
        try:
            server.worker.submit(lambda job: server.models.get(name)).outcome.result()
        except Exception as error:
            raise server.error(error) from error
        return chosen(name)

    model.input(chosen, model, [price, load, speech_tab], queue=False, api_visibility="private")
    load.click(
        fetch, model, [price, load, speech_tab], concurrency_id=DEVICE, concurrency_limit=1,
        show_progress_on=[price], api_visibility="private",
    )  # fmt: skip
