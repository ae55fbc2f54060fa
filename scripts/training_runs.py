"""Runs of `train.py` that build on each other, two at a time, each a process: for scripts that train models.

A run that is stopped saves itself, and starting the same script again resumes it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError

TRAIN = Path(__file__).parent / "train.py"
AT_ONCE = 2


def train_all(
    out: Path, needed: Mapping[str, Sequence[str]], arguments: Callable[[str], list[object]]
) -> None:
    """Runs everything to its end, each run as soon as those that it needs are finished.

    Args:
        out: the folder of the runs; the output of a run is in NAME.log beside it.
        needed: the name of each run to those of the runs before it.
        arguments: of train.py, but --out, for a run that begins.

    Raises:
        ValueError: a run failed.
    """
    running: dict[str, subprocess.Popen] = {}
    finished = {name for name in needed if is_finished(out / name)}
    try:
        while len(finished) < len(needed):
            for name, before in needed.items():
                begun = name in finished or name in running
                if not begun and finished.issuperset(before) and len(running) < AT_ONCE:
                    running[name] = _start(out / name, arguments)
                    report(f"{name} started; see {out / name}.log")
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode or not is_finished(out / name):
                    raise ValueError(f"{name} stopped; see {out / name}.log. The same command resumes.")
                finished.add(name)
                report(f"{name} finished")
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # saves and stops
        for process in running.values():
            process.wait()


def _start(run: Path, arguments: Callable[[str], list[object]]) -> subprocess.Popen:
    """Starts a run on its share of the cores, or resumes it if it exists."""
    exists = (run / "run.json").exists()
    command = [sys.executable, TRAIN, "--out", run, *(["--resume"] if exists else arguments(run.name))]
    threads = str(max(1, (os.cpu_count() or AT_ONCE) // AT_ONCE))
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            list(map(str, command)),
            stdout=log, stderr=log, start_new_session=True,  # so that only `train_all` passes Ctrl-C on
            env=os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip


def is_finished(run: Path) -> bool:
    """Whether a run has saved its last step."""
    if not (run / "run.json").is_file() or not (run / "model" / "training.json").is_file():
        return False
    steps = storage.read_json(run / "run.json")["recipe"]["steps"]
    return storage.read_json(run / "model" / "training.json")["step"] >= steps


def write_small_model(checkpoint: Checkpoint, folder: Path, most_bytes: float) -> None:
    """Writes a model in float16; ValueError where it is too large for the package."""
    storage.write(checkpoint, folder, dtype=torch.float16, force=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    report(f"{folder}: {size / 1e6:.1f} MB")
    if size > most_bytes:
        raise ValueError(f"the model has {size / 1e6:.1f} MB; it has to stay below {most_bytes / 1e6:g} MB.")


def report(line: str) -> None:
    """Prints a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def run_to_the_end(main: Callable[[], int]) -> NoReturn:
    """Runs a script's `main`; an error that a user can cause ends it in one sentence."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
    except (ValueError, OSError, WeightsError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
