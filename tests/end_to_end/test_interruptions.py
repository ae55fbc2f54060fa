"""Interrupts and full disks: finished sounds are kept, and nothing half-written is left."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import audioldm2
from audioldm2 import clap_score
from audioldm2.runtime import placement
from tests.support.command_line import fail_at, names, posix, process

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def two_prompts(folder, sound):
    """Make two sounds with two candidates each, into a folder; returns what ran and what it left there."""
    (folder / "prompts.txt").write_text("rain\ndog\n")

    def two_prompts() -> tuple[tuple[int, str, str], list[str]]:
        result = sound("--prompts", "prompts.txt", "-o", "out", "--candidates", "2", "--quiet")
        return result, names(folder / "out") if (folder / "out").exists() else []

    return two_prompts


FIRST = ["rain.wav", "rain.wav.json"]
STAGES = {  # stage: whose function, which, in which call it is interrupted, what is left
    "loading": (placement, "build_on_meta", 3, []),
    "encoding": (audioldm2.AudioLDM2, "encode_prompt", 2, FIRST),
    "denoising": (audioldm2.AudioLDM2, "_denoise", 2, FIRST),
    "decoding": (audioldm2.AudioLDM2, "decode", 2, FIRST),
    "vocoding": (audioldm2.AudioLDM2, "vocode", 2, FIRST),
    "ranking": (clap_score, "score_sounds", 2, FIRST),
    "writing the record": (Path, "write_text", 2, FIRST),
    "writing its sound": (Path, "write_bytes", 2, ["dog.wav.json", *FIRST]),
}


@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_keeps_finished_sounds_and_leaves_no_draft(two_prompts, monkeypatch, stage):
    owner, name, call, left = STAGES[stage]
    fail_at(monkeypatch, owner, name, call, KeyboardInterrupt())
    (code, out, err), found = two_prompts()
    assert code == 130
    assert out == (f"{Path('out', 'rain.wav')}\n" if left else "")
    assert err.startswith("audioldm2: interrupted") and err.count("\n") == 1
    assert found == left


@posix
def test_sigint_while_the_second_sound_is_generated(folder, tiny_folder):
    # The second is long: on a busy machine this process may read the line a second late.
    (folder / "prompts.csv").write_text("prompt,duration\nrain,0.1\ndog,20\n")
    # A shell's background jobs ignore the signal, and their children inherit that.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    given = "--prompts", "prompts.csv", "--model", tiny_folder, "--steps", "50", "--quiet"
    with process(*given, **default) as made:
        assert made.stdout.readline() == "rain.wav\n"
        made.send_signal(signal.SIGINT)
        out, err = made.communicate()
    assert (made.returncode, out) == (130, "")
    assert err.startswith("audioldm2: interrupted") and err.count("\n") == 1
    assert names(folder) == ["prompts.csv", *FIRST]


@pytest.mark.parametrize(
    ("method", "call", "file", "left"),
    [("write_bytes", 2, "dog.wav", ["dog.wav.json", *FIRST]), ("write_text", 2, "dog.wav.json", FIRST)],
)
def test_full_disk_keeps_finished_sounds_and_leaves_no_draft(
    two_prompts, monkeypatch, method, call, file, left
):
    fail_at(monkeypatch, Path, method, call, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    (code, out, err), found = two_prompts()
    assert (code, out) == (2, f"{Path('out', 'rain.wav')}\n")
    assert err == f"audioldm2: error: {Path('out', file)}: No space left on device\n"
    assert found == left


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 5,000 bytes; Python ignores the signal SIGXFSZ."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
def test_limit_on_the_size_of_files(folder, sound, run, tiny_folder, small_files):
    assert sound("dog", "-o", "a.wav", "--quiet") == (2, "", "audioldm2: error: a.wav: File too large\n")
    code, out, err = run("convert", tiny_folder, "copy")
    errors = [text for text in err.splitlines() if text.startswith("audioldm2: error: ")]
    assert (code, out) == (2, "") and len(errors) == 1 and "copy" in errors[0]
    assert "Traceback" not in err
    assert names(folder) == [] and list(folder.iterdir()) == []
