"""Measure what a sound costs, stage by stage, beside diffusers' AudioLDM2Pipeline where that is installed.

    python scripts/benchmark.py --size tiny --duration 2.56 --steps 4
    python scripts/benchmark.py                             a random model of the published base size
    python scripts/benchmark.py --model ./base --dtype float16 --device cuda --json base.json --plot base.png
    python scripts/benchmark.py --default --peer-steps 20   both as they come out of the box
    python scripts/benchmark.py --lengths 5,10,20 --sounds 1,2,4 --plot growth.png
    python scripts/benchmark.py --compile both              compiled against compiled, on CUDA as graphs

Both sides get the same weights, prompts, length and guidance 3.5, and but for --default the same steps,
sampler and dtype. Each works in a process of its own and takes orders, so that only one works at a time and
peaks of memory are its own. Requests alternate, ours, diffusers, ours, ..., after one of two steps each,
which warms up, counts the arithmetic and is not timed.

Told are medians, with the least and the most in brackets, and ours over diffusers. "One denoiser step" is the
network, guidance and the sampler. The stages sum up to the request. Peaks are of resident memory, weights
included, and on CUDA of what PyTorch had allocated there.

The arithmetic is that of matrix products, convolutions and attention, as each side does it: with less to do,
the same speed is a shorter time. The ceiling is the fastest of some large matrix products and 3x3
convolutions, in the same run and dtype: what the machine gives to such code at best.

Starting is measured in fresh processes: imports, load, the first sound and the second one, of the settings
of the run. Files are in the system's cache by then, and what --compile has compiled is in PyTorch's: that
begins empty, and what the first request took longer for it is told too.

The random models need 9 GB in the temporary folder for base (TMPDIR says where). benchmark_runs.py has the
order of things, benchmark_worker.py how a side is timed, benchmark_report.py the tables and the plot.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch

from audioldm2 import WeightsError
from audioldm2.checkpoints import hub, load
from audioldm2.convert import write_diffusers
from audioldm2.files import atomic_write
from audioldm2.runtime import dtypes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from scripts import benchmark_report as report
from scripts import benchmark_worker
from scripts.benchmark_runs import Side, exponents, measure, measure_starts, working
from scripts.make_random_checkpoint import make

PEER_NEEDS = ("diffusers", "transformers")
OUR_STEPS, PEER_STEPS = 25, 200  # when nothing is said


# What is measured -------------------------------------------------------------------------------------------


def models(options: argparse.Namespace, with_peer: bool, scratch: Path) -> tuple[str, str]:
    """Where each side finds the weights; what is not there is made in `scratch`."""
    ours = options.model or str(scratch / "ours")
    if not options.model:
        make(ours, options.size)
    found = hub.find(ours)  # or a sentence says why not
    if not with_peer:
        return ours, ""
    peer = hub.find(options.peer_model) if options.peer_model else found
    if (peer / "model_index.json").is_file():
        return ours, str(peer)
    if options.peer_model:
        raise WeightsError(
            f"--peer-model {options.peer_model} is not in the diffusers layout: it has no model_index.json."
        )
    write_diffusers(load.open_checkpoint(ours), scratch / "peer")
    return ours, str(scratch / "peer")


def sides_of(options: argparse.Namespace, device: torch.device, folders: tuple[str, str]) -> dict[str, Side]:
    """Ours and, where there is a folder for it, the peer."""
    dtype = dtypes.name_of(options.dtype or "auto")
    if dtype == "auto":  # which is ours alone: both sides need the same
        dtype = "float16" if device.type == "cuda" else "float32"
    steps, sampler = options.steps or OUR_STEPS, options.sampler or "dpmpp_2m"
    own = "auto" if options.default else dtype
    sides = {
        "ours": Side(
            folders[0], own, sampler, steps, steps, options.low_memory, options.offload, bool(options.compile)
        )
    }  # fmt: skip
    offload = options.offload and device.type != "cpu"
    if folders[1] and options.default:
        measured = min(options.peer_steps or PEER_STEPS, PEER_STEPS)
        sides["peer"] = Side(folders[1], "float32", "ddim", PEER_STEPS, measured, offload=offload)
    elif folders[1]:
        both = options.compile == "both"
        sides["peer"] = Side(folders[1], dtype, sampler, steps, steps, offload=offload, compile=both)
    return sides


def machine(device: torch.device, threads: int | None) -> dict[str, Any]:
    """What it was measured on and with."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that has no name there
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


