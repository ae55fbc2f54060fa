"""Runs requests one after the other on a thread of its own, and says how far each is."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Made = TypeVar("Made")
POLL = 0.05  # seconds between two looks at a job


class Cancelled(Exception):
    """Nobody waits for this request any more."""


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    stage: str
    step: int  # denoising steps that are done
    steps: int


class Job(Generic[Made]):
    """A request: what is to be done, and how far it is."""

    def __init__(self, work: "Callable[[Job[Made]], Made]"):
        self.work = work
        self.outcome: Future[Made] = Future()
        self.latest: Progress | None = None  # None before it begins
        self.steps = 1  # that are asked for; the work says so before it begins
        self._cancelled = False

    def cancel(self) -> None:
        """Stop at the next stage or step; does nothing to a job that is done."""
        self._cancelled = True

    def on_stage(self, stage: str) -> None:
        """For `generate`; raises Cancelled."""
        self._report(replace(self.latest, stage=stage) if self.latest else Progress(stage, 0, self.steps))

    def on_step(self, step: int, *_: object) -> None:
        """For `generate`; raises Cancelled."""
        if self.latest is not None:
            self._report(replace(self.latest, step=step, steps=max(step, self.steps)))

    def _report(self, progress: Progress) -> None:
        if self._cancelled:
            raise Cancelled
        self.latest = progress

    async def follow(self, report: Callable[[Progress], object]) -> Made:
        """Report progress until the job is done, and return its result. Cancelling this cancels the job."""
        reported = None
        try:
            while not self.outcome.done():
                if self.latest is not None and self.latest != reported:
                    reported = self.latest
                    report(reported)
                await asyncio.sleep(POLL)
            return self.outcome.result()
        finally:
            self.cancel()

    def run(self) -> None:
        """Called by the worker, once."""
        try:
            if self._cancelled:
                raise Cancelled
            self.outcome.set_result(self.work(self))
        except BaseException as error:
            self.outcome.set_exception(error)


class Worker:
    """One thread for one device: whatever happens to those who asked, no two requests run at once."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audioldm2-ui")

    def submit(self, work: Callable[[Job[Made]], Made]) -> Job[Made]:
        job = Job(work)
        self._thread.submit(job.run)
        return job

    def close(self) -> None:
        """Wait for the request that runs; those that wait are dropped."""
        self._thread.shutdown(cancel_futures=True)
