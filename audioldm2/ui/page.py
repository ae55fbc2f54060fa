"""The page: forms on the left, the sound and the session's earlier sounds on the right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from audioldm2.errors import ArgumentError
from audioldm2.ui import layout, plans
from audioldm2.ui.components import Page
from audioldm2.ui.limits import Limits
from audioldm2.ui.models import Models, cost
from audioldm2.ui.plans import Form
from audioldm2.ui.sounds import Sound, write
from audioldm2.ui.worker import Cancelled, Job, Progress, Worker

PROGRESS = gr.Progress()  # as a default value: how Gradio finds out that an event reports progress
DEVICE = "device"  # Gradio's name for the queue of what runs on the device
EARLIER = 50  # sounds that a session's list keeps
DAY = 86400  # seconds after which files of sounds and uploads are deleted
Explain = Callable[[Exception], str | None]  # an error to its sentence; None for a bug


class Server:
    """What the events of the page share."""

    def __init__(self, models: Models, limits: Limits, folder: Path, explain: Explain):
        self.models, self.limits, self.folder, self.explain = models, limits, folder, explain
        self.worker = Worker()
        self._jobs: dict[Job[Sound], str | None] = {}  # those that are not done, with their session

    def make(self, form: Form, values: dict[str, Any], job: Job[Sound]) -> Sound:
        """Runs on the worker's thread."""
        name = values["model"]
        known = self.models.known(name)
        plan = plans.plan(form, values, known, self.limits)
        result = plan.run(self.models.get(name), job)
        job.on_stage("writing the files")
        return write(result, known.sound, self.folder)

    def submit(self, session: str | None, work: Callable[[Job[Sound]], Sound]) -> Job[Sound]:
        """Hand a session's request to the worker."""
        job = self.worker.submit(work)
        self._jobs[job] = session
        job.outcome.add_done_callback(lambda _: self._jobs.pop(job, None))
        return job

    def leave(self, session: str | None) -> None:
        """Cancel what a session has asked for: its page is closed."""
        for job, whose in list(self._jobs.items()):
            if whose == session:
                job.cancel()

    def close(self) -> None:
        """Cancel everything, and wait for the step that runs."""
        for job in list(self._jobs):
            job.cancel()
        self.worker.close()

    def refusals(self, form: Form, values: dict[str, Any]) -> dict[str, str]:
        """Field -> why its value is refused; empty where the request can be made."""
        try:
            plans.plan(form, values, self.models.known(values.get("model") or ""), self.limits)
        except ArgumentError as error:
            return {form.field_of(error) or "prompt": form.sentence(error)}
        except OSError as error:
            name = "audio_prompt" if str(error.filename) == values.get("audio_prompt") else "audio"
            return {name: "Your sound is no longer on the server; upload it again."}
        return {}

    def error(self, error: Exception, form: Form | None = None) -> gr.Error:
        """The error for the page: a sentence, or for a bug a hint at the server's log."""
        if isinstance(error, Cancelled):
            return gr.Error("Cancelled.", print_exception=False)
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
        with gr.Row(elem_classes="ends-level"):
            model = gr.Dropdown(names, value=names[0], label="Model", scale=3, elem_id="model")
            price = gr.Textbox(
                cost(names[0]),
                label="What it costs",
                interactive=False,
                lines=2,
                scale=6,
                min_width=300,
                elem_id="cost",
            )
            load = gr.Button("Loaded", interactive=False, scale=1, min_width=110, elem_id="load")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=330), gr.Tabs():
                with gr.Tab("From text", id="generate"):
                    text = layout.fields(plans.GENERATE)
                with gr.Tab("From a sound", id="remake"):
                    own = layout.fields(plans.REMAKE)
                speaks = server.models.known(names[0]).speaks
                with gr.Tab("Speech", id="speak", visible=speaks) as speech_tab:
                    speech = layout.fields(plans.SPEAK)
            with gr.Column(scale=6, min_width=330):
                shown = layout.result()
                listed = gr.Radio([], label="Earlier sounds", visible=False, elem_id="earlier")
        for form, (inputs, buttons) in zip(plans.FORMS, (text, own, speech), strict=True):
            _connect(server, form, {"model": model, **inputs}, buttons, shown, earlier, listed)
        listed.input(_show, [earlier, listed], [*shown.values()], queue=False, api_visibility="private")
        _connect_models(server, model, price, load, speech_tab)

        def leave(request: gr.Request) -> None:
            server.leave(request.session_hash)

        page.unload(leave)
    return page


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

    async def make(
        earlier: list[Sound],
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
        audio_prompt: str | None = None,  # a parameter, so that a request of the API may leave it out
        **values: Any,
    ) -> list[Any]:
        values["audio_prompt"] = audio_prompt
        job = server.submit(request.session_hash, lambda job: server.make(form, values, job))

        def report(news: Progress) -> None:
            progress((news.step, news.steps), desc=news.stage.capitalize(), unit="steps")

        try:
            sound = await job.follow(report)
        except Exception as error:
            raise server.error(error, form) from error
        return [str(sound.sound), str(sound.picture), sound.record, [*earlier, sound][-EARLIER:]]

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
        scroll_to_output=True,
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
    if not earlier:  # Gradio calls this after a cancelled request too
        return [gr.skip()] * 3
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
