"""Print the tables and draw the plot of benchmark.py's figures.

python scripts/benchmark/report.py found.json --plot found.png      from the file that --json wrote
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioldm2.files import atomic_write

NAMES = {"ours": "ours", "peer": "diffusers"}
STAGES = {  # as measured: as printed
    "prompt": "prompt",
    "step": "one denoiser step",
    "denoise": "denoising",
    "decode": "decoding",
    "vocode": "vocoding",
    "request": "whole request",
}
PACKAGES = ("torch", "diffusers", "transformers")
GROWING = ("step", "decode", "vocode", "request")  # stages whose exponents are printed


def text(found: dict[str, Any]) -> str:
    """Formats all tables in Markdown."""
    roles = list(found["sides"])
    parts = [
        heading(found),
        stage_table(found["cases"][0], roles),
        arithmetic_table(found["cases"][0], roles),
    ]
    for size, unit, title in (("lengths", "seconds", "length"), ("sounds", "sounds", "number of sounds")):
        rows = cases_of(found, size)
        if rows:
            parts.append(growth_table(rows, unit, roles))
            parts.append(
                growth_sentences(found["exponents"]["length" if size == "lengths" else "sounds"], title)
            )
    if found["starts"]:
        parts.append(start_table(found["starts"]))
    return "\n\n".join(part for part in parts if part)


def heading(found: dict[str, Any]) -> str:
    """Describes what was measured on which hardware."""
    machine, case = found["machine"], found["cases"][0]
    where = machine["device name"] if machine["device"].startswith("cuda") else machine["processor"]
    packages = [f"{name} {machine[name]}" for name in PACKAGES if name == "torch" or "peer" in found["sides"]]
    lines = [
        ", ".join([where, f"device {machine['device']}", plural(machine["threads"], "thread"), *packages])
        + ".",
        f"Model: {found['model']}. {case['seconds']:g} s of sound, guidance {found['guidance']:g}, "
        f"median of {plural(found['runs'], 'run')} (minimum to maximum).",
    ]
    for role, side in found["sides"].items():
        flags = [flag for flag in ("low_memory", "offload", "compile") if side.get(flag)]
        words = [f"{side['steps']} steps of {side['sampler']}", side["dtype"], *flags]
        line = f"{NAMES[role]}: {', '.join(words)}."
        if side["steps_measured"] < side["steps"]:
            line += (
                f" {side['steps_measured']} of the {side['steps']} steps were measured; denoising time is "
                f"scaled up by {side['steps'] / side['steps_measured']:.3g}."
            )
        if side.get("compile"):
            line += f" Compiling with an empty cache took {figure(case[role]['compiling, s'])} s."
        lines.append(line)
    for dtype, ceiling in found["ceiling, GFLOP/s"].items():
        best = max(ceiling["of"], key=ceiling["of"].get)
        lines.append(f"Ceiling in {dtype}: {ceiling['best']:.0f} GFLOP/s ({best}).")
    return "\n".join(lines)


def stage_table(case: dict[str, Any], roles: Sequence[str]) -> str:
    """Formats a row per stage: seconds of each side and their ratio; then peaks of memory."""
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


def arithmetic_table(case: dict[str, Any], roles: Sequence[str]) -> str:
    """Formats a row per stage: the arithmetic of each side, its speed, and that relative to the ceiling."""
    rows = []
    for stage, title in STAGES.items():
        rows.append([title])
        for role in roles:
            entry = case[role]["stages"][stage]
            percent = f"{entry['percent of ceiling']:.0f} %"
            rows[-1] += [figure(entry["GFLOP"]), figure(entry["GFLOP/s"]), percent]
    kinds = ("GFLOP", "GFLOP/s", "of ceiling")
    return table(["stage", *(f"{NAMES[role]}, {kind}" for role in roles for kind in kinds)], rows)


def growth_table(rows: Sequence[dict[str, Any]], unit: str, roles: Sequence[str]) -> str:
    """Formats a row per length or number of sounds: the request, a step and the peak of each side."""
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


def growth_sentences(exponents: dict[str, dict[str, float | None]], title: str) -> str:
    """Formats the fitted exponents as sentences; empty if only one size was measured."""
    sentences = []
    for role, of_stage in exponents.items():
        fitted = {stage: p for stage, p in of_stage.items() if p is not None and stage in GROWING}
        powers = [f"{STAGES[stage]} {p:.2f}" for stage, p in fitted.items()]
        if powers:
            sentences.append(f"{NAMES[role]} grows with the {title} to the power of: {', '.join(powers)}.")
    return "\n".join(sentences)


def start_table(starts: dict[str, dict[str, dict[str, float]]]) -> str:
    """Formats a row per start-up cost; a cost that only one side has leaves the other's cell empty."""
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
    """Returns the cases of --lengths or of --sounds in ascending order."""
    case = found["cases"][0]  # all others differ from it in length or in number
    unit, other = ("seconds", "sounds") if size == "lengths" else ("sounds", "seconds")
    rows = [row for row in found["cases"] if row[unit] in found[size] and row[other] == case[other]]
    return sorted(rows, key=lambda row: row[unit])


def peak_of(side: dict[str, Any]) -> str:
    """Returns the name of the relevant peak: that of the device, or else resident memory."""
    return [name for name in side if name.startswith("peak")][-1]


def plural(count: int, noun: str) -> str:
    """Returns "1 run", "2 runs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def figure(value: float) -> str:
    """Formats a number with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value else "0"


def ranged(entry: dict[str, float], form: str | None = None) -> str:
    """Formats the median and, if they differ from it, minimum and maximum."""
    write = form.format if form else figure
    median, least, most = (write(entry[name]) for name in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# The plot ---------------------------------------------------------------------------------------------------


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws the stages and, if measured, the request over length and number of sounds; needs matplotlib."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    roles = list(found["sides"])
    panels = [size for size in ("lengths", "sounds") if cases_of(found, size)]
    drawing = Figure(figsize=(5 * (1 + len(panels)), 4), layout="constrained")
    axes = drawing.subplots(1, 1 + len(panels), squeeze=False)[0]
    shown = [stage for stage in STAGES if stage != "step"]
    for i, role in enumerate(roles):
        places = [j + 0.8 / len(roles) * i for j in range(len(shown))]
        entries = [found["cases"][0][role]["stages"][stage] for stage in shown]
        medians = [entry["median"] for entry in entries]
        errors = [
            [entry["median"] - entry["least"] for entry in entries],
            [entry["most"] - entry["median"] for entry in entries],
        ]
        bars = axes[0].barh(places, medians, 0.75 / len(roles), xerr=errors, label=NAMES[role])
        axes[0].bar_label(bars, [figure(median) for median in medians], padding=4)
    axes[0].set_yticks([j + 0.4 * (len(roles) - 1) / len(roles) for j in range(len(shown))])
    axes[0].set_yticklabels([STAGES[stage] for stage in shown])
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
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="the file that benchmark.py --json wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a plot; needs matplotlib")
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
