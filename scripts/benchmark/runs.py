"""How benchmark.py measures: one process per side, alternating requests, medians, exponents.

A case is a length in seconds and a number of sounds at once.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from scripts.benchmark import worker
from scripts.benchmark.report import NAMES, STAGES

PEER_NEEDS = ("diffusers", "transformers")
WARM_UP_STEPS = 2
COMPILE_REQUESTS = 3  # extra warm-up requests of a compiled side: compile, capture as a graph, run the graph
Case = tuple[float, int]


@dataclass(frozen=True)
class Side:
    """What one side loads and runs."""

    folder: str
    dtype: str
    sampler: str
    steps: int
    steps_measured: int  # if fewer, denoising time is scaled to `steps`
    low_memory: bool = False
    offload: bool = False
    compile: bool = False


class Worker:
    """A side in its own process (worker.py)."""

    def __init__(self, role: str, process: subprocess.Popen, errors: IO[str], threads: int | None) -> None:
        self.role, self.process, self.errors, self.threads = role, process, errors, threads
        assert process.stdin is not None and process.stdout is not None
        self.orders, self.answers = process.stdin, process.stdout

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Sends an order and waits for the answer; raises ValueError with the reason if the process ends."""
        line = json.dumps({"do": do, "threads": self.threads, **order}) + "\n"
        with suppress(BrokenPipeError):  # the process has ended, so there is no answer below
            self.orders.write(line.encode())
        answer = self.answers.readline()
        if not answer:
            raise ValueError(f"{NAMES.get(self.role, self.role)} failed: {self.failure()}")
        return json.loads(answer)

    def failure(self) -> str:
        """Returns why the process ended: the last line of its traceback, its signal or its exit code."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        if code < 0:
            return f"signal {-code} ended its process, perhaps for lack of memory."
        if not lines:
            return f"its process ended with exit code {code}."
        return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1])

    def load(self, side: Side, device: str) -> dict[str, float]:
        """Loads the model; returns the costs."""
        order = asdict(side)
        del order["steps"], order["steps_measured"]
        return self.ask("load", device=device, **order)

    def request(self, side: Side, case: Case) -> dict[str, Any]:
        """Runs a request; returns its times, scaled to all steps, and its peak memory."""
        found = self.ask("request", seconds=case[0], sounds=case[1], steps=side.steps_measured)
        return scaled(found, side)


@contextmanager
def start_worker(role: str, threads: int | None = None, cache: str | None = None) -> Iterator[Worker]:
    """Runs a worker inside the block.

    Args:
        role: "ours", "peer" or "ceiling".
        threads: of PyTorch; None: its default.
        cache: folder for compiled code.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    environment |= {"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {}
    command, pipe = [sys.executable, worker.__file__, role], subprocess.PIPE
    with (
        TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=errors, env=environment
        ) as process,  # leaving the block closes its input, which ends it
    ):
        yield Worker(role, process, errors, threads)


def machine(device: torch.device, threads: int | None) -> dict[str, Any]:
    """Describes the hardware and the versions of packages."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or the processor's name is not listed
    found = {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "device": str(device),
        "device name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return found | {name: importlib.metadata.version(name) for name in PEER_NEEDS if find_spec(name)}


# Measuring --------------------------------------------------------------------------------------------------


def measure(
    sides: dict[str, Side],
    cases: Sequence[Case],
    *,
    device: str,
    runs: int,
    ceilings: dict[str, float],
    threads: int | None = None,
    cache: str | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measures each case on all sides, which take turns.

    Args:
        sides: by role.
        cases: lengths in seconds and numbers of sounds.
        device: of all sides.
        runs: timed requests per case and side.
        ceilings: GFLOP/s by dtype.
        threads: as in `start_worker`.
        cache: as in `start_worker`.
        report: called with lines of progress.

    Returns:
        A row per case.
    """
    rows = []
    with ExitStack() as stack:
        workers = {role: stack.enter_context(start_worker(role, threads, cache)) for role in sides}
        for role, side in sides.items():
            report(f"{NAMES[role]} is loading")
            workers[role].load(side, device)
        for case in cases:
            seconds, sounds = case
            counted, compiling, timed = {}, {}, {role: [] for role in sides}
            for role, side in sides.items():
                steps = min(side.steps_measured, WARM_UP_STEPS)
                order = {"seconds": seconds, "sounds": sounds, "steps": steps}
                counted[role] = workers[role].ask("request", **order, count=True)
                if side.compile:
                    report(f"{seconds:g} s, sounds: {sounds}, {NAMES[role]} is compiling")
                    warm = [workers[role].ask("request", **order)["seconds"] for _ in range(COMPILE_REQUESTS)]
                    compiling[role] = warm[0]["request"] - warm[-1]["request"]
            for _ in range(runs):
                for role, side in sides.items():
                    timed[role].append(workers[role].request(side, case))
                    took = timed[role][-1]["seconds"]["request"]
                    report(f"{seconds:g} s, sounds: {sounds}, {NAMES[role]}: {took:.3g} s")
            row: dict[str, Any] = {"seconds": seconds, "sounds": sounds}
            for role, side in sides.items():
                row[role] = summary(timed[role], counted[role], side, ceilings[side.dtype])
                if role in compiling:
                    row[role]["compiling, s"] = compiling[role]
            if "peer" in sides:
                row["ratio"] = ratios(row["ours"]["stages"], row["peer"]["stages"])
            rows.append(row)
    return rows


