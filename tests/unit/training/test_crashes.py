"""Runs that are killed, terminated, or whose disk is full: nothing saved is lost, and resuming is exact."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audioldm2.checkpoints import storage

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def home(initial: storage.Checkpoint, tmp_path: Path) -> Path:
    storage.write(initial, tmp_path / "initial")
    return tmp_path


def crashes(home: Path, mode: str, count: int, *before: str) -> dict:
    """Runs tests/support/crashes.py, which asserts what has to hold after each fault."""
    command = [*before, sys.executable, "-m", "tests.support.crashes", mode, home, count]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_run_killed_at_random_moments_resumes_exactly(home: Path):
    assert crashes(home, "kills", 50)["killed"] >= 50


@pytest.mark.slow
def test_run_killed_before_a_file_operation_resumes_exactly(home: Path):
    """Before every 19th; `python -m tests.support.crashes die FOLDER 1` tries each of them, in minutes."""
    checked = crashes(home, "die", 19)
    assert checked["writes"] > 60 and set(checked["codes"]) == {9}


@pytest.mark.slow
def test_disk_full_from_a_write_on_keeps_the_last_save(home: Path):
    checked = crashes(home, "full", 19)
    assert checked["writes"] > 60 and set(checked["codes"]) == {3}


@pytest.mark.slow
def test_run_that_waits_for_space_loses_nothing(home: Path):
    checked = crashes(home, "once", 13)
    assert checked["writes"] > 60
    # A write that fails before the first step ends the run; later ones are tried again.
    assert checked["codes"] == sorted(checked["codes"], reverse=True) and checked["codes"].count(0) > 5


@pytest.mark.slow
def test_run_on_a_full_file_system_waits_for_space(home: Path):
    (home / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=24m tmpfs {home / "disk"} && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system in a namespace of its own")
    lines = crashes(home, "tmpfs", 0, *inside)["report"].splitlines()
    assert any("No space left on device" in line and "training waits" in line for line in lines)
    assert any("can be written again" in line for line in lines)