def benchmark(options: argparse.Namespace, scratch: Path, say: Callable[[str], object]) -> dict[str, Any]:
    """Everything that was asked for, as it stands in the JSON file."""
    device = load.resolve_device(options.device)
    absent = [name for name in PEER_NEEDS if find_spec(name) is None]
    if absent and not options.no_peer:
        say(f"{' and '.join(absent)} not installed: ours alone is measured")
    say("the model is made ready")
    folders = models(options, not (options.no_peer or absent), scratch)
    sides = sides_of(options, device, folders)
    of_each = {}
    with working("ceiling", options.threads) as worker:
        for dtype in sorted({side.dtype for side in sides.values()}):
            multiplied = str(dtypes.usual(device)).removeprefix("torch.") if dtype == "auto" else dtype
            of_each[dtype] = worker.ask("ceiling", device=str(device), dtype=multiplied)
    ceilings = {dtype: max(speeds.values()) for dtype, speeds in of_each.items()}

    first = (options.duration, 1)
    cases = [first, *((seconds, 1) for seconds in options.lengths)]
    cases += [(options.duration, sounds) for sounds in options.sounds]
    rows = measure(
        sides, list(dict.fromkeys(cases)), device=str(device), runs=options.runs, ceilings=ceilings,
        threads=options.threads, cache=str(scratch / "compiled"), say=say,
    )  # fmt: skip
    lengths = [row for row in rows if row["sounds"] == 1 and row["seconds"] in options.lengths]
    sounds = [row for row in rows if row["seconds"] == options.duration and row["sounds"] in options.sounds]
    if options.starts:
        say(f"each side starts {report.plural(options.starts, 'time')}")
    starts = measure_starts(
        sides, first, device=str(device), starts=options.starts, threads=options.threads,
        cache=str(scratch / "compiled"),
    )  # fmt: skip
    return {
        "machine": machine(device, options.threads),
        "model": options.model or f"random {options.size}",
        "guidance": benchmark_worker.GUIDANCE,
        "runs": options.runs,
        "sides": {role: asdict(side) for role, side in sides.items()},
        "ceiling, GFLOP/s": {
            dtype: {"best": ceilings[dtype], "of": speeds} for dtype, speeds in of_each.items()
        },
        "cases": rows,
        "lengths": sorted(row["seconds"] for row in lengths),
        "sounds": sorted(row["sounds"] for row in sounds),
        "exponents": {
            "length": exponents(lengths, "seconds", list(sides)),
            "sounds": exponents(sounds, "sounds", list(sides)),
        },
        "starts": starts,
    }


# Command line -----------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one sentence in a ValueError."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see --help")


def positive(kind: type) -> Callable[[str], Any]:
    """Reads a number above 0."""

    def read(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a {'whole ' if kind is int else ''}number above 0"
            )
        return number

    return read


def several(kind: type) -> Callable[[str], list[Any]]:
    """Reads numbers above 0 with commas between them."""
    return lambda text: list(dict.fromkeys(positive(kind)(part) for part in text.split(",")))


