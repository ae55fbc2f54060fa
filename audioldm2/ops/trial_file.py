"""What trials on this machine have decided, on disk, so that every process computes the same from a seed.

A trial is a timing, and kernels or dtypes that nearly tie win it by turns. The first process to run a trial
therefore writes what it found to trials.json in the folder AUDIOLDM2_CACHE (default: ~/.cache/audioldm2), and
later ones use that. Findings are filed under the processor, the instructions that variables such as
ONEDNN_MAX_CPU_ISA leave it, the PyTorch version, and a hash of this package's source: a change of any of them
starts anew. Delete the file to repeat the trials, for example if the first
ones ran on a busy machine. Where it cannot be read or written, each process decides for itself.
"""

import functools
import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from audioldm2.files import atomic_write

VARIABLE = "AUDIOLDM2_CACHE"
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # on what libraries may use
Found = TypeVar("Found")
_held = threading.local()  # whether this thread is in a trial


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
    with _one_process():
        earlier = _load().get(_machine(), {}).get(trial)  # again: another process may have finished meanwhile
        if valid(earlier):
            return earlier
        found = run()
        trials = _load()  # and again, where files cannot be locked
        here = trials.setdefault(_machine(), {})
        if valid(here.get(trial)):
            return here[trial]
        here[trial] = found
        try:
            with atomic_write(path()) as draft:
                draft.write_text(json.dumps(trials, indent=1) + "\n", encoding="utf-8")
        except OSError:  # a cache: without it, this process keeps its finding to itself
            pass
        return found


@contextmanager
def _one_process() -> Iterator[None]:
    """One process of this machine at a time runs the block, where the system can lock a file.

    Processes that begin together would otherwise run the same trial, disturb each other, and perhaps choose
    differently. A trial may contain another.
    """
    if getattr(_held, "by_this_thread", False):
        yield
        return
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # Windows; a folder that cannot be written to, or locked
            import fcntl

            path().parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path().with_suffix(".lock"), "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        _held.by_this_thread = True
        try:
            yield
        finally:
            _held.by_this_thread = False


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
    limits = "".join(f", {name}={os.environ[name]}" for name in LIMITS if os.environ.get(name))
    return f"{_processor()}{limits}, torch {torch.__version__}, ops {source.hexdigest()[:12]}"


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
