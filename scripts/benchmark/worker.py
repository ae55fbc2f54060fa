"""One side of benchmark.py, in its own process, so that its memory and start-up times are its own.

    python scripts/benchmark/worker.py ours
    {"do": "load", "folder": "./tiny", "device": "cpu", "dtype": "float32", "sampler": "dpmpp_2m"}
    {"do": "request", "seconds": 2.56, "sounds": 1, "steps": 4, "count": true}

Reads orders from standard input, one JSON object per line, and answers each with one line: "load" and
"request" as "ours" or "peer" (diffusers' AudioLDM2Pipeline), "ceiling" as "ceiling". It exits at the end of
its input. An error ends it with a traceback on standard error.

Torch and the packages are imported by "load", not at the top, because their import times are measured.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from scripts.benchmark import arithmetic
from scripts.benchmark.sides import Ours, Peer, Pipeline

# Time and memory --------------------------------------------------------------------------------------------


def load(side: type[Ours] | type[Peer], order: dict[str, Any]) -> tuple[Pipeline, dict[str, float]]:
    """Loads a side; returns it with its costs in seconds and in MB of resident memory."""
    start = time.perf_counter()
    import torch

    torch_imported = time.perf_counter()
    if order.get("threads"):
        torch.set_num_threads(order["threads"])
    if side is Ours:
        import audioldm2  # noqa: F401
    else:
        from diffusers import AudioLDM2Pipeline  # noqa: F401
    imported, before = time.perf_counter(), peak_resident()
    loaded = side(order)
    synchronize(order["device"])
    seconds = time.perf_counter() - imported
    tensors = [t for n in loaded.networks() for t in itertools.chain(n.parameters(), n.buffers())]
    return loaded, {
        "import torch, s": torch_imported - start,
        f"import {side.package} after it, s": imported - torch_imported,
        "load, s": seconds,
        "peak resident memory before load, MB": before,
        "peak resident memory after load, MB": peak_resident(),
        "weights held, MB": sum(tensor.nbytes for tensor in tensors) / 1e6,
    }


def timed_request(side: Pipeline, order: dict[str, Any], device: str) -> dict[str, Any]:
    """Runs one request; returns seconds per stage, peak memory in MB and, if asked for, GFLOP per stage.

    "step" is the median denoiser step: network, guidance and sampler. Stages follow each other without gaps,
    so they add up to "request". The device is synchronized at every mark. Arithmetic is counted in eager
    mode, even if a network is compiled.
    """
    counter = arithmetic.flop_counter() if order.get("count") else None
    marks: list[tuple[str, float, int]] = []
    steps: list[float] = []
    last = 0.0

    def begin(stage: str) -> None:
        nonlocal last
        synchronize(device)
        last = time.perf_counter()
        marks.append((stage, last, counter.get_total_flops() if counter else 0))

    def step() -> None:
        nonlocal last
        synchronize(device)
        now = time.perf_counter()
        steps.append(now - last)
        last = now

    if counter:  # kernels are chosen now: their trials are no part of a request's arithmetic
        side.request(order, lambda stage: None, lambda: None)
    reset_peak(device)
    with counter or nullcontext(), eager_mode() if counter else nullcontext():
        side.request(order, begin, step)
        begin("end")
    seconds: dict[str, float] = {}
    gflop: dict[str, float] = {}
    for (stage, start, before), (_, end, after) in itertools.pairwise(marks):
        seconds[stage] = seconds.get(stage, 0.0) + end - start
        gflop[stage] = gflop.get(stage, 0.0) + (after - before) / 1e9
    seconds |= {"step": statistics.median(steps), "request": marks[-1][1] - marks[0][1]}
    found = {"seconds": seconds, "steps": len(steps), "peak resident memory, MB": peak_resident()}
    if device.startswith("cuda"):
        import torch

        found["peak memory on the device, MB"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found | ({"GFLOP": gflop} if counter else {})


def eager_mode() -> AbstractContextManager[Any]:
    """Disables compiled code inside the block, whose arithmetic cannot be counted; needs torch 2.6."""
    import torch

    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else nullcontext()


def synchronize(device: str) -> None:
    """Waits until an asynchronous device has finished its work."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def reset_peak(device: str) -> None:
    """Resets peak memory; resident memory on Linux only, elsewhere the peak since the start counts."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


def peak_resident() -> float:
    """Returns peak resident memory in MB since `reset_peak` or the start; 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# Orders -----------------------------------------------------------------------------------------------------


def serve(role: str) -> None:
    """Answers orders from standard input on standard output, where nothing else is printed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    side, device = None, "cpu"
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "load":
            device = order["device"]
            side, answer = load({"ours": Ours, "peer": Peer}[role], order)
        elif order["do"] == "request" and side is not None:
            answer = timed_request(side, order, device)
        else:
            if order.get("threads"):
                import torch

                torch.set_num_threads(order["threads"])
            wait = partial(synchronize, order["device"])
            answer = arithmetic.ceiling(order["device"], order["dtype"], wait)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    roles = ("ours", "peer", "ceiling")
    if len(sys.argv) != 2 or sys.argv[1] not in (*roles, "-h", "--help"):
        sys.exit(
            f"worker.py is started by benchmark.py, or by hand with one of {', '.join(roles)}; see --help"
        )
    if sys.argv[1] in roles:
        serve(sys.argv[1])
    else:
        print(__doc__)
