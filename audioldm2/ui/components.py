"""The fields of a form as Gradio's components."""

from typing import Any

import gradio as gr

from audioldm2.ui import forms
from audioldm2.ui.forms import Entry

BESIDE_A_PROMPT = ("negative_prompt", "source_prompt")  # texts, wider than numbers
WIDTH = 200  # pixels that a field needs at least


def component(entry: Entry, form: str) -> gr.components.Component:
    """The component of an option; its rule is checked by the library, so no bounds are repeated here.

    A number that may be absent is a text: an empty number of Gradio shows 0, and is required in the API. So
    is a seed, which may be "random", and has more digits than a browser's numbers.
    """
    named: dict[str, Any] = {"label": entry.label, "info": _sentence(entry.help), "elem_classes": "entry"}
    named["elem_id"] = f"{form}-{entry.name}"
    if entry.kind == forms.SWITCH:
        return gr.Checkbox(value=entry.default, min_width=WIDTH, **named)
    if entry.kind == forms.CHOICE:
        return gr.Dropdown(list(entry.choices), value=entry.default, min_width=WIDTH, **named)
    if entry.kind == forms.NUMBER and entry.default is not None and entry.parse is None:
        return gr.Number(value=entry.default, min_width=WIDTH, **named)
    hint = "none" if entry.kind == forms.NUMBERS or "default" not in entry.help else "default"
    if entry.kind == forms.TEXT:
        hint = ""
    value = "" if entry.default is None else str(entry.default)
    return gr.Textbox(value=value, placeholder=hint, max_lines=4, min_width=WIDTH, **named)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def refuse_addresses(value: Any) -> None:
    """Raise gr.Error where a client's data names a file by a web address, which the server would fetch."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and "://" in path:
            raise gr.Error(
                "This server fetches no files from the web; upload the sound.", print_exception=False
            )
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            refuse_addresses(each)


class Page(gr.Blocks):
    """Blocks that never open what a client names: uploads are referred to by the path that Gradio gave them.

    Gradio itself refuses the paths of other files.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **named: Any) -> Any:
        refuse_addresses(inputs)
        return await super().preprocess_data(block_fn, inputs, *args, **named)
