"""Lines of progress: metrics, speed, and when the run will be done."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

PROGRESS_SECONDS = 5.0  # least time between two lines of progress


class Progress:
    """Reports metrics averaged since the last report, the speed since then, and an estimate of the end.

    The estimate rests on the mean pace since the start, which includes saves, samples and validations.
    """

    def __init__(self, done: int, steps: int, report: Callable[[str], object]) -> None:
        self.steps, self.report = steps, report
        self.pause = 0.0  # report the first step at once
        self.began_with, self.began = done, time.monotonic()
        self._restart(done)

    def add(self, done: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step, and reports if the last report is long enough ago."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        seconds = time.monotonic() - self.since
        if seconds < self.pause and done < self.steps:
            return
        speed = (done - self.first) / max(seconds, 1e-9)
        pace = (time.monotonic() - self.began) / (done - self.began_with)  # seconds a step
        means = "  ".join(f"{name} {total / self.counts[name]:.4g}" for name, total in self.sums.items())
        end = time_left((self.steps - done) * pace, datetime.now())
        self.report(f"step {done}/{self.steps}  {means}  {speed:.3g} steps/s, {end}")
        self.pause = PROGRESS_SECONDS
        self._restart(done)

    def _restart(self, done: int) -> None:
        self.first, self.since = done, time.monotonic()
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}


def time_left(seconds: float, now: datetime) -> str:
    """Returns words such as "25 min left, done at 14:30"; the day is named where it is not today."""
    left = f"{_duration(seconds)} left"
    if seconds < 1:
        return left
    end = now + timedelta(seconds=seconds)
    days = (end.date() - now.date()).days
    form = "%H:%M" if days == 0 else "%a %H:%M" if days < 7 else "%Y-%m-%d"
    return f"{left}, done at {end:{form}}" if days < 7 else f"{left}, done on {end:{form}}"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"
