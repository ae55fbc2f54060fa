"""One side of scripts/benchmark.py, in a process of its own, so that memory and start-up are its own.

    python scripts/benchmark_worker.py ours
    {"do": "load", "folder": "./tiny", "device": "cpu", "dtype": "float32", "sampler": "dpmpp_2m"}
    {"do": "request", "seconds": 2.56, "sounds": 1, "steps": 4, "count": true}

It reads orders, one JSON object a line, and answers each by one: "load" and "request" on the sides "ours" and
"peer" (diffusers' AudioLDM2Pipeline), "ceiling" on the side "ceiling". It ends when the orders do. An error
ends it too, with a traceback on standard error.

Torch and the packages are imported when the model is loaded, not on top: what that costs is measured here.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

GUIDANCE = 3.5
PROMPTS = [
    "Techno music with a strong, upbeat tempo and high melodic riffs",
    "A hammer hitting a wooden surface, again and again",
    "Rain on a tin roof, and thunder far away",
    "A church bell rings while birds sing",
]
STAGES = {  # what ours calls them
    "encoding the prompt": "prompt",
    "denoising": "denoise",
    "decoding": "decode",
    "vocoding": "vocode",
}


def prompts(sounds: int) -> list[str]:
    """So many texts, no two the same: equal ones would be encoded once."""
    return [
        PROMPTS[i % len(PROMPTS)] + (f", take {i // len(PROMPTS) + 1}" if i >= len(PROMPTS) else "")
        for i in range(sounds)
    ]


# The sides --------------------------------------------------------------------------------------------------

Begin = Callable[[str], None]  # called with a stage's name as it begins
Step = Callable[[], None]  # called as each denoiser step ends


class Ours:
    """audioldm2. Stages and steps are told by the package itself."""

    package = "audioldm2"

    def __init__(self, order: dict[str, Any]):
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

    def networks(self) -> list[Any]:
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
    """diffusers' AudioLDM2Pipeline. Its methods are made to tell when a stage begins, for each request."""

    package = "diffusers"

    def __init__(self, order: dict[str, Any]):
        import diffusers
        import torch
        import transformers

        for library in (transformers, diffusers):
            library.utils.logging.disable_progress_bar()
        folder, dtype = Path(order["folder"]), getattr(torch, order["dtype"])
        given = {}
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if index["language_model"][1] == "GPT2Model":  # as published: lacks what the pipeline calls
            given["language_model"] = transformers.GPT2LMHeadModel.from_pretrained(
                folder / "language_model", dtype=dtype
            )
        pipe = diffusers.AudioLDM2Pipeline.from_pretrained(folder, dtype=dtype, **given)
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
        if order.get("compile"):  # as its documentation says
            graphs = "reduce-overhead" if order["device"].startswith("cuda") else None
            pipe.unet.compile(mode=graphs, fullgraph=True)
        self.pipe = pipe

    def networks(self) -> list[Any]:
        return [part for part in self.pipe.components.values() if hasattr(part, "parameters")]

    def request(self, order: dict[str, Any], begin: Begin, step: Step) -> None:
        import torch

        pipe = self.pipe
        begin("prompt")
        with ExitStack() as announced:
            for owner, method, at in (
                (pipe, "encode_prompt", {"after": "denoise"}),
                (pipe.vae, "decode", {"before": "decode"}),
                (pipe, "mel_spectrogram_to_waveform", {"before": "vocode"}),
            ):
                announced.enter_context(announcing(owner, method, begin, **at))
            pipe(
                prompts(order["sounds"]),
                audio_length_in_s=order["seconds"],
                num_inference_steps=order["steps"],
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(0),
                callback=lambda *_: step(),
            )


@contextmanager
def announcing(
    owner: Any, method: str, begin: Begin, *, before: str | None = None, after: str | None = None
) -> Iterator[None]:
    """While the block lasts, a call of the method begins the stage `before` or, as it ends, `after`."""
    original = getattr(owner, method)

    def announced(*positional: Any, **named: Any) -> Any:
        if before:
            begin(before)
        result = original(*positional, **named)
        if after:
            begin(after)
        return result

    setattr(owner, method, announced)  # on the object, in front of its class's
    try:
        yield
    finally:
        delattr(owner, method)


# Time and memory --------------------------------------------------------------------------------------------


