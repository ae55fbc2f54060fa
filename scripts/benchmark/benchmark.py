"""Measure time and memory of each stage, next to diffusers' AudioLDM2Pipeline if that is installed.

    python scripts/benchmark/benchmark.py --size tiny --duration 2.56 --steps 4
    python scripts/benchmark/benchmark.py                  a random model of the published base size
    python scripts/benchmark/benchmark.py --model ./base --dtype float16 --device cuda --json base.json
    python scripts/benchmark/benchmark.py --default --peer-steps 20    each side with its defaults
    python scripts/benchmark/benchmark.py --lengths 5,10,20 --sounds 1,2,4 --plot growth.png
    python scripts/benchmark/benchmark.py --compile both   compiled against compiled, on CUDA as graphs

Both sides use the same weights, prompts, length and guidance 3.5 and, without --default, the same steps,
sampler and dtype. Each side has its own process, so that peaks of memory are its own, and only one works at a
time. Requests alternate: ours, diffusers, ours, ... A first request of two steps on each side warms up and
counts the arithmetic; it is not timed.

The tables show medians, with minimum and maximum in brackets, and the ratio of ours to diffusers. "One
denoiser step" includes the network, guidance and the sampler. The stages add up to the request. Peaks are
resident memory including weights and, on CUDA, the memory that PyTorch has allocated there.

The arithmetic counts matrix products, convolutions and attention as each side performs them: a side that has
less to compute is faster at the same GFLOP/s. The ceiling is the best speed of some large matrix products and
3x3 convolutions in the same run and dtype.

Start-up is measured in fresh processes: imports, loading, the first and the second sound. Files are in the
system's cache by then, and compiled code is in PyTorch's cache. That cache starts empty; the report includes
the time that compiling added to the first request.

The random base models need 9 GB in the temporary folder (set TMPDIR to move it). runs.py runs the requests,
worker.py times one side, arithmetic.py counts operations, report.py prints the tables and draws the plot.
"""

import argparse
import json
import math
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from scripts.benchmark import report
from scripts.benchmark.runs import (
    PEER_NEEDS,
    Side,
    exponents,
    machine,
    measure,
    measure_starts,
    start_worker,
)
from scripts.benchmark.sides import GUIDANCE
from scripts.make_random_checkpoint import make

OUR_STEPS, PEER_STEPS = 25, 200  # the defaults of both sides


# What is measured -------------------------------------------------------------------------------------------


def models(options: argparse.Namespace, with_peer: bool, scratch: Path) -> tuple[str, str]:
    """Returns where each side finds its weights; makes missing ones in `scratch`."""
    ours = options.model or str(scratch / "ours")
    if not options.model:
        make(ours, options.size)
    found = hub.find(ours)
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
    """Returns our side and, if it has a folder, the peer."""
    dtype = dtypes.require_dtype(options.dtype or "auto")
    if dtype == "auto":  # a choice that diffusers does not have
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