def parser() -> Parser:
    made = Parser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = made.add_argument
    add(
        "--size", choices=("base", "large", "tiny"),
        help="of a random model, made for the run (default: base)",
    )  # fmt: skip
    add("--model", metavar="MODEL", help="in its place, whatever audioldm2.load takes, such as a folder")
    add(
        "--peer-model", metavar="FOLDER",
        help="the same in the diffusers layout (default: made of --model, unless that is in it itself)",
    )  # fmt: skip
    add("--no-peer", action="store_true", help="measure ours alone")
    add(
        "--default", action="store_true",
        help="default against default: ours 25 steps of dpmpp_2m in dtype 'auto', diffusers 200 steps "
        "of DDIM in float32",
    )  # fmt: skip
    add(
        "--peer-steps", type=positive(int), metavar="N",
        help="with --default, measure N of diffusers' 200 steps and scale its denoising up",
    )  # fmt: skip
    add("--device", default="auto", help="default: %(default)s")
    add("--dtype", help="of both sides; default: float16 on CUDA, else float32")
    add("--duration", type=positive(float), default=10.24, metavar="S", help="default: %(default)s")
    add("--steps", type=positive(int), help=f"default: {OUR_STEPS}")
    add("--sampler", choices=("dpmpp_2m", "ddim"), help="that both sides have; default: dpmpp_2m")
    add("--runs", type=positive(int), default=3, help="requests on each side; default: %(default)s")
    add("--starts", type=int, default=3, help="fresh processes on each side, or 0; default: %(default)s")
    add(
        "--lengths", type=several(float), default=[], metavar="S,S,...",
        help="measure these lengths too, of one sound",
    )  # fmt: skip
    add(
        "--sounds", type=several(int), default=[], metavar="N,N,...",
        help="measure so many sounds at once too, each of its own prompt",
    )  # fmt: skip
    add("--low-memory", action="store_true", help="ours reads each network for its stage")
    add(
        "--offload", action="store_true",
        help="ours offload=True; diffusers enable_model_cpu_offload, which needs accelerate and a GPU",
    )  # fmt: skip
    add(
        "--compile", choices=("ours", "both"),
        help="ours compile=True, against diffusers as it is or with its UNet compiled",
    )  # fmt: skip
    add("--threads", type=positive(int), help="of PyTorch; default: its own choice")
    add("--json", type=Path, metavar="FILE", help="write everything that was found")
    add("--plot", type=Path, metavar="FILE", help="draw it, if matplotlib is installed")
    return made


def demand_sense(options: argparse.Namespace) -> None:
    """Raise ValueError where flags contradict each other, before anything is made."""
    if options.size and options.model:
        raise ValueError("--size and --model exclude each other.")
    if options.peer_model and (options.no_peer or not options.model):
        raise ValueError("--peer-model goes with --model, and not with --no-peer.")
    if options.low_memory and options.offload:
        raise ValueError("--low-memory and --offload exclude each other; --low-memory needs the least.")
    if options.compile and (options.low_memory or options.offload):
        raise ValueError("--compile needs networks that stay where they are: no --low-memory, no --offload.")
    if options.compile == "both" and (options.default or options.no_peer):
        raise ValueError("--compile both compiles diffusers' UNet too: no --default, no --no-peer.")
    if options.default and (options.steps or options.sampler or options.dtype):
        raise ValueError("--default takes each side's own steps, sampler and dtype: leave out what is given.")
    if options.peer_steps and not options.default:
        raise ValueError("--peer-steps goes with --default; otherwise both sides take --steps.")
    dtypes.name_of(options.dtype or "auto")  # complains before a model is made
    if options.starts < 0:
        raise ValueError(f"--starts is {options.starts}; it has to be 0 or more.")
    for flag, path in (("--json", options.json), ("--plot", options.plot)):
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"{flag} {path}: the folder {path.parent} does not exist.")


def main(arguments: Sequence[str] | None = None) -> int:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        options = parser().parse_args(arguments)
        options.size = options.size or (None if options.model else "base")
        demand_sense(options)
        if options.plot and find_spec("matplotlib") is None:
            say(
                "matplotlib is not installed: there will be no plot. pip install 'audioldm2[plot]' brings it."
            )
            options.plot = None
        with TemporaryDirectory(prefix="benchmark-") as scratch:
            found = benchmark(options, Path(scratch), say)
        print(report.text(found))
        if options.json:
            with atomic_write(options.json) as draft:
                draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if options.plot:
            report.plot(found, options.plot)
    except (ValueError, OSError, WeightsError) as error:
        say(f"benchmark.py: error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
