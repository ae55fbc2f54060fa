"""Where the fields of a form stand, and what shows a sound."""

import secrets
from typing import Any

import gradio as gr

from audioldm2.editing.latent_cells import RANGES
from audioldm2.ui import plans
from audioldm2.ui.components import BESIDE_A_PROMPT, component
from audioldm2.ui.forms import SWITCH, Entry
from audioldm2.ui.plans import Form

SECTIONS = {  # of the form for a sound of one's own: heading -> its fields
    "Remake only a part (inpainting)": (*RANGES, "resample_times"),
    "Continue: add seconds": ("extend_before", "extend_seconds"),
    "Edit by text: describe the sound as it is": ("source_prompt", "method", "source_guidance_scale", "skip"),
}
HINTS = {
    "generate": "Describe the sound: heavy rain on a tin roof",
    "remake": "Describe the new sound: a cat meows",
    "speak": "Say who speaks, and how: a calm woman in a quiet room",
}


def fields(form: Form) -> tuple[dict[str, Any], tuple[gr.Button, gr.Button]]:
    """Lay out a form: its fields by name, in the order of the API, and its buttons, Make and Cancel."""
    made: dict[str, Any] = {}
    entries = {each.name: each for each in form.entries}
    sections = SECTIONS if form is plans.REMAKE else {}
    apart = {name for section in sections.values() for name in section}
    if "audio" in form.others:
        made["audio"] = gr.Audio(label=form.label("audio"), type="filepath", sources=["upload", "microphone"])
    made["prompt"] = gr.Textbox(
        label=form.label("prompt"), placeholder=HINTS[form.name], max_lines=6, elem_id=f"{form.name}-prompt"
    )
    if "transcription" in form.others:
        made["transcription"] = gr.Textbox(label=form.label("transcription"), lines=2, max_lines=8)
    common = [each for each in form.entries if each.common and each.name not in apart]
    made |= {each.name: component(each, form.name) for each in common if each.name in BESIDE_A_PROMPT}
    with gr.Row():
        start = gr.Button("Make the sound", variant="primary", scale=3, elem_id=f"{form.name}-start")
        stop = gr.Button("Cancel", scale=1, min_width=100, elem_id=f"{form.name}-stop")
    made |= _grid(form, [each for each in common if each.name not in BESIDE_A_PROMPT])
    for heading, members in sections.items():
        with gr.Accordion(heading, open=False):
            texts = [entries[each] for each in members if each in BESIDE_A_PROMPT and each in entries]
            made |= {each.name: component(each, form.name) for each in texts}
            made |= _grid(form, [entries[each] for each in members if each in entries and each not in made])
    with gr.Accordion("A sound as the prompt: more like this one", open=False):
        made["audio_prompt"] = gr.Audio(
            label=form.label("audio_prompt"), type="filepath", sources=["upload", "microphone"]
        )
        made |= _grid(form, [entries["heard"]])
    with gr.Accordion("More options", open=False):
        made |= _grid(form, [each for each in form.entries if each.name not in made])
    return made, (start, stop)


def _grid(form: Form, entries: list[Entry]) -> dict[str, Any]:
    """Fields side by side, as many as fit; the seed beside a button for a new one, and the switches last."""
    plain = [each for each in entries if each.name != "seed" and each.kind != SWITCH]
    with gr.Row():
        made = {each.name: component(each, form.name) for each in plain}
    for entry in (each for each in entries if each.name == "seed"):
        with gr.Row(elem_classes="ends-level"):
            seed = made[entry.name] = component(entry, form.name)
            gr.Button("New seed", scale=0, min_width=140).click(
                lambda: str(secrets.randbelow(2**31)), None, seed, queue=False, api_visibility="private"
            )
    with gr.Row():
        return made | {each.name: component(each, form.name) for each in entries if each.kind == SWITCH}


def result() -> dict[str, Any]:
    """What shows a sound; the first three are what the API returns."""
    made: dict[str, Any] = {
        "sound": gr.Audio(
            label="Sound", type="filepath", interactive=False, elem_id="sound",
            buttons=["download"],
        ),
        "picture": gr.Image(
            label="Waveform and spectrogram", show_label=False, type="filepath",
            interactive=False, elem_id="picture", buttons=["download", "fullscreen"],
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
