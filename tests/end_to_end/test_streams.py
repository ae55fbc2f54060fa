"""Commands in processes whose streams are closed, full, or read by nobody: every sound is written.

A process starts in two seconds, so tests/unit/cli/test_streams.py holds what shows without one.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.support.command_line import QUICK, names, posix, process

pytestmark = [pytest.mark.usefixtures("folder"), posix]
BOTH = ["a.wav", "a.wav.json"]


def in_shell(redirections: str, *arguments: object) -> subprocess.CompletedProcess:
    words = shlex.join([sys.executable, "-m", "audioldm2", *map(str, arguments)])
    return subprocess.run(["sh", "-c", f"{words} {redirections}"], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("redirections", "code", "out", "err"),
    [
        (">&- <&-", 0, "", ""),
        ("2>&-", 0, "a.wav\n", ""),
        (
            ">/dev/full",
            0,
            "",
            "audioldm2: note: standard output: No space left on device; all files are written\n",
        ),
    ],
)
def test_sound_is_written_whatever_the_streams(folder, tiny_folder, redirections, code, out, err):
    quiet = [] if "2>" in redirections else ["--quiet"]  # where standard error is lost, much is printed there
    made = in_shell(redirections, "dog", "-o", "a.wav", "--model", tiny_folder, *QUICK, *quiet)
    assert (made.returncode, made.stdout, made.stderr) == (code, out, err)
    assert names(folder) == BOTH
    assert soundfile.info("a.wav").frames == 3200


def test_every_sound_is_written_after_the_reader_left(folder, tiny_folder):
    Path("prompts.txt").write_text("rain\ndog\n")
    reader, writer = os.pipe()
    os.close(reader)
    with process(
        "--prompts", "prompts.txt", "--model", tiny_folder, *QUICK, "--quiet", stdout=writer
    ) as made:
        os.close(writer)
        _, err = made.communicate()
    assert (made.returncode, err) == (141, "")
    assert names(folder) == [
        *("dog.wav", "dog.wav.json", "prompts.manifest.jsonl", "prompts.txt", "rain.wav", "rain.wav.json")
    ]


def test_sound_is_written_after_the_reader_of_progress_left(folder, tiny_folder):
    """Standard output is full too, so the process can report nothing anywhere."""
    reader, writer = os.pipe()
    os.close(reader)
    with (
        open("/dev/full", "w") as full,
        process("dog", "-o", "a.wav", "--model", tiny_folder, *QUICK, stdout=full, stderr=writer) as made,
    ):
        os.close(writer)
    assert made.returncode == 0
    assert names(folder) == BOTH


@pytest.mark.parametrize("text", ["--help", "--version"])
def test_text_that_nobody_reads_ends_silently(run, monkeypatch, text):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(text)[::2] == (141, "")
