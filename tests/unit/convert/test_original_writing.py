"""Conversion on a full disk, killed, twice at once, and in little memory."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.cli.main import main
from audioldm2.errors import WeightsError
from tests.support import originals
from tests.support.checkpoints import assert_same_states, states_of
from tests.support.originals import table_of
from tests.support.sizes import full_or

posix = pytest.mark.skipif(os.name == "nt", reason="needs the processes and limits of POSIX")


def start(source: Path, folder: Path, *options: str, bytes_a_file: int | None = None) -> int:
    """Convert in a fork of this process, whose output goes to a file beside the folder; returns its id."""
    child = os.fork()
    if not child:
        code = 99
        try:
            log = folder.with_name(f"{folder.name}.{os.getpid()}.txt")
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            if bytes_a_file:
                import resource  # of POSIX

                resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))
            code = main(["convert", str(source), str(folder), *options])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def converting(folder, tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """A folder that many processes converted the base model into, and their exit codes.

    Two ran on a full disk, two at once into one folder, and some were killed at different moments.
    """
    source, work = tmp_path_factory.mktemp("source") / "base.pth", tmp_path_factory.mktemp("work")
    for name in ("base.pth", "tokenizer", "tokenizer_2"):
        (source.parent / name).symlink_to(folder / name)
    fates = {}
    for name, options in (("full", ()), ("full-diffusers", ("--to", "diffusers"))):
        # Python ignores SIGXFSZ.
        fates[name] = [ended(start(source, work / name, *options, bytes_a_file=300_000))]
    fates["two"] = [ended(child) for child in [start(source, work / "two"), start(source, work / "two")]]
    began = time.monotonic()
    fates["alone"] = [ended(start(source, work / "alone"))]
    whole, kills = time.monotonic() - began, full_or(20, 4)
    for moment in range(1, kills + 1):
        name = f"killed-{moment}"
        child = start(source, work / name, *(["--to", "diffusers"] if moment % 2 else []))
        time.sleep(moment / kills * whole)
        os.kill(child, signal.SIGKILL)
        fates[name] = [ended(child)]
    return work, fates


def errors_in(work: Path, name: str) -> list[str]:
    """Return the error lines of the processes that wrote a folder."""
    logs = [path.read_text() for path in work.glob(f"{name}.*.txt")]
    assert logs and not any("Traceback" in log for log in logs)
    return [line for log in logs for line in log.splitlines() if line.startswith("audioldm2: error: ")]


def assert_whole(folder: Path) -> None:
    """Check that a folder in either layout has every tensor that the layout can hold."""
    expected = dict(originals.make("base").states)
    if storage.is_converted(folder):
        checkpoint = storage.read(folder)
    else:
        checkpoint = convert.read_diffusers(folder)
        del expected["audiomae"]
    assert_same_states(states_of(checkpoint), expected)


@pytest.mark.slow
@posix
@pytest.mark.parametrize("name", ["full", "full-diffusers"])
def test_full_disk_is_reported_and_leaves_nothing(converting, name):
    work, fates = converting
    assert fates[name] == [2] and not (work / name).exists()
    (error,) = errors_in(work, name)
    assert error.startswith(f"audioldm2: error: {work / name} cannot be written: ")
    assert "File too large" in error


@posix
def test_one_of_two_concurrent_converters_wins(converting):
    work, fates = converting
    assert sorted(fates["two"]) == [0, 2]
    assert_whole(work / "two")
    (error,) = errors_in(work, "two")
    assert error.startswith(f"audioldm2: error: {work / 'two'} exists already")


@posix
def test_killed_converter_leaves_no_partial_folder(converting):
    work, fates = converting
    assert fates["alone"] == [0]
    assert_whole(work / "alone")
    killed = {name: codes for name, codes in fates.items() if name.startswith("killed")}
    assert [-9] in killed.values()
    for name, codes in killed.items():
        assert (work / name).exists() or codes == [-9]
        if (work / name).exists():
            assert_whole(work / name)


@posix
def test_drafts_of_killed_converters_are_no_checkpoints(converting):
    """The exception is one killed between its last file and the renaming. Failed processes leave nothing."""
    work, fates = converting
    drafts = list(work.glob(".audioldm2-*"))
    assert len(drafts) <= sum(codes == [-9] for codes in fates.values())
    for draft in drafts:
        try:
            audioldm2.load(draft, device="cpu")
        except WeightsError:
            continue
        assert_whole(draft)


def heavy() -> Iterator[tuple[str, Tensor]]:
    """Yield the table of "base" with long embeddings: 135 MB, of which 70 MB are to be written."""
    for key, tensor in table_of("base").items():
        if key.endswith(("word_embeddings.weight", "wpe.weight", "shared.weight", "embed_tokens.weight")):
            yield key, torch.zeros(20_000_000 // 4 // tensor.shape[1], tensor.shape[1])
        else:
            yield key, tensor


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_memory_stays_below_what_is_written(tmp_path):
    file = originals.save(tmp_path / "heavy.pth", dict(heavy()))
    assert file.stat().st_size > 100e6
    program = """
import sys, threading, time
from pathlib import Path
from audioldm2 import convert
from audioldm2.checkpoints import storage

source, out = sys.argv[1:]

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.002)

checkpoint = convert.read_original(Path(source))
checkpoint.tokenizers = {}
for dtype in (None, "float16"):
    done, before = threading.Event(), anonymous()
    peaks = [before]
    watcher = threading.Thread(target=watch)
    watcher.start()
    checkpoint = convert.read_original(Path(source))
    checkpoint.tokenizers = {}
    convert.differing_copies(checkpoint)
    storage.write(checkpoint, Path(f"{out}-{dtype}"), dtype=dtype and storage.DTYPES[dtype])
    done.set()
    watcher.join()
    written = sum(path.stat().st_size for path in Path(f"{out}-{dtype}").iterdir())
    print(max(peaks) - before, written)
"""
    # Freed memory returns to the system, as with larger models.
    steady = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", program, file, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=steady)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        grown, written = map(int, line.split())
        assert written > 30e6
        assert grown <= 1.3 * written, f"{grown / 1e6:.0f} MB for {written / 1e6:.0f} MB"
