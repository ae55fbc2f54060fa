"""Runs that are killed, or whose disk is full, at chosen moments.

    python -m tests.support.crashes FOLDER MODE=COUNT ...

A program of its own, because a kill is only real if a process dies, and forks of a process with one thread
are quick and safe. Every attempt runs in a fork; the parent then checks the folder that it left. Prints what
each mode checked as JSON, or the assertion that failed.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from traceback import format_exc
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from audioldm2.checkpoints import storage, tensor_files
from audioldm2.training import full_disk, loop, run_folder
from audioldm2.training.judging import Judging
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Stage

STEPS = 8
INTERVALS = loop.Intervals(save=2, sample=0, validate=4)
JUDGING = Judging(keep_best=1, keep_last=2)
WRITES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.link",
}  # events of Python's audit
KILLED, REFUSED = 9, 3


class Toy(Stage[Recipe]):
    """Pulls the projection's weights towards random ones: steps of a millisecond on a whole model."""

    name, captioned, recipes = "toy", True, {"small": Recipe(steps=STEPS, batch=1, ema=0.9)}

    def trainable(self) -> tuple[str, ...]:
        return ("projection",)

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        loss = self.distance(generator) + clips.mean()
        return {"loss": loss, "grad_norm": self.optimizer.step(loss, self.done)}

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"loss": self.distance(generator)}

    def distance(self, generator: torch.Generator) -> Tensor:
        weights = self.trained["projection"].parameters()
        return sum((w - torch.randn(w.shape, generator=generator)).square().mean() for w in weights)

    def samples(self, model: Any, wave: Tensor, captions: list[str]) -> Iterator:
        return iter(())


class Noise:
    """Clips that depend on the step."""

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        return torch.full((size, 8), float(step)), ["a sound"] * size

    def captions(self) -> list[str]:
        return ["a sound"]


def train(folder: Path, **options: Any) -> None:
    """What `audioldm2 train --resume` does."""
    with run_folder.opened(folder):
        stage = Toy(storage.read(folder / "model"), Toy.recipes["small"], torch.device("cpu"))
        run_folder.resume(stage, folder, Noise())
        loop.train(stage, Noise(), folder, INTERVALS, validation=Noise(), judging=JUDGING, **options)


def begun(folder: Path, source: Path) -> Path:
    """A new run's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    storage.write(storage.read(source), folder / "model")
    return folder


def fork(action: Callable[[], None]) -> int:
    """Starts an action in a process of its own; returns its id. An OSError ends it with REFUSED."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except OSError:
        code = REFUSED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def result(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(action: Callable[[], None]) -> int:
    return result(fork(action))


# Faults at the nth write ------------------------------------------------------------------------------------


class Faults:
    """Counts what this process writes below a folder and calls `strike` at some of these moments."""

    def __init__(self, folder: Path, strike: Callable[[], None], first: int, last: int | None) -> None:
        self.folder, self.strike, self.first, self.last = str(folder), strike, first, last
        self.count = 0
        sys.addaudithook(self.audit)
        self.flush, self.save, self.save_file = os.fsync, torch.save, tensor_files.save_file
        os.fsync, torch.save, tensor_files.save_file = self.fsync, self.torch_save, self.safetensors_save

    def next(self) -> None:
        self.count += 1
        if self.count >= self.first and (self.last is None or self.count <= self.last):
            self.strike()

    def audit(self, event: str, arguments: tuple) -> None:
        opens = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (opens or event in WRITES) and str(arguments[0]).startswith(self.folder):
            self.next()

    def fsync(self, descriptor: int) -> None:
        self.next()
        self.flush(descriptor)

    def torch_save(self, content: object, path: Path) -> None:
        path.write_bytes(b"half of a state")
        try:
            self.next()
        except OSError as error:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 9 vs 2") from error
        self.save(content, path)

    def safetensors_save(self, state: dict, path: Path, **more: Any) -> None:
        path.write_bytes(b"half of a network")
        try:
            self.next()
        except OSError as error:
            raise SafetensorError("I/O error: No space left on device (os error 28)") from error
        self.save_file(state, path, **more)


def die() -> None:
    os._exit(KILLED)


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# Checks -----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """All that two runs have to agree on."""
    checkpoint = storage.read(folder / "model")
    tensors = {
        f"{name}.{key}": tensor.numpy().tobytes()
        for name, opened in checkpoint.states.items()
        for key, tensor in opened().items()
    }
    state = torch.load(folder / "state.pt", weights_only=True)
    kept = [str(path.relative_to(folder)) for path in sorted(folder.glob("*/step-*"))]
    logs = [(folder / name).read_text() for name in ("metrics.jsonl", "validation.jsonl")]
    return {"model": tensors, "state": state, "kept": kept, "logs": logs}


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["kept"] == expected["kept"], (found["kept"], expected["kept"])
    assert found["logs"] == expected["logs"]
    differing = [key for key, bytes_ in found["model"].items() if bytes_ != expected["model"][key]]
    assert not differing, differing[:3]
    assert flat(found["state"]) == flat(expected["state"])


def flat(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): flat(each) for key, each in value.items()}
    return [flat(each) for each in value] if isinstance(value, list | tuple) else value


