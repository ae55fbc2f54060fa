"""Check audioldm2 on this machine's GPU, in ten minutes and without a download; prints a table.

    python scripts/gpu_check.py --json gpu.json
    python scripts/gpu_check.py --model ./base --only parity,capture
    python scripts/gpu_check.py --device cpu --quick      every line of it with tiny sizes, on any machine

The checks, in order:

    parity      each network on the device in float32, TF32, float16 and bfloat16, against float32 on the CPU
    capture     the denoiser, the decoder and the vocoder as CUDA graphs
    request     whole requests: resident, offloaded, in low memory, compiled
    batch       sounds per second of batches up to what fits, and memory against its estimate
    long        three sounds of 300 s, whole and in windows
    benchmark   each stage beside diffusers, eager and compiled, where that is installed

Weights are random, of the published base size, unless --model names a model: neither times nor rounding
errors need trained ones. A check that fails is a row with its reason, and the others go on; one that would
begin after --minutes is left out. --json writes all figures with the machine and its settings.

Exit codes: 0 all checks passed, or were left out; 1 one failed; 2 a wrong argument.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from audioldm2 import WeightsError
from audioldm2.checkpoints.load import resolve_device
from audioldm2.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from scripts.benchmark.benchmark import Parser, positive
from scripts.benchmark.runs import machine
from scripts.gpu_checks import beside, networks, requests
from scripts.gpu_checks.context import Check, Context, Row
from scripts.make_random_checkpoint import make

# name -> the check; seconds that a part of it may take on a GPU, without which it does not begin
CHECKS: dict[str, list[tuple[Check, float]]] = {
    "parity": [(networks.parity, 60)],
    "capture": [(networks.capture, 20)],
    "request": [(requests.placements, 150)],
    "batch": [(requests.batches, 40)],
    "long": [(requests.long_sounds, 60)],
    "benchmark": [(beside.eager, 90), (beside.compiled, 150)],
}
COLUMNS = ("dB", "s", "peak MB", "sounds/s", "ratio request")


def run(context: Context, names: Sequence[str]) -> list[Row]:
    """Run checks one after the other, whatever fails."""
    rows = []
    for name in names:
        for check, needed in CHECKS[name]:
            if context.seconds_left < needed:
                rows.append(Row(name, check.__name__, None, sentence="left out: no time is left for it"))
                context.report(line(rows[-1]))
                continue
            try:
                for row in check(context):
                    rows.append(row)
                    context.report(line(row))
            except Exception as error:  # before its first row, or between two
                sentence = " ".join(f"{type(error).__name__}: {error}".split())
                rows.append(Row(name, check.__name__, False, sentence=sentence))
                context.report(line(rows[-1]))
            gc.collect()
            if context.is_cuda:
                torch.cuda.empty_cache()
    return rows


def settings(context: Context, model: str) -> dict[str, Any]:
    """What the figures depend on."""
    found = machine(context.device, None) | {
        "model": model,
        "dtype of requests": context.dtype,
        "quick": context.quick,
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
    }
    if context.is_cuda:
        about = torch.cuda.get_device_properties(context.device)
        found |= {"device memory, MB": about.total_memory / 1e6, "capability": f"{about.major}.{about.minor}"}
    return found


def line(row: Row) -> str:
    """A row as a sentence of progress."""
    shown = [f"{_shown(row.figures[name])} {name}" for name in COLUMNS if name in row.figures]
    note = f" ({row.sentence})" if row.sentence else ""
    return f"{row.check}: {row.what}: {', '.join([_state(row), *shown])}{note}"


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    header = ["check", "what", "", *COLUMNS, "note"]
    lines = [
        [
            row.check,
            row.what,
            _state(row),
            *(_shown(row.figures.get(name, "")) for name in COLUMNS),
            row.sentence,
        ]
        for row in rows
    ]
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in each] for each in lines]
    widths = [max(len(each[i]) for each in (header, *lines)) for i in range(len(header))]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([joined(header), joined(["-" * width for width in widths]), *map(joined, lines)])


def _state(row: Row) -> str:
    return "left out" if row.ok is None else "ok" if row.ok else "FAILED"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def parser() -> Parser:
    """Builds the parser of all flags."""
    made = Parser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = made.add_argument
    add("--device", default="auto", help="default: %(default)s, a GPU if there is one")
    add(
        "--model", metavar="MODEL", help="a folder, 'demo' or an original file (default: random base weights)"
    )
    add("--only", metavar="NAME,...", help=f"some of {', '.join(CHECKS)} (default: all)")
    add("--minutes", type=positive(float), default=10.0, metavar="N", help="default: %(default)g")
    add("--no-peer", action="store_true", help="measure ours alone, even where diffusers is installed")
    add("--quick", action="store_true", help="tiny weights and requests: to try the script itself")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    began = time.monotonic()
    try:
        options = parser().parse_args(arguments)
        names = options.only.split(",") if options.only else list(CHECKS)
        unknown = [name for name in names if name not in CHECKS]
        if unknown:
            raise ValueError(f"--only is {unknown[0]!r}; it has to be some of {', '.join(CHECKS)}.")
        if options.json and not options.json.absolute().parent.is_dir():
            raise ValueError(f"--json {options.json}: the folder {options.json.parent} does not exist.")
        device = resolve_device(options.device)
        with TemporaryDirectory(prefix="gpu-check-") as scratch:
            size = "tiny" if options.quick else "base"
            folder = options.model or str(Path(scratch) / "random")
            context = Context(
                device,
                folder,
                Path(scratch),
                options.quick,
                not options.no_peer,
                began + 60 * options.minutes,
            )
            if not options.model:
                context.report(f"writing random weights of the {size} size")
                make(folder, size)
            context.checkpoint()  # a model that cannot be read is a wrong argument, not a check that fails
            rows = run(context, names)
            found = settings(context, options.model or f"random {size}")
            if options.json:
                with atomic_write(options.json) as draft:
                    content = {"machine": found, "minutes": (time.monotonic() - began) / 60}
                    content["checks"] = [asdict(row) for row in rows]
                    draft.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, WeightsError) as error:
        print(f"gpu_check.py: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{name}: {value}" for name, value in found.items()), end="\n\n")
    print(table(rows))
    failed = sum(row.ok is False for row in rows)
    print(f"\n{len(rows)} rows, {failed} failed, {sum(row.ok is None for row in rows)} left out")
    return 1 if failed else 0


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


if __name__ == "__main__":
    sys.exit(main())
