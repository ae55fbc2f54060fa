"""How scripts/benchmark.py measures: a process for each side, requests in turn, medians, exponents.

A case is a length in seconds and a number of sounds at once.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from scripts.benchmark_report import NAMES, STAGES

from scripts import benchmark_worker

WARM_UP_STEPS = 2
COMPILING = 3  # requests more to warm up what is compiled: it runs, is captured as a graph, and runs as one
Case = tuple[float, int]


@dataclass(frozen=True)
class Side:
    """What one side loads and is asked for."""

    folder: str
    dtype: str
    sampler: str
    steps: int
    steps_measured: int  # fewer: denoising is scaled to `steps`
    low_memory: bool = False
    offload: bool = False
    compile: bool = False


class Worker:
    """A side in a process of its own. `ask` gives it an order and waits for the answer."""

    def __init__(self, role: str, process: subprocess.Popen, said: IO[str], threads: int | None):
        self.role, self.process, self.said, self.threads = role, process, said, threads

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer to an order. Raises ValueError with the reason where the process ends instead."""
        line = json.dumps({"do": do, "threads": self.threads, **order}) + "\n"
        with suppress(BrokenPipeError):  # it has ended, and gives no answer
            self.process.stdin.write(line.encode())
        answer = self.process.stdout.readline()
        if not answer:
            raise ValueError(f"{NAMES.get(self.role, self.role)} failed: {self.last_words()}")
        return json.loads(answer)

    def last_words(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip()]
        if code < 0:
            return f"its process was ended by signal {-code}, perhaps for want of memory."
        if not lines:
            return f"its process ended with exit code {code}."
        return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1])  # the sentence of a traceback

    def load(self, side: Side, device: str) -> dict[str, float]:
        wanted = asdict(side)
        del wanted["steps"], wanted["steps_measured"]
        return self.ask("load", device=device, **wanted)

    def request(self, side: Side, case: Case) -> dict[str, Any]:
        found = self.ask("request", seconds=case[0], sounds=case[1], steps=side.steps_measured)
        return scaled(found, side)


@contextmanager
def working(role: str, threads: int | None = None, cache: str | None = None) -> Iterator[Worker]:
    """A worker while the block lasts.

    threads: of PyTorch; None leaves it the choice. cache: the folder where it keeps what it has compiled.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    environment |= {"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {}
    command, pipe = [sys.executable, benchmark_worker.__file__, role], subprocess.PIPE
    with (
        TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=said, env=environment
        ) as process,  # closes its input at the end, and so there are no more orders
    ):
        yield Worker(role, process, said, threads)


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
    say: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Each case, a length in seconds and a number of sounds, on each side in turn.

    ceilings: GFLOP/s by dtype. cache: see `working`. say: called with a line for each request.
    """
    found = []
    with ExitStack() as stack:
        workers = {role: stack.enter_context(working(role, threads, cache)) for role in sides}
        for role, side in sides.items():
            say(f"{NAMES[role]} loads")
            workers[role].load(side, device)
        for case in cases:
            seconds, sounds = case
            counted, compiling, timed = {}, {}, {role: [] for role in sides}
            for role, side in sides.items():
                steps = min(side.steps_measured, WARM_UP_STEPS)
                order = {"seconds": seconds, "sounds": sounds, "steps": steps}
                counted[role] = workers[role].ask("request", **order, count=True)
                if side.compile:
                    say(f"{seconds:g} s, sounds: {sounds}, {NAMES[role]} is compiled")
                    warm = [workers[role].ask("request", **order)["seconds"] for _ in range(COMPILING)]
                    compiling[role] = warm[0]["request"] - warm[-1]["request"]
            for _ in range(runs):
                for role, side in sides.items():
                    timed[role].append(workers[role].request(side, case))
                    took = timed[role][-1]["seconds"]["request"]
                    say(f"{seconds:g} s, sounds: {sounds}, {NAMES[role]}: {took:.3g} s")
            row: dict[str, Any] = {"seconds": seconds, "sounds": sounds}
            for role, side in sides.items():
                row[role] = summary(timed[role], counted[role], side, ceilings[side.dtype])
                if role in compiling:
                    row[role]["compiling, s"] = compiling[role]
            if "peer" in sides:
                row["ratio"] = ratios(row["ours"]["stages"], row["peer"]["stages"])
            found.append(row)
    return found


def scaled(found: dict[str, Any], side: Side) -> dict[str, Any]:
    """A request of fewer steps than wanted, with its denoising made as long as that of all of them."""
    seconds = found["seconds"]
    denoise = seconds["denoise"] * side.steps / side.steps_measured
    request = seconds["request"] + denoise - seconds["denoise"]
    return found | {"seconds": seconds | {"denoise": denoise, "request": request}}


def summary(
    runs: Sequence[dict[str, Any]], counted: dict[str, Any], side: Side, ceiling: float
) -> dict[str, Any]:
    """Of one side: medians and spread of each stage, its arithmetic, and how near that is to the ceiling."""
    gflop = dict(counted["GFLOP"])
    gflop["step"] = gflop["denoise"] / counted["steps"]
    # More sounds than fit at once are denoised in slices, each of which takes all steps.
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
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "runs": list(values),
    }


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Our median over the peer's, for what both have."""
    return {name: ours[name]["median"] / peer[name]["median"] for name in ours if name in peer}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """p of the cost = c size^p that fits best in logarithms; None with fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


def exponents(rows: Sequence[dict[str, Any]], size: str, roles: Sequence[str]) -> dict[str, Any]:
    """How each stage of each side grows with `size`, "seconds" or "sounds", over these cases."""
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
    """What starting costs on each side, each time in a fresh process, the sides in turn."""
    found: dict[str, list[dict[str, float]]] = {role: [] for role in sides}
    for _ in range(starts):
        for role, side in sides.items():
            with working(role, threads, cache) as worker:
                costs = worker.load(side, device)
                until_there = sum(cost for name, cost in costs.items() if name.endswith(", s"))
                for which in ("first", "second"):
                    costs[f"{which} sound, s"] = worker.request(side, case)["seconds"]["request"]
                costs["all up to the first sound, s"] = until_there + costs["first sound, s"]
            found[role].append(costs)
    return {
        role: {name: spread([run[name] for run in runs]) for name in runs[0]}
        for role, runs in found.items()
        if runs
    }
