"""Both pipelines that the benchmark measures, behind one interface.

Each is imported when it is constructed, because worker.py measures import times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

GUIDANCE = 3.5
PROMPTS = [
    "Techno music with a strong, upbeat tempo and high melodic riffs",
    "A hammer hitting a wooden surface, again and again",
    "Rain on a tin roof, and thunder far away",
    "A church bell rings while birds sing",
]
STAGES = {  # names that `generate(on_stage=...)` reports
    "encoding the prompt": "prompt",
    "denoising": "denoise",
    "decoding": "decode",
    "vocoding": "vocode",
}


def prompts(sounds: int) -> list[str]:
    """Returns distinct prompts; equal ones would be encoded only once."""
    return [
        PROMPTS[i % len(PROMPTS)] + (f", take {i // len(PROMPTS) + 1}" if i >= len(PROMPTS) else "")
        for i in range(sounds)
    ]


Begin = Callable[[str], None]  # called with a stage's name when it begins
Step = Callable[[], None]  # called when a denoiser step ends


class Pipeline(Protocol):
    """A loaded pipeline."""

    package: str

    def networks(self) -> list[nn.Module]:
        """Returns the loaded networks."""
        ...

    def request(self, order: dict[str, Any], begin: Begin, step: Step) -> None:
        """Generates the sounds of an order and reports stages and steps."""
        ...


class Ours:
    """audioldm2, which reports stages and steps itself."""

    package = "audioldm2"

    def __init__(self, order: dict[str, Any]) -> None:
        import audioldm2

        self.model = audioldm2.load(
            order["folder"],
            device=order["device"],
            dtype=order["dtype"],
            low_memory=order.get("low_memory", False),
            offload=order.get("offload", False),
            compile=order.get("compile", False),
        )
        self.sampler = order["sampler"]

    def networks(self) -> list[nn.Module]:
        return list(self.model.networks._loaded.values())

    def request(self, order: dict[str, Any], begin: Begin, step: Step) -> None:
        begin("prompt")
        self.model.generate(
            prompts(order["sounds"]),
            audio_length_in_s=order["seconds"],
            num_inference_steps=order["steps"],
            guidance_scale=GUIDANCE,
            sampler=self.sampler,
            on_stage=lambda stage: begin(STAGES[stage]),
            on_step=lambda *_: step(),
        )


class Peer:
    """diffusers' AudioLDM2Pipeline, whose methods are wrapped during a request to report stages."""

    package = "diffusers"

    def __init__(self, order: dict[str, Any]) -> None:
        import diffusers
        import torch
        import transformers

        for library in (transformers, diffusers):
            library.utils.logging.disable_progress_bar()
        folder, dtype = Path(order["folder"]), getattr(torch, order["dtype"])
        overrides = {}
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if index["language_model"][1] == "GPT2Model":  # as published: lacks a method that the pipeline calls
            overrides["language_model"] = transformers.GPT2LMHeadModel.from_pretrained(
                folder / "language_model", dtype=dtype
            )
        pipe = diffusers.AudioLDM2Pipeline.from_pretrained(folder, dtype=dtype, **overrides)
        schedulers = {
            "ddim": diffusers.DDIMScheduler,
            "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        }
        pipe.scheduler = schedulers[order["sampler"]].from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        if order.get("offload"):
            pipe.enable_model_cpu_offload(device=order["device"])
        else:
            pipe.to(order["device"])
        if order.get("compile"):  # as diffusers' documentation recommends
            mode = "reduce-overhead" if order["device"].startswith("cuda") else None
            pipe.unet.compile(mode=mode, fullgraph=True)
        self.pipe = pipe

    def networks(self) -> list[nn.Module]:
        return [part for part in self.pipe.components.values() if hasattr(part, "parameters")]

    def request(self, order: dict[str, Any], begin: Begin, step: Step) -> None:
        import torch

        pipe = self.pipe
        begin("prompt")
        with ExitStack() as stack:
            for owner, method, at in (
                (pipe, "encode_prompt", {"after": "denoise"}),
                (pipe.vae, "decode", {"before": "decode"}),
                (pipe, "mel_spectrogram_to_waveform", {"before": "vocode"}),
            ):
                stack.enter_context(announce_calls(owner, method, begin, **at))
            pipe(
                prompts(order["sounds"]),
                audio_length_in_s=order["seconds"],
                num_inference_steps=order["steps"],
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(0),
                callback=lambda *_: step(),
            )


@contextmanager
def announce_calls(
    owner: Any, method: str, begin: Begin, *, before: str | None = None, after: str | None = None
) -> Iterator[None]:
    """Makes a method report stages inside the block.

    Args:
        owner: the object whose method it is.
        method: its name.
        begin: called with the stage.
        before: stage that begins when the method is called.
        after: stage that begins when it returns.
    """
    original = getattr(owner, method)

    def announced(*args: Any, **kwargs: Any) -> Any:
        if before:
            begin(before)
        result = original(*args, **kwargs)
        if after:
            begin(after)
        return result

    setattr(owner, method, announced)  # on the instance, which hides the class's method
    try:
        yield
    finally:
        delattr(owner, method)
