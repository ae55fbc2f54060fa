"""Streams that are closed, full or read by nobody: the writes never raise, and the first error is kept."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from audioldm2.cli import streams
from audioldm2.cli.streams import Stream, print_path, print_result, report, safe_streams
from tests.support.command_line import assert_refused, posix

full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


@contextmanager
def broken_pipe() -> Iterator[TextIO]:
    """The writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def test_stream_that_works_passes_text_on():
    inner = io.StringIO()
    stream = Stream(inner)
    print("a", file=stream, flush=True)
    assert (inner.getvalue(), stream.failure, stream.isatty()) == ("a\n", None, False)


def test_absent_stream_takes_any_text():
    stream = Stream(None)
    print("a", file=stream, flush=True)
    assert isinstance(stream.failure, OSError) and not stream.isatty()


@posix
def test_broken_pipe_is_remembered():
    with broken_pipe() as pipe:
        stream = Stream(pipe)
        for _ in range(3):
            print("a", file=stream, flush=True)
        assert isinstance(stream.failure, BrokenPipeError)


@full_device
def test_full_device_is_remembered():
    with open("/dev/full", "w") as device:
        stream = Stream(device)
        print("a", file=stream, flush=True)
        assert stream.failure.strerror == "No space left on device"


def test_closed_object_is_remembered():
    inner = io.StringIO()
    inner.close()
    stream = Stream(inner)
    print("a", file=stream, flush=True)
    assert isinstance(stream.failure, ValueError)


def test_streams_of_the_caller_are_restored(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    before = sys.stdout
    with pytest.raises(KeyError), safe_streams():
        assert isinstance(sys.stdout, Stream) and isinstance(sys.stderr, Stream)
        raise KeyError
    assert sys.stdout is before and sys.stderr is None


def test_message_without_standard_error_is_not_printed_on_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with safe_streams():
        report("note: something")
    assert capsys.readouterr().out == ""


def test_lost_result_raises_and_lost_path_does_not(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with safe_streams():
        print_path("a.wav")
        with pytest.raises(OSError, match="closed"):
            print_result("0.5  a.wav")


def test_generates_with_no_streams_at_all(tiny_folder, folder, monkeypatch):
    """As under `pythonw`."""
    from audioldm2.cli.main import main

    words = ["dog", "--model", str(tiny_folder), "--duration", "0.2", "--steps", "2"]
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(words) == 0
    assert main(["dog", "--steps", "0"]) == 2
    assert main(["--sampler", "list"]) == 2  # nothing but the list was asked for
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["dog.wav", "dog.wav.json"]


@posix
def test_result_that_nobody_reads_has_its_exit_code(run, monkeypatch):
    with broken_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run("--sampler", "list")[::2] == (141, "")


@full_device
def test_result_on_a_full_device_is_an_error(run, monkeypatch):
    with open("/dev/full", "w") as device:
        monkeypatch.setattr(sys, "stdout", device)
        code, _, err = run("--sampler", "list")
    assert_refused((code, "", err), "standard output: No space left on device")


OPENS_A_FILE = """
import os, runpy, sys
streams = runpy.run_path(sys.argv[1])
with streams["safe_streams"]():
    os.write(2, str(os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)).encode())
"""


@posix
def test_file_gets_no_descriptor_of_a_closed_stream(tmp_path):
    """What a library written in C prints would end up in it."""
    closed = ["sh", "-c", 'exec "$@" <&- >&-', "sh"]
    command = [*closed, sys.executable, "-c", OPENS_A_FILE, streams.__file__, str(tmp_path / "sound.wav")]
    assert int(subprocess.run(command, stderr=subprocess.PIPE, check=True).stderr) > 2
