"""The benchmark beside diffusers: both eager, then both compiled, the same weights, dtype and steps."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from audioldm2.convert import write_diffusers
from scripts.benchmark import benchmark
from scripts.benchmark.runs import PEER_NEEDS
from scripts.gpu_checks.context import Context, Row

SOUNDS = 8  # of the second case; the first has one


def eager(context: Context) -> Iterator[Row]:
    yield from measured(context, "eager", [])


def compiled(context: Context) -> Iterator[Row]:
    yield from measured(context, "compiled", ["--compile", "both" if has_peer(context) else "ours"])


def has_peer(context: Context) -> bool:
    return context.with_peer and all(find_spec(name) for name in PEER_NEEDS)


def measured(context: Context, words: str, flags: list[str]) -> Iterator[Row]:
    """A row for each case, with medians in seconds."""
    case = [
        *("--duration", context.seconds),
        *("--steps", context.steps),
        *("--runs", 1 if context.quick else 3),
    ]
    flags += ["--model", context.folder, "--device", context.device, "--dtype", context.dtype, *case]
    flags += ["--sounds", 2 if context.quick else SOUNDS, "--starts", 0]
    flags += ["--peer-model", peer_folder(context)] if has_peer(context) else ["--no-peer"]
    options = benchmark.parser().parse_args([str(flag) for flag in flags])
    benchmark.check_flags(options)
    for found in benchmark.benchmark(options, context.scratch, context.report)["cases"]:
        figures: dict[str, Any] = {}
        for role, name in (("ours", "ours"), ("peer", "diffusers")):
            if role in found:
                stages = found[role]["stages"]
                figures |= {f"{name} {stage}, s": stages[stage]["median"] for stage in ("step", "request")}
                figures |= {
                    f"{name} {key}": found[role][key]["median"] for key in found[role] if "peak" in key
                }
                figures |= {f"{name} {key}": found[role][key] for key in found[role] if "compiling" in key}
        figures |= {
            f"ratio {stage}": found["ratio"][stage] for stage in ("step", "request") if "ratio" in found
        }
        figures["s"] = found["ours"]["stages"]["request"]["median"]
        sentence = "" if "peer" in found else f"{' and '.join(PEER_NEEDS)}: not installed, or left out"
        yield Row(
            "benchmark", f"{words}, {found['sounds']} x {found['seconds']:g} s", True, figures, sentence
        )


def peer_folder(context: Context) -> str:
    """The model in the diffusers layout, exported once."""
    folder = context.scratch / "diffusers"
    if not folder.exists():
        write_diffusers(context.checkpoint(), folder)
    return str(folder)
