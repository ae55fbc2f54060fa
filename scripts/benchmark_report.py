"""The tables and the plot of what scripts/benchmark.py found.

python scripts/benchmark_report.py found.json --plot found.png      of what --json has written
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioldm2.files import atomic_write

NAMES = {"ours": "ours", "peer": "diffusers"}
STAGES = {  # as measured -> as told
    "prompt": "prompt",
    "step": "one denoiser step",
    "denoise": "denoising",
    "decode": "decoding",
    "vocode": "vocoding",
    "request": "whole request",
}
PACKAGES = ("torch", "diffusers", "transformers")
GROWING = ("step", "decode", "vocode", "request")  # whose exponents are told


def text(found: dict[str, Any]) -> str:
    """All tables, in Markdown."""
    roles = list(found["sides"])
    parts = [heading(found), of_stages(found["cases"][0], roles), of_arithmetic(found["cases"][0], roles)]
    for size, unit, title in (("lengths", "seconds", "length"), ("sounds", "sounds", "number of sounds")):
        rows = cases_of(found, size)
        if rows:
            parts.append(of_growth(rows, unit, roles))
            parts.append(growth(found["exponents"]["length" if size == "lengths" else "sounds"], title))
    if found["starts"]:
        parts.append(of_starts(found["starts"]))
    return "\n\n".join(part for part in parts if part)


def heading(found: dict[str, Any]) -> str:
    """What was measured, on what, in a few sentences."""
    machine, case = found["machine"], found["cases"][0]
    where = machine["device name"] if machine["device"].startswith("cuda") else machine["processor"]
    packages = [f"{name} {machine[name]}" for name in PACKAGES if name == "torch" or "peer" in found["sides"]]
    lines = [
        ", ".join([where, f"device {machine['device']}", plural(machine["threads"], "thread"), *packages])
        + ".",
        f"Model: {found['model']}. {case['seconds']:g} s of sound, guidance {found['guidance']:g}, "
        f"median of {plural(found['runs'], 'run')} (least to most).",
    ]
    for role, side in found["sides"].items():
        wishes = [wish for wish in ("low_memory", "offload", "compile") if side.get(wish)]
        words = [f"{side['steps']} steps of {side['sampler']}", side["dtype"], *wishes]
        line = f"{NAMES[role]}: {', '.join(words)}."
        if side["steps_measured"] < side["steps"]:
            line += (
                f" {side['steps_measured']} of the {side['steps']} steps were measured; denoising is scaled "
                f"up by {side['steps'] / side['steps_measured']:.3g}."
            )
        if side.get("compile"):
            line += f" Compiling from nothing took {figure(case[role]['compiling, s'])} s."
        lines.append(line)
    for dtype, ceiling in found["ceiling, GFLOP/s"].items():
        best = max(ceiling["of"], key=ceiling["of"].get)
        lines.append(f"Ceiling in {dtype}: {ceiling['best']:.0f} GFLOP/s ({best}).")
    return "\n".join(lines)


def of_stages(case: dict[str, Any], roles: Sequence[str]) -> str:
    """One row a stage: seconds of each side and their ratio; then peaks of memory."""
    rows = []
    for stage, title in STAGES.items():
        rows.append([title, *(ranged(case[role]["stages"][stage]) for role in roles)])
        rows[-1] += [f"{case['ratio'][stage]:.2f}"] if "ratio" in case else []
    for peak in [name for name in case["ours"] if name.startswith("peak")]:
        both = [case[role][peak] for role in roles]
        rows.append([peak, *(ranged(entry, "{:.0f}") for entry in both)])
        if "ratio" in case:
            rows[-1].append(f"{both[0]['median'] / both[1]['median']:.2f}" if both[1]["median"] else "")
    header = ["stage", *(f"{NAMES[role]}, s" for role in roles)]
    return table(header + ["ours / diffusers"] * ("ratio" in case), rows)


def of_arithmetic(case: dict[str, Any], roles: Sequence[str]) -> str:
    """One row a stage: the arithmetic of each side, its speed, and how near that comes to the ceiling."""
    rows = []
    for stage, title in STAGES.items():
        rows.append([title])
        for role in roles:
            entry = case[role]["stages"][stage]
            percent = f"{entry['percent of ceiling']:.0f} %"
            rows[-1] += [figure(entry["GFLOP"]), figure(entry["GFLOP/s"]), percent]
    kinds = ("GFLOP", "GFLOP/s", "of ceiling")
    return table(["stage", *(f"{NAMES[role]}, {kind}" for role in roles for kind in kinds)], rows)


def of_growth(rows: Sequence[dict[str, Any]], unit: str, roles: Sequence[str]) -> str:
    """One row a length or number of sounds: the request, a step and the peak of each side."""
    header = ["length, s" if unit == "seconds" else "sounds"]
    header += [f"{NAMES[role]}, s" for role in roles]
    header += ["ours / diffusers"] if len(roles) == 2 else []
    header += [f"{NAMES[role]}, {what}" for what in ("one step, s", "peak, MB") for role in roles]
    lines = []
    for row in rows:
        line = [f"{row[unit]:g}", *(ranged(row[role]["stages"]["request"]) for role in roles)]
        line += [f"{row['ratio']['request']:.2f}"] if "ratio" in row else []
        line += [figure(row[role]["stages"]["step"]["median"]) for role in roles]
        line += [f"{row[role][peak_of(row[role])]['median']:.0f}" for role in roles]
        lines.append(line)
    return table(header, lines)


def growth(exponents: dict[str, dict[str, float | None]], title: str) -> str:
    """The fitted exponents, in sentences; nothing of a single size."""
    sentences = []
    for role, of_stage in exponents.items():
        fitted = {stage: p for stage, p in of_stage.items() if p is not None and stage in GROWING}
        told = [f"{STAGES[stage]} {p:.2f}" for stage, p in fitted.items()]
        if told:
            sentences.append(f"{NAMES[role]} grows with the {title} to the power of: {', '.join(told)}.")
    return "\n".join(sentences)


def of_starts(starts: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row for each cost of starting; what one side alone has keeps the other's column empty."""
    names = list(dict.fromkeys(name for costs in starts.values() for name in costs))
    names.sort(key=lambda name: ("import" not in name, "MB" in name))  # seconds first, in order
    rows = []
    for name in names:
        form = "{:.0f}" if name.endswith("MB") else None
        cells = [ranged(costs[name], form) if name in costs else "" for costs in starts.values()]
        if len(starts) == 2:
            both = [costs[name]["median"] for costs in starts.values() if name in costs]
            cells.append(f"{both[0] / both[1]:.2f}" if len(both) == 2 and both[1] else "")
        rows.append([name, *cells])
    header = ["starting", *(NAMES[role] for role in starts)]
    return table(header + ["ours / diffusers"] * (len(starts) == 2), rows)


