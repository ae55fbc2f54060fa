"""Runs requests one after the other on a thread of its own, and says how far each is."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class Cancelled(Exception):
    """Nobody waits for this request any more."""


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    stage: str
    step: int | None = None  # of a stage that has steps, from 0
    steps: int | None = None


class Job(Generic[Made]):
    """A request: what is to be done, and the progress that the worker reports from inside it."""

    def __init__(self, work: Callable[["Job[Made]"], Made]):
        self.work = work
        self.outcome: Future[Made] = Future()
        self._inbox: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._stage = ""

    def cancel(self) -> None:
        """Stop at the next stage or step; does nothing to a job that is done."""
        self._cancelled.set()

    def on_stage(self, stage: str) -> None:
        """For `generate`; raises Cancelled."""
        self.report(Progress(stage))

    def on_step(self, steps: int) -> Callable[..., None]:
        """Returns the callback for `generate`, which raises Cancelled; `steps` is how many are asked for."""
        return lambda step, *_: self.report(Progress(self._stage, step, max(step, steps)))

    def report(self, progress: Progress) -> None:
        self._stage = progress.stage
        if self._cancelled.is_set():
            raise Cancelled
        self._inbox.put(progress)

    def progress(self) -> Iterator[Progress]:
        """What is reported until the job is done. News that nobody read in time are skipped."""
        while True:
            news = [self._inbox.get()]
            while not self._inbox.empty():
                news.append(self._inbox.get())
            yield from [each for each in news if each is not None][-1:]
            if news[-1] is None:
                return

    def run(self) -> None:
        """Called by the worker, once."""
        try:
            if self._cancelled.is_set():
                raise Cancelled
            self.outcome.set_result(self.work(self))
        except BaseException as error:
            self.outcome.set_exception(error)
        finally:
            self._inbox.put(None)


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


def wait(job: Job[Any]) -> Any:
    """The result of a job whose progress nobody follows."""
    return job.outcome.result()