def benchmark(
    options: argparse.Namespace, scratch: Path, progress: Callable[[str], object]
) -> dict[str, Any]:
    """Measures everything that the options ask for; returns what --json writes."""
    device = load.resolve_device(options.device)
    absent = [name for name in PEER_NEEDS if find_spec(name) is None]
    if absent and not options.no_peer:
        progress(f"{' and '.join(absent)} not installed: measuring ours alone")
    progress("preparing the model")
    folders = models(options, not (options.no_peer or absent), scratch)
    sides = sides_of(options, device, folders)
    speeds_of = {}
    with start_worker("ceiling", options.threads) as worker:
        for dtype in sorted({side.dtype for side in sides.values()}):
            # "auto" chooses by itself, so its ceiling is that of the fastest dtype.
            auto = ("float16",) if device.type == "cuda" else ("float32", "bfloat16")
            speeds_of[dtype] = {
                f"{name}, {each}" if dtype == "auto" else name: speed
                for each in (auto if dtype == "auto" else (dtype,))
                for name, speed in worker.ask("ceiling", device=str(device), dtype=each).items()
            }
    ceilings = {dtype: max(speeds.values()) for dtype, speeds in speeds_of.items()}

    first = (options.duration, 1)
    cases = [first, *((seconds, 1) for seconds in options.lengths)]
    cases += [(options.duration, sounds) for sounds in options.sounds]
    rows = measure(
        sides, list(dict.fromkeys(cases)), device=str(device), runs=options.runs, ceilings=ceilings,
        threads=options.threads, cache=str(scratch / "compiled"), report=progress,
    )  # fmt: skip
    lengths = [row for row in rows if row["sounds"] == 1 and row["seconds"] in options.lengths]
    sounds = [row for row in rows if row["seconds"] == options.duration and row["sounds"] in options.sounds]
    if options.starts:
        progress(f"starting each side {report.plural(options.starts, 'time')}")
    starts = measure_starts(
        sides, first, device=str(device), starts=options.starts, threads=options.threads,
        cache=str(scratch / "compiled"),
    )  # fmt: skip
    return {
        "machine": machine(device, options.threads),
        "model": options.model or f"random {options.size}",
        "guidance": GUIDANCE,
        "runs": options.runs,
        "sides": {role: asdict(side) for role, side in sides.items()},
        "ceiling, GFLOP/s": {
            dtype: {"best": ceilings[dtype], "of": speeds} for dtype, speeds in speeds_of.items()
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
    """An ArgumentParser that raises ValueError with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see --help")


def positive(kind: type) -> Callable[[str], Any]:
    """Returns a parser of numbers above 0."""

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
    """Returns a parser of comma-separated numbers above 0."""
    return lambda text: list(dict.fromkeys(positive(kind)(part) for part in text.split(",")))


def parser() -> Parser:
    """Builds the parser of all flags."""
    parser = Parser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--size", choices=("base", "large", "tiny"), help="size of the random model (default: base)")
    add("--model", metavar="MODEL", help="measure this model instead: a folder, a hub id or an original file")
    add(
        "--peer-model", metavar="FOLDER",
        help="the same model in the diffusers layout (default: --model, exported if necessary)",
    )  # fmt: skip
    add("--no-peer", action="store_true", help="measure ours alone")
    add(
        "--default", action="store_true",
        help="use each side's defaults: ours 25 steps of dpmpp_2m in dtype 'auto', diffusers 200 steps "
        "of DDIM in float32",
    )  # fmt: skip
    add(
        "--peer-steps", type=positive(int), metavar="N",
        help="with --default, measure N of diffusers' 200 steps and scale its denoising time up",
    )  # fmt: skip
    add("--device", default="auto", help="default: %(default)s")
    add("--dtype", help="of both sides (default: float16 on CUDA, otherwise float32)")
    add("--duration", type=positive(float), default=10.24, metavar="S", help="default: %(default)s")
    add("--steps", type=positive(int), help=f"default: {OUR_STEPS}")
    add("--sampler", choices=("dpmpp_2m", "ddim"), help="default: dpmpp_2m")
    add("--runs", type=positive(int), default=3, help="timed requests on each side (default: %(default)s)")
    add("--starts", type=int, default=3, help="fresh processes on each side, may be 0 (default: %(default)s)")
    add(
        "--lengths", type=several(float), default=[], metavar="S,S,...",
        help="also measure one sound of these lengths",
    )  # fmt: skip
    add(
        "--sounds", type=several(int), default=[], metavar="N,N,...",
        help="also measure these numbers of sounds at once, with distinct prompts",
    )  # fmt: skip
    add("--low-memory", action="store_true", help="ours: low_memory=True")
    add(
        "--offload", action="store_true",
        help="ours: offload=True; diffusers: enable_model_cpu_offload, which needs accelerate and a GPU",
    )  # fmt: skip
    add(
        "--compile", choices=("ours", "both"),
        help="ours: compile=True; both: diffusers' UNet is compiled too",
    )  # fmt: skip
    add("--threads", type=positive(int), help="threads of PyTorch (default: its choice)")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE", help="draw a plot; needs matplotlib")
    return parser


def check_flags(options: argparse.Namespace) -> None:
    """Raises ValueError if flags contradict each other."""
    if options.size and options.model:
        raise ValueError("--size and --model cannot be combined.")
    if options.peer_model and (options.no_peer or not options.model):
        raise ValueError("--peer-model needs --model and cannot be combined with --no-peer.")
    if options.low_memory and options.offload:
        raise ValueError("--low-memory and --offload cannot be combined; --low-memory needs less memory.")
    if options.compile and (options.low_memory or options.offload):
        raise ValueError("--compile cannot be combined with --low-memory or --offload.")
    if options.compile == "both" and (options.default or options.no_peer):
        raise ValueError("--compile both cannot be combined with --default or --no-peer.")
    if options.default and (options.steps or options.sampler or options.dtype):
        raise ValueError("--default cannot be combined with --steps, --sampler or --dtype.")
    if options.peer_steps and not options.default:
        raise ValueError("--peer-steps needs --default; otherwise both sides take --steps.")
    dtypes.require_dtype(options.dtype or "auto")  # raises before a model is made
    if options.starts < 0:
        raise ValueError(f"--starts is {options.starts}; it has to be at least 0.")
    for flag, path in (("--json", options.json), ("--plot", options.plot)):
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"{flag} {path}: the folder {path.parent} does not exist.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        options = parser().parse_args(arguments)
        options.size = options.size or (None if options.model else "base")
        check_flags(options)
        if options.plot and find_spec("matplotlib") is None:
            progress("matplotlib is not installed, so there is no plot: pip install matplotlib")
            options.plot = None
        with TemporaryDirectory(prefix="benchmark-") as scratch:
            found = benchmark(options, Path(scratch), progress)
        print(report.text(found))
        if options.json:
            with atomic_write(options.json) as draft:
                draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if options.plot:
            report.plot(found, options.plot)
    except (ValueError, OSError, WeightsError) as error:
        progress(f"benchmark.py: error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
