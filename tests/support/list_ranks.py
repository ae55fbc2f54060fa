"""Lists of prompts that several processes share, one of which is killed.

    python -m tests.support.list_ranks MODEL FOLDER

A program of its own, because forks of a process with one thread are quick and safe. Writes into FOLDER what
each run left and said; outcome.json has the exit codes.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from audioldm2.cli import list_run  # noqa: F401  imports, which the forks then need not repeat
from audioldm2.cli.main import main
from tests.support.crashes import fork, result
from tests.support.sizes import full_or

LINES = full_or(200, 32)
WORDS = ("rain", "a dog barks", "wind in the trees", "a church bell, far away")
FLAGS = ("--steps", "1", "--duration", "0.1", "--guidance", "1", "--device", "cpu", "--at-once", "4")


def write_list(path: Path) -> None:
    """A table whose lines have two lengths, which alternate, and a seed each."""
    rows = [f'"{WORDS[i % len(WORDS)]} {i}",{i},{"" if i % 3 else 0.2}' for i in range(LINES)]
    path.write_text("\n".join(["prompt,seed,duration", *rows]) + "\n")


def start(count: int, arguments: list[str], said: Path) -> list[int]:
    """Starts the command on some ranks; returns the processes' ids. `said`-RANK gets standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> Callable[[], None]:
        def command() -> None:
            for stream, suffix in ((1, "out"), (2, "err")):
                file = os.open(f"{said}-{rank}.{suffix}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(file, stream)
            if count > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                os.environ.update({name: str(value) for name, value in places.items()})
            code = main(arguments)
            sys.stdout.flush()
            os._exit(code)

        return command

    return [fork(run(rank)) for rank in range(count)]


def wait_for(folder: Path, sounds: int, said: Path) -> None:
    """Waits until a folder has so many sounds, some by the process that writes their names to `said`."""
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.wav"))) < sounds or not said.read_text():
        assert time.monotonic() < deadline, "no sounds are written"
        time.sleep(0.01)


def whole_run(model: Path, home: Path) -> dict[str, list[int]]:
    """The list on one process; on two, of which one is killed; and again on three."""
    write_list(home / "list.csv")
    words = ["--prompts", str(home / "list.csv"), "--model", str(model), *FLAGS]
    codes = {"one": [result(pid) for pid in start(1, [*words, "-o", str(home / "one")], home / "one")]}
    many = [*words, "-o", str(home / "many")]
    first = start(2, many, home / "killed")
    wait_for(home / "many", LINES // 4, home / "killed-1.out")
    os.kill(first[1], signal.SIGKILL)
    codes["killed"] = [result(pid) for pid in first]
    left = sorted(path.name for path in (home / "many").glob("[!.]*.wav"))  # without drafts
    for path in (home / "many" / name for name in left[:3]):  # cut off, as by a copy that was interrupted
        path.write_bytes(path.read_bytes()[:100])
    (home / "left.json").write_text(json.dumps(left))
    codes["again"] = [result(pid) for pid in start(3, many, home / "again")]
    codes["nothing left"] = [result(pid) for pid in start(2, many, home / "nothing")]
    return codes


if __name__ == "__main__":
    torch.set_num_threads(1)
    (Path(sys.argv[2]) / "outcome.json").write_text(
        json.dumps(whole_run(Path(sys.argv[1]), Path(sys.argv[2])))
    )
