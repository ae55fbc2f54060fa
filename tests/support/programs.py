"""Runs Python programs as the command line does, each in a fork of one process that has imported PyTorch.

Starting Python and importing PyTorch takes seconds, which many programs then spend once. This file is the
program that forks: it reads commands from standard input and writes their outcomes, both as JSON.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from traceback import print_exc

SHARED = (  # what several scripts import, and nothing of ours
    "torch", "numpy", "soundfile", "transformers", "diffusers.pipelines.audioldm2.pipeline_audioldm2",
)  # fmt: skip
Outcome = tuple[int, str, str]  # exit code, standard output, standard error


def outcomes(commands: Sequence[Sequence[str]], folder: Path) -> list[Outcome]:
    """Runs programs, each with its arguments, in a folder.

    Nothing of ours is imported before a program runs, and Python searches its folder first, as always.
    """
    run = subprocess.run(
        [sys.executable, __file__], input=json.dumps(commands), cwd=folder, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [(code, out, err) for code, out, err in json.loads(run.stdout)]


def outcome(command: Sequence[str]) -> Outcome:
    """Runs one program in a fork."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(finished(command))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def finished(command: Sequence[str]) -> int:
    """Runs a program in this process to its end; returns its exit code."""
    sys.argv, sys.path[0] = list(command), str(Path(command[0]).parent)
    code: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    for name in SHARED:
        with suppress(ImportError):  # a script that needs it then fails by itself
            import_module(name)
    print(json.dumps([outcome(command) for command in json.load(sys.stdin)]))
