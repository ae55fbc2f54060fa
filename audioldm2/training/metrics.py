"""Where the numbers of a run go: JSON lines, which survive a kill and a full disk, and TensorBoard."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from audioldm2.files import atomic_write


class JsonLines:
    """A file of JSON objects, one a line and each with its "step"; a line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Writes a line and hands it to the system, so that a kill of this process does not lose it.

        Raises:
            OSError: from the system; the file is as before.
        """
        line = (json.dumps(entry) + "\n").encode()
        with open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)
                raise

    def require_writable(self) -> None:
        """Raises the system's OSError if no line can be appended."""
        with open(self.path, "ab"):
            pass

    def read(self) -> list[dict[str, Any]]:
        """Returns all entries; a last line that a power failure cut is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [entry for line in lines if (entry := _parsed(line)) is not None]

    def keep_until(self, step: int) -> None:
        """Drops the entries after a step, which a resumed run writes again."""
        kept = [json.dumps(entry) + "\n" for entry in self.read() if entry["step"] <= step]
        if self.path.exists():
            with atomic_write(self.path) as draft:
                draft.write_text("".join(kept), encoding="utf-8")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


class TensorBoard:
    """Curves for TensorBoard, in `RUN/tensorboard`; needs the extra `tensorboard`.

    Args:
        folder: of the run.
        done: steps taken; curves of later steps, from before a crash, are hidden.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to the curve of each metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        self.writer.close()


def require_tensorboard() -> None:
    """Raises ValueError if the package `tensorboard` is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs a package: pip install tensorboard.")