def require_whole(folder: Path) -> None:
    """Whatever happened, cleaning leaves a model that loads, and no draft."""
    with run_folder.opened(folder):
        checkpoint = storage.read(folder / "model")
    assert all(state() for state in checkpoint.states.values())
    for kept in folder.glob("*/step-*"):
        assert all(state() for state in storage.read(kept).states.values())
    assert not list(folder.rglob(".audioldm2-*"))


# Modes ------------------------------------------------------------------------------------------------------


def kills(home: Path, expected: dict[str, Any], seconds: float, count: int) -> dict[str, Any]:
    """Kills a run at random moments, resumes it, and starts again when it ends."""
    draw, killed, ended = random.Random(0), 0, 0
    folder = begun(home / "run", home / "initial")
    while killed < count or not ended:
        pid = fork(partial(train, folder))
        time.sleep(draw.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        if result(pid) == -signal.SIGKILL:
            killed += 1
            require_whole(folder)
        if killed >= count or result_is_complete(folder):
            assert run(partial(train, folder)) == 0
            require_equal(contents(folder), expected)
            ended += 1
            folder = begun(folder, home / "initial")
    return {"killed": killed, "runs": ended}


def result_is_complete(folder: Path) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and len(log.read_text().splitlines()) >= STEPS


def every_write(home: Path, expected: dict[str, Any], strike: str, stride: int) -> dict[str, Any]:
    """Lets the last two steps of a run meet a fault at their first write, then at their second, and so on."""
    half, folder, first, count = home / "half", home / "run", 1, home / "writes"
    options = {"on_full_disk": "wait" if strike == "once" else "stop"}
    last = {"die": None, "full": None, "once": 1}[strike]

    def attempt() -> None:
        full_disk.RETRY_SECONDS = 0.0
        action = die if strike == "die" else refuse
        faults = Faults(folder, action, first, last and first)
        train(folder, **options)
        count.write_text(str(faults.count))

    seen: list[int] = []
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(half, folder)
        code = run(attempt)
        if code == 0 and int(count.read_text()) < first:  # it ended before the nth write
            return {"writes": first, "codes": seen}
        seen.append(code)
        if code != 0:
            require_whole(folder)
            assert run(lambda: train(folder)) == 0
        require_equal(contents(folder), expected)
        first += stride


def tmpfs(home: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """`home/disk` is a small file system: fills it up, lets a run wait, and makes room."""
    folder = begun(home / "disk" / "run", home / "initial")
    filler, report = home / "disk" / "filler", home / "report"

    def attempt() -> None:
        full_disk.RETRY_SECONDS = 0.1
        train(folder, on_full_disk="wait", report=lambda line: report.open("a").write(f"{line}\n"))

    free = shutil.disk_usage(folder).free
    filler.write_bytes(b"x" * (free - 300_000))
    assert run(lambda: train(folder, on_full_disk="stop")) == REFUSED
    require_whole(folder)
    pid = fork(attempt)
    while not (report.exists() and "training waits" in report.read_text()):
        time.sleep(0.05)
    filler.unlink()
    assert result(pid) == 0
    require_equal(contents(folder), expected)
    return {"report": report.read_text()}


def main(home: Path, counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports, which the forks then need not repeat
    whole, half = (begun(home / name, home / "initial") for name in ("whole", "half"))
    started = time.monotonic()
    assert run(lambda: train(whole)) == 0
    seconds, expected = time.monotonic() - started, contents(whole)
    stops = iter([False] * 5 + [True])
    assert run(lambda: train(half, should_stop=lambda: next(stops))) == 0
    modes: dict[str, Callable[[int], dict[str, Any]]] = {
        "kills": partial(kills, home, expected, seconds),
        "tmpfs": lambda _: tmpfs(home, expected),
        **{strike: partial(every_write, home, expected, strike) for strike in ("die", "full", "once")},
    }
    found: dict[str, dict[str, Any]] = {}
    for mode, count in counts.items():
        try:
            found[mode] = modes[mode](count)
        except Exception:
            found[mode] = {"failed": format_exc()}
    return found


if __name__ == "__main__":
    counts = {mode: int(count) for mode, count in (word.split("=") for word in sys.argv[2:])}
    print(json.dumps(main(Path(sys.argv[1]), counts)))
