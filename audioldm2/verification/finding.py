"""What a check finds, and the report that holds all findings, as text and as JSON."""

import math
import platform
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

PASSED, FAILED, MEASURED = "passed", "failed", "measured"
NOT_APPLICABLE, SKIPPED = "not applicable", "skipped"
FORMAT = 1  # of the JSON report
SEND = "Open an issue of this project and attach the report that --json FILE writes."
AGAIN = "Download or copy the checkpoint again, or convert its source again with 'audioldm2 convert --force'."
MOST_NAMED = 8  # keys that a sentence lists
WIDTH = 100  # columns of the text


class Inapplicable(Exception):
    """A check cannot be done with this checkpoint; its message completes "not applicable: "."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: str  # PASSED, FAILED, MEASURED (figures without a bound), NOT_APPLICABLE, SKIPPED
    summary: str  # one sentence
    figures: dict[str, Any] = field(default_factory=dict)  # plain values
    problems: tuple[str, ...] = ()  # what is wrong or odd, each a sentence that names network and key
    meaning: str = ""  # what a failure means
    advice: str = ""  # what to do about it, and what to send where


def text_of(finding: Finding) -> str:
    """The finding as a paragraph of the text report."""
    lines = [f"{finding.check:<11} {finding.status.upper()}"]
    lines += _wrapped(finding.summary)
    for problem in finding.problems:
        lines += _wrapped(problem, "- ")
    for label, words in (("It means: ", finding.meaning), ("Do: ", finding.advice)):
        lines += _wrapped(words, label) if words else []
    return "\n".join(lines)


def _wrapped(words: str, label: str = "") -> list[str]:
    margin = 4 * " "
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=margin + label,
        subsequent_indent=margin + "  " * bool(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def verdict(findings: list[Finding]) -> str:
    """FAILED if any check failed, else PASSED."""
    return FAILED if any(finding.status == FAILED for finding in findings) else PASSED


def closing_line(findings: list[Finding]) -> str:
    """The last line of the text report: the verdict, and how many checks ended how."""
    statuses = [finding.status for finding in findings]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    return f"{verdict(findings).upper()}: {counts}"


def report(
    findings: list[Finding], *, model: str, version: str, device: str, seconds: float, complete: bool
) -> dict[str, Any]:
    """The report as plain values for JSON.

    Args:
        findings: of the checks so far.
        model: the name that the user gave.
        version: of this package.
        device: where networks ran.
        seconds: that the checks took.
        complete: whether all checks are done.
    """
    return {
        "audioldm2_verify": FORMAT,
        "model": model,
        "verdict": verdict(findings) if complete else "incomplete",
        "complete": complete,
        "seconds": round(seconds, 1),
        "versions": {
            "audioldm2": version,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"system": platform.platform(), "processor": platform.machine(), "device": device},
        "findings": [plain(asdict(finding)) for finding in findings],
    }


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinity, which JSON lacks, become words."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def listed(keys: list[str]) -> str:
    """Keys for a sentence: the first few, and how many more."""
    shown = ", ".join(f"'{key}'" for key in keys[:MOST_NAMED])
    return shown if len(keys) <= MOST_NAMED else f"{shown} and {len(keys) - MOST_NAMED} more"


class Progress:
    """Reports how far a long piece of work is, and about how long the rest takes."""

    def __init__(
        self,
        what: str,
        total: int,
        report: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
        every: float = 20.0,
    ):
        self.what, self.total, self.report, self.clock, self.every = what, total, report, clock, every
        self.done, self.start = 0, clock()
        self.last = self.start

    def add(self, count: int = 1) -> None:
        """Count finished parts; report at most every `every` seconds, and first after the first part."""
        first, self.done, now = self.done == 0, self.done + count, self.clock()
        if self.done < self.total and (first or now - self.last >= self.every):
            self.last = now
            left = (now - self.start) / self.done * (self.total - self.done)
            self.report(f"{self.what}: {self.done} of {self.total}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds in words, such as "40 s" or "1 h 20 min"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def lines_of(findings: list[Finding]) -> Iterator[str]:
    """The paragraphs of the text report."""
    yield from (text_of(finding) for finding in findings)
    yield closing_line(findings)
