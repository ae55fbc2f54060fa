"""An evaluation as a Markdown table and as JSON: figures, intervals, and what they were measured with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audioldm2.evaluation.bootstrap import Floor, Interval
from audioldm2.evaluation.figures import Figures, Measured


@dataclass(frozen=True)
class Report:
    """Figures and the facts that belong beside them."""

    figures: Figures
    facts: Mapping[str, str]  # "sounds", "reference", "CLAP", "resampling", ...: each a short text
    seconds: Mapping[str, float]  # of each stage

    def markdown(self) -> str:
        """The tables, ready to paste."""
        beside = bool(self.figures.theirs or self.figures.floors)
        rows = [
            ["figure", "value", "95 % interval"] + ["reference", "95 % interval"] * beside,
            ["---"] * (5 if beside else 3),
        ]
        for name in dict.fromkeys([*self.figures.ours, *self.figures.theirs]):
            ours, theirs = self.figures.ours.get(name), self.figures.theirs.get(name)
            rows.append([name, *_cells(ours), *(_cells(theirs) if beside else ())])
            if name in self.figures.floors:
                rows.append(_floor_row(name, self.figures.floors[name]))
        lines = [_line(row) for row in rows]
        if self.figures.categories:
            lines += ["", _line(["category", "sounds", "CLAP score", "95 % interval"]), _line(["---"] * 4)]
            for name, score in self.figures.categories.items():
                lines.append(_line([name, str(score.sounds), *_cells(Measured(score.value, score.interval))]))
        lines += ["", *(f"- {name}: {text}" for name, text in self.facts.items())]
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return "\n".join([*lines, f"- time: {took}"])

    def json(self) -> dict[str, Any]:
        """The same as plain values; what is not a finite number is null."""
        return {
            "figures": {name: _plain(each) for name, each in self.figures.ours.items()},
            "reference": {name: _plain(each) for name, each in self.figures.theirs.items()},
            "floors": {
                name: {
                    "sounds": floor.sounds,
                    "reference": floor.reference,
                    "range": list(floor.range),
                    "value": floor.ours,
                }
                for name, floor in self.figures.floors.items()
            },
            "categories": {name: _plain(each) for name, each in self.figures.categories.items()},
            "facts": dict(self.facts),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(measured: Measured | None) -> tuple[str, str]:
    if measured is None:
        return "", ""
    some = f" ({measured.sounds} sounds)" if measured.sounds is not None else ""
    return f"{_shown(measured.value)}{some}", _range(measured.interval)


def _floor_row(name: str, floor: Floor) -> list[str]:
    label = f"{name}, {floor.sounds} against {floor.sounds}"
    return [label, _shown(floor.ours), "", f"{_shown(floor.reference)} (floor)", _range(floor.range)]


def _range(interval: Interval | None) -> str:
    if interval is None or not all(math.isfinite(end) for end in interval):
        return "too few sounds" if interval is not None else ""
    return f"{_shown(interval[0])} to {_shown(interval[1])}"


def _shown(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _plain(measured: Measured) -> dict[str, Any]:
    interval = measured.interval
    if interval is not None and not all(math.isfinite(end) for end in interval):
        interval = None
    found: dict[str, Any] = {"value": measured.value, "interval": interval and list(interval)}
    return found | ({"sounds": measured.sounds} if measured.sounds is not None else {})