def cases_of(found: dict[str, Any], size: str) -> list[dict[str, Any]]:
    """The measured cases of the lengths, or of the numbers of sounds, from the least on."""
    case = found["cases"][0]  # the one that all others differ from in one thing
    unit, other = ("seconds", "sounds") if size == "lengths" else ("sounds", "seconds")
    rows = [row for row in found["cases"] if row[unit] in found[size] and row[other] == case[other]]
    return sorted(rows, key=lambda row: row[unit])


def peak_of(side: dict[str, Any]) -> str:
    """The name of the peak that counts: the device's where there is one."""
    return [name for name in side if name.startswith("peak")][-1]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value else "0"


def ranged(entry: dict[str, float], form: str | None = None) -> str:
    """The median, with the least and the most where they are others."""
    write = form.format if form else figure
    median, least, most = (write(entry[name]) for name in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns stand under each other."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# The plot ---------------------------------------------------------------------------------------------------


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the stages and, where measured, the request over length and number of sounds; needs matplotlib."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    roles = list(found["sides"])
    panels = [size for size in ("lengths", "sounds") if cases_of(found, size)]
    drawing = Figure(figsize=(5 * (1 + len(panels)), 4), layout="constrained")
    axes = drawing.subplots(1, 1 + len(panels), squeeze=False)[0]
    told = [stage for stage in STAGES if stage != "step"]
    for i, role in enumerate(roles):
        places = [j + 0.8 / len(roles) * i for j in range(len(told))]
        entries = [found["cases"][0][role]["stages"][stage] for stage in told]
        medians = [entry["median"] for entry in entries]
        errors = [
            [entry["median"] - entry["least"] for entry in entries],
            [entry["most"] - entry["median"] for entry in entries],
        ]
        bars = axes[0].barh(places, medians, 0.75 / len(roles), xerr=errors, label=NAMES[role])
        axes[0].bar_label(bars, [figure(median) for median in medians], padding=4)
    axes[0].set_yticks([j + 0.4 * (len(roles) - 1) / len(roles) for j in range(len(told))])
    axes[0].set_yticklabels([STAGES[stage] for stage in told])
    axes[0].invert_yaxis()
    axes[0].margins(x=0.15)
    axes[0].set(xlabel="seconds", title=f"{found['cases'][0]['seconds']:g} s of sound")
    for panel, size in zip(axes[1:], panels, strict=True):
        rows, unit = cases_of(found, size), "seconds" if size == "lengths" else "sounds"
        for role in roles:
            entries = [row[role]["stages"]["request"] for row in rows]
            p = found["exponents"]["length" if size == "lengths" else "sounds"][role]["request"]
            label = NAMES[role] if p is None else f"{NAMES[role]}, power {p:.2f}"
            sizes = [row[unit] for row in rows]
            line = panel.plot(sizes, [entry["median"] for entry in entries], "o-", label=label)[0]
            least, most = ([entry[end] for entry in entries] for end in ("least", "most"))
            panel.fill_between(sizes, least, most, alpha=0.2, color=line.get_color())
        panel.set(
            xscale="log", yscale="log", ylabel="seconds, whole request",
            xlabel="seconds of sound" if size == "lengths" else "sounds at once",
        )  # fmt: skip
        ticks = [row[unit] for row in rows]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.yaxis.set_major_formatter("{x:g}")
    for panel in axes:
        panel.legend()
    machine = found["machine"]
    drawing.suptitle(f"{machine['device name']}, {plural(machine['threads'], 'thread')}, {found['model']}")
    with atomic_write(path) as draft:
        drawing.savefig(draft, format="png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="what scripts/benchmark.py --json has written")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it; needs matplotlib")
    options = parser.parse_args(arguments)
    try:
        found = json.loads(options.json.read_text(encoding="utf-8"))
        print(text(found))
        if options.plot:
            plot(found, options.plot)
    except KeyError as error:
        print(f"{parser.prog}: error: {options.json} has no {error}.", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