def scaled(found: dict[str, Any], side: Side) -> dict[str, Any]:
    """Scales the denoising time of a request from the measured steps to all steps."""
    seconds = found["seconds"]
    denoise = seconds["denoise"] * side.steps / side.steps_measured
    request = seconds["request"] + denoise - seconds["denoise"]
    return found | {"seconds": seconds | {"denoise": denoise, "request": request}}


def summary(
    runs: Sequence[dict[str, Any]], counted: dict[str, Any], side: Side, ceiling: float
) -> dict[str, Any]:
    """Summarizes the requests of one side.

    Args:
        runs: timed requests.
        counted: the request whose arithmetic was counted.
        side: what was run.
        ceiling: GFLOP/s.

    Returns:
        Per stage: median and range of the time, GFLOP, GFLOP/s, percent of the ceiling; and peak memory.
    """
    gflop = dict(counted["GFLOP"])
    gflop["step"] = gflop["denoise"] / counted["steps"]
    # Sounds that do not fit at once are denoised in slices, each of which takes all steps.
    gflop["denoise"] = gflop["step"] * runs[0]["steps"] * side.steps / side.steps_measured
    gflop["request"] = sum(gflop[stage] for stage in ("prompt", "denoise", "decode", "vocode"))
    stages = {}
    for stage in STAGES:
        entry = spread([run["seconds"][stage] for run in runs])
        speed = gflop[stage] / entry["median"]
        stages[stage] = entry | {
            "GFLOP": gflop[stage],
            "GFLOP/s": speed,
            "percent of ceiling": 100 * speed / ceiling,
        }
    peaks = {name: spread([run[name] for run in runs]) for name in runs[0] if name.startswith("peak")}
    return {"stages": stages} | peaks


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns the median and the range of some values, and the values."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "runs": list(values),
    }


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Divides our medians by the peer's, for stages that both have."""
    return {name: ours[name]["median"] / peer[name]["median"] for name in ours if name in peer}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Fits cost = c * size^p in logarithms and returns p; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


def exponents(rows: Sequence[dict[str, Any]], size: str, roles: Sequence[str]) -> dict[str, Any]:
    """Fits how each stage of each side grows with `size`, "seconds" or "sounds"."""
    return {
        role: {
            stage: exponent(
                [row[size] for row in rows], [row[role]["stages"][stage]["median"] for row in rows]
            )
            for stage in STAGES
        }
        for role in roles
    }


def measure_starts(
    sides: dict[str, Side],
    case: Case,
    *,
    device: str,
    starts: int,
    threads: int | None = None,
    cache: str | None = None,
) -> dict[str, Any]:
    """Measures start-up costs in fresh processes, sides taking turns; arguments as in `measure`."""
    found: dict[str, list[dict[str, float]]] = {role: [] for role in sides}
    for _ in range(starts):
        for role, side in sides.items():
            with start_worker(role, threads, cache) as process:
                costs = process.load(side, device)
                until_loaded = sum(cost for name, cost in costs.items() if name.endswith(", s"))
                for which in ("first", "second"):
                    costs[f"{which} sound, s"] = process.request(side, case)["seconds"]["request"]
                costs["all up to the first sound, s"] = until_loaded + costs["first sound, s"]
            found[role].append(costs)
    return {
        role: {name: spread([run[name] for run in runs]) for name in runs[0]}
        for role, runs in found.items()
        if runs
    }
