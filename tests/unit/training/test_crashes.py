"""Runs that are killed, terminated, or whose disk is full: nothing saved is lost, and resuming is exact."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audioldm2.checkpoints import storage
from tests.support.sizes import full_or

ROOT = Path(__file__).resolve().parents[3]
KILLS = full_or(50, 8)
STRIDE = full_or(1, 29)  # from one file operation that meets a fault to the next
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checked(initial: storage.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/support/crashes.py found, which asserts what has to hold after each fault."""
    home = tmp_path_factory.mktemp("crashes")
    storage.write(initial, home / "initial")
    (home / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=24m tmpfs {home / "disk"} && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    modes = [f"kills={KILLS}", *(f"{strike}={STRIDE}" for strike in ("die", "full", "once"))]
    if shutil.which("unshare") and not subprocess.run([*inside, "true"], capture_output=True).returncode:
        modes.append("tmpfs=1")
    else:  # this system lets nobody mount a file system in a namespace of its own
        inside = []
    command = [*inside, sys.executable, "-m", "tests.support.crashes", str(home), *modes]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def found(checked: dict[str, Any], mode: str) -> dict[str, Any]:
    assert "failed" not in checked[mode], checked[mode]["failed"]
    return checked[mode]


def test_run_killed_at_random_moments_resumes_exactly(checked: dict):
    assert found(checked, "kills")["killed"] >= KILLS


def test_run_killed_before_a_file_operation_resumes_exactly(checked: dict):
    die = found(checked, "die")
    assert die["writes"] > 60 and set(die["codes"]) == {9}


def test_disk_full_from_a_write_on_keeps_the_last_save(checked: dict):
    full = found(checked, "full")
    assert full["writes"] > 60 and set(full["codes"]) == {3}


def test_run_that_waits_for_space_loses_nothing(checked: dict):
    once = found(checked, "once")
    codes = once["codes"]
    # A write that fails before the first step ends the run; later ones are tried again.
    assert once["writes"] > 60 and codes == sorted(codes, reverse=True) and codes.count(0) > len(codes) / 2


def test_run_on_a_full_file_system_waits_for_space(checked: dict):
    if "tmpfs" not in checked:
        pytest.skip("this system lets nobody mount a file system in a namespace of its own")
    lines = found(checked, "tmpfs")["report"].splitlines()
    assert any("No space left on device" in line and "training waits" in line for line in lines)
    assert any("can be written again" in line for line in lines)
