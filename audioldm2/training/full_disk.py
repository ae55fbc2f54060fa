"""What a run does when the disk refuses a write: wait for space, with all steps in memory, or stop."""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audioldm2.files import is_refused_write

ON_FULL_DISK = ("wait", "stop")
RETRY_SECONDS = 30.0
POLL_SECONDS = 0.2  # between two looks at whether the user wants to stop


@dataclass(frozen=True)
class DiskWriter:
    """Writes into a run's folder, again and again if it must.

    Args:
        folder: of the run.
        on_full_disk: "wait" tries again every half a minute until the write succeeds; "stop" raises at once.
        report: gets a line when the wait begins and when it ends.
        should_stop: ends the wait.
        writes: False on all ranks but the first: actions are then ignored.
    """

    folder: Path
    on_full_disk: str
    report: Callable[[str], object]
    should_stop: Callable[[], object]
    writes: bool = True

    def write(self, action: Callable[[], None]) -> None:
        """Runs an action that writes files, each of them atomically.

        Raises:
            OSError: the system refused, and the run does not wait.
        """
        waited = False
        while self.writes:
            try:
                action()
            except (OSError, RuntimeError) as error:
                if not is_refused_write(error) or isinstance(error, FileNotFoundError):
                    raise  # space does not bring a folder back that somebody has removed
                reason = _reason(error)
                if self.on_full_disk == "stop" or self.should_stop():
                    words = f"it could not be written ({reason}); is the disk full? The last save stays"
                    number = getattr(error, "errno", None) or errno.ENOSPC
                    raise OSError(number, words, str(self.folder)) from error
            else:
                if waited:
                    self.report(f"{self.folder} can be written again; training continues")
                return
            if not waited:
                self.report(
                    f"{self.folder} could not be written ({reason}); training waits with all steps in memory "
                    f"and tries again every {RETRY_SECONDS:g} s. Free some space, or stop it with Ctrl-C."
                )
            waited = True
            self._pause()

    def _pause(self) -> None:
        end = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < end and not self.should_stop():
            time.sleep(POLL_SECONDS)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or ["no reason given"])[0]