def load(side: type, order: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    """The loaded side, and what that cost: seconds, and MB of resident memory."""
    start = time.perf_counter()
    import torch

    torch_done = time.perf_counter()
    if order.get("threads"):
        torch.set_num_threads(order["threads"])
    if side is Ours:
        import audioldm2  # noqa: F401
    else:
        from diffusers import AudioLDM2Pipeline  # noqa: F401
    imported, before = time.perf_counter(), peak_resident()
    loaded = side(order)
    wait_for(order["device"])
    seconds = time.perf_counter() - imported
    tensors = [t for n in loaded.networks() for t in itertools.chain(n.parameters(), n.buffers())]
    return loaded, {
        "import torch, s": torch_done - start,
        f"import {side.package} after it, s": imported - torch_done,
        "load, s": seconds,
        "peak resident memory before load, MB": before,
        "peak resident memory after load, MB": peak_resident(),
        "weights held, MB": sum(tensor.nbytes for tensor in tensors) / 1e6,
    }


def timed_request(side: Any, order: dict[str, Any], device: str) -> dict[str, Any]:
    """One request: seconds of each stage, the peak of memory in MB and, where asked for, GFLOP.

    "step" is the median denoiser step: network, guidance and sampler. The stages follow each other without a
    gap, so that they sum up to "request". Before each mark the device is waited for. Arithmetic is counted as
    written, whether compiled or not.
    """
    counter = flop_counter() if order.get("count") else None
    marks: list[tuple[str, float, int]] = []
    steps: list[float] = []
    last = 0.0

    def begin(stage: str) -> None:
        nonlocal last
        wait_for(device)
        last = time.perf_counter()
        marks.append((stage, last, counter.get_total_flops() if counter else 0))

    def step() -> None:
        nonlocal last
        wait_for(device)
        now = time.perf_counter()
        steps.append(now - last)
        last = now

    reset_peak(device)
    with counter or nullcontext(), as_written() if counter else nullcontext():
        side.request(order, begin, step)
        begin("end")
    seconds, gflop = {}, {}
    for (stage, start, before), (_, end, after) in itertools.pairwise(marks):
        seconds[stage] = seconds.get(stage, 0.0) + end - start
        gflop[stage] = gflop.get(stage, 0.0) + (after - before) / 1e9
    seconds |= {"step": statistics.median(steps), "request": marks[-1][1] - marks[0][1]}
    found = {"seconds": seconds, "steps": len(steps), "peak resident memory, MB": peak_resident()}
    if device.startswith("cuda"):
        import torch

        found["peak memory on the device, MB"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found | ({"GFLOP": gflop} if counter else {})


def as_written() -> AbstractContextManager:
    """While the block lasts, nothing compiled runs; before torch 2.6 it does, and its sums are not seen."""
    import torch

    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else nullcontext()


def wait_for(device: str) -> None:
    """Until a device that works on its own has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def reset_peak(device: str) -> None:
    """From here on, peaks are new ones; resident memory's on Linux alone, elsewhere the process's counts."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


def peak_resident() -> float:
    """MB resident at most, since `reset_peak` or the process's start; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


# Arithmetic -------------------------------------------------------------------------------------------------


def flop_counter() -> Any:
    """torch's FlopCounterMode, told of what it does not know: oneDNN's linear layer, attention on CPUs.

    Counted are products of matrices, convolutions and attention; one multiplication and addition are 2 FLOP.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def of_linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * prod(x) * weight[0]

    def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        *batch, queries, dim = query
        return 2 * prod(batch) * queries * key[-2] * (dim + value[-1])

    formulas = {
        (torch.ops.mkldnn, "_linear_pointwise"): of_linear,
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"): of_attention,
        (torch.ops.aten, "_scaled_dot_product_fused_attention_overrideable"): of_attention,
        (torch.ops.aten, "_scaled_dot_product_attention_math_for_mps"): of_attention,
    }
    known = {getattr(ops, name): rule for (ops, name), rule in formulas.items() if hasattr(ops, name)}
    return FlopCounterMode(display=False, custom_mapping=known)


def ceiling(device: str, dtype_name: str) -> dict[str, float]:
    """GFLOP/s of a few large products and convolutions: what this machine gives at best to such code."""
    import torch
    import torch.nn.functional as F

    from audioldm2.ops import onednn

    dtype, generator = getattr(torch, dtype_name), torch.Generator().manual_seed(0)
    large = device.startswith("cuda")
    side, rows, channels = (8192, 16, 512) if large else (2048, 1, 256)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    a, b = normal(side, side), normal(side, side)
    x, kernel = normal(rows, channels, 256, 32), normal(channels, channels, 3, 3)
    tall, kernel_of_half = normal(rows, channels // 2, 512, 64), normal(channels // 2, channels // 2, 3, 3)
    candidates = {
        "matmul": lambda: a @ b,
        "linear": lambda: F.linear(a, b),
        "linear as ours": lambda: onednn.linear(a, b),
        "convolution 3x3": lambda: F.conv2d(x, kernel, padding=1),
        "convolution 3x3, half the channels": lambda: F.conv2d(tall, kernel_of_half, padding=1),
    }
    found = {}
    with torch.no_grad():
        for name, run in candidates.items():
            counter = flop_counter()
            with counter:
                run()
            found[name] = counter.get_total_flops() / 1e9 / fastest(run, device)
    return found


def fastest(run: Callable[[], object], device: str, at_most: float = 0.5) -> float:
    """Seconds of the fastest of some runs: two at least, then until `at_most` seconds are over, or 50."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < at_most and len(times) < 50):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times)


# Orders -----------------------------------------------------------------------------------------------------


def serve(role: str) -> None:
    """Answer orders from standard input on standard output, on which nothing else is printed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    side, device = None, "cpu"
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "load":
            device = order["device"]
            side, answer = load({"ours": Ours, "peer": Peer}[role], order)
        elif order["do"] == "request":
            answer = timed_request(side, order, device)
        else:
            if order.get("threads"):
                import torch

                torch.set_num_threads(order["threads"])
            answer = ceiling(order["device"], order["dtype"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in (["ours"], ["peer"], ["ceiling"]):
        sys.exit("benchmark_worker.py is started by benchmark.py, or with one word: ours, peer or ceiling.")
    serve(sys.argv[1])
