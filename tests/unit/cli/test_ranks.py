"""`torchrun -m audioldm2 train`: one run by two processes, which speak with one voice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audioldm2.cli.main import main
from tests.support.command_line import posix
from tests.support.training import write_sizes, write_sounds

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python"]


def two(*words: object, program: tuple[str, ...] = ("-m", "audioldm2", "train")) -> tuple[int, list[str]]:
    """Runs a command on two processes; returns the exit code and our lines on standard error."""
    command = [sys.executable, "-m", *TORCHRUN, sys.executable, *program, *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("audioldm2: ")]


def log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_sounds(home / "sounds")
    write_sounds(home / "old")
    write_sizes(home / "sizes.json")
    return home


@posix
@pytest.mark.slow
def test_two_processes_write_the_run_of_one(home: Path):
    words = ["--stage", "clap", "--data", home / "sounds", "--mix", home / "old", "--validation", 0.3]
    words += ["--model", home / "sizes.json", "--seconds", 0.32, "--batch", 4, "--validate-every", 2]
    words += ["--device", "cpu", "--steps", 2]
    assert main(["train", *map(str, [*words, "--out", home / "one"])]) == 0
    code, said = two(*words, "--out", home / "two")
    assert code == 0, said
    assert len(said) == len(set(said)), said  # each line once
    assert any("clap on 2 processes" in line for line in said)
    assert any(line.endswith("two/model is the model") for line in said)
    for name in ("metrics.jsonl", "validation.jsonl"):
        ours, theirs = log(home / "two" / name), log(home / "one" / name)
        assert len(ours) == (2 if name == "metrics.jsonl" else 1)
        assert [each["loss"] for each in ours] == pytest.approx([each["loss"] for each in theirs], rel=1e-5)
    ours, theirs = ({path.name for path in (home / each).iterdir()} for each in ("two", "one"))
    assert ours == theirs


@pytest.mark.parametrize("rank", [0, 1])
def test_mistake_is_said_by_the_first_process(
    rank: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert main(["train", "--stage", "ldm", "--data", str(home / "sounds")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1 - rank


def test_sharding_needs_torchrun(home: Path, capsys: pytest.CaptureFixture):
    words = ["--stage", "ldm", "--data", home / "sounds", "--out", home / "no", "--shard", "--device", "cpu"]
    assert main(["train", *map(str, words)]) == 2
    assert "--shard" in capsys.readouterr().err
    assert not (home / "no").exists()
