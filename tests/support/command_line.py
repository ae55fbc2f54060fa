"""Running commands in this process and in others, and what tests say of their output."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.cli.main import main

QUICK = ("--duration", "0.2", "--steps", "2")
CODE, OUT, ERR = 0, 1, 2
STAGE_LINES = ("encoding the prompt", "denoising", "decoding", "vocoding", "ranking")
posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals, descriptors and limits of POSIX")
Outcome = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that a test runs in, empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """Runs a command as typed, in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def sound(run, tiny_folder) -> Callable[..., Outcome]:
    """Runs a command that generates short sounds with the tiny model."""
    return lambda *arguments: run("--model", tiny_folder, *QUICK, *arguments)


def process(*arguments: object, **options) -> subprocess.Popen:
    """A command in a process of its own; its streams are pipes unless the options say otherwise."""
    command = [sys.executable, "-m", "audioldm2", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes | options)


def names(folder: Path) -> list[str]:
    """Every file in a folder, hidden drafts too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_refused(outcome: Outcome, *words: str) -> None:
    """One sentence on standard error that has these words, nothing on standard output, exit code 2."""
    code, out, err = outcome
    assert code == 2, err
    assert out == ""
    assert err.startswith("audioldm2: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "usage:" not in err
    for word in words:
        assert word in err, err


def without_stages(err: str) -> str:
    """Standard error without the line that each stage has in a log."""
    stages = {f"audioldm2: {stage}\n" for stage in STAGE_LINES}
    return "".join(each for each in err.splitlines(keepends=True) if each not in stages)


def assert_same_sound(one: str, other: str) -> None:
    """Equal samples, but for the last bit or two, in which the memory layout of a matrix may show."""
    first, second = (soundfile.read(file, dtype="int16")[0].astype(int) for file in (one, other))
    assert np.abs(first - second).max() <= 2


def fail_at(monkeypatch, owner: object, name: str, call: int, error: BaseException) -> None:
    """Let a function raise in one of its calls, after it has done its work."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        result = original(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)
