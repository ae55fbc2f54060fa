"""What trials on this machine have decided, on disk, so that every process computes the same from a seed.

A trial is a timing, and kernels or dtypes that nearly tie win it by turns. The first process to run a trial
therefore writes what it found to trials.json in the folder AUDIOLDM2_CACHE (default: ~/.cache/audioldm2), and
later ones use that. Findings are filed under the processor, the PyTorch version, and a hash of this package's
source: a change of any of them starts anew. Delete the file to repeat the trials, for example if the first
ones ran on a busy machine. Where it cannot be read or written, each process decides for itself.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from audioldm2.files import atomic_write

VARIABLE = "AUDIOLDM2_CACHE"
Found = TypeVar("Found")


def path() -> Path:
    """The file."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "audioldm2") / "trials.json"


def finding(trial: str, run: Callable[[], Found], valid: Callable[[Any], bool]) -> Found:
    """What the first process on this machine found in a trial; runs it if none has.

    Args:
        trial: its name.
        run: the trial; returns JSON.
        valid: whether a finding of the file can be used; otherwise the trial runs and replaces it.
    """
    earlier: Any = _load().get(_machine(), {}).get(trial)
    if valid(earlier):
        return earlier
    found = run()
    trials = _load()  # again: another process may have finished the same trial meanwhile
    here = trials.setdefault(_machine(), {})
    if valid(here.get(trial)):
        return here[trial]
    here[trial] = found
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path()) as draft:
            draft.write_text(json.dumps(trials, indent=1) + "\n", encoding="utf-8")
    except OSError:  # a cache: without it, this process keeps its finding to itself
        pass
    return found


def _load() -> dict[str, dict[str, Any]]:
    try:
        trials = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, not readable, or not JSON: the next trial writes it anew
        return {}
    if not isinstance(trials, dict) or not all(isinstance(each, dict) for each in trials.values()):
        return {}
    return trials


@functools.cache
def _machine() -> str:
    source = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        source.update(file.read_bytes())
    return f"{_processor()}, torch {torch.__version__}, ops {source.hexdigest()[:12]}"


def _processor() -> str:
    """Its name and flags: virtual machines show one name with and without some instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in named}
    flags = hashlib.sha256(fields.get("flags", "").encode()).hexdigest()[:8]
    return f"{fields.get('model name', platform.machine())}, flags {flags}"
