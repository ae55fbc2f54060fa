"""Errors in words: those that a user can cause are one sentence each, and bugs keep their traceback."""

import errno
import os
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.cli import generate
from audioldm2.cli.failures import in_words
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.training.full_disk import DiskWriter
from tests.support.command_line import assert_refused, without_stages


def words(error: Exception) -> str | None:
    return in_words(error, generate.parser(), "Try less.")


@pytest.mark.parametrize(
    ("name", "flag"),
    [("num_inference_steps", "--steps"), ("seed[1]", "--seed[1]"), ("audio_length_in_s", "--duration"),
     ("device", "--device"), ("low_memory", "--low-memory"), ("prompt[2]", "prompt[2]"), ("mel", "mel")],
)  # fmt: skip
def test_argument_error_names_the_flag(name, flag):
    assert words(ArgumentError(name, 0, "be more")) == f"{flag} is 0; it has to be more."


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: 9 bytes"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.94 GB)"),
        RuntimeError("Invalid buffer size: 30.00 GB"),
        RuntimeError("Storage size calculation overflowed with sizes=[1, 9223372036854775807]"),
    ],
)
def test_out_of_memory_says_what_to_try(error):
    assert words(error) == "not enough memory. Try less."


def test_real_allocation_that_is_too_large():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert words(caught.value) == "not enough memory. Try less."
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, 2**62)
    assert words(caught.value) == "not enough memory. Try less."


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: no kernel image is available for execution on the device",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_lost_device_names_the_flag_for_another(message):
    found = words(RuntimeError(message))
    assert message.splitlines()[0] in found and "--device cpu" in found and "\n" not in found


def test_full_disk_in_torch_save_names_the_folder():
    message = "[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"
    writer = DiskWriter(Path("runs/vae"), "stop", report=pytest.fail, should_stop=lambda: False)

    def fail(sentence: str) -> None:
        raise RuntimeError(sentence)

    with pytest.raises(OSError) as caught:
        writer.write(lambda: fail(message))
    expected = f"runs/vae: it could not be written ({message}); is the disk full? The last save stays"
    assert words(caught.value) == expected
    with pytest.raises(RuntimeError, match=r"^mat1$"):
        writer.write(lambda: fail("mat1"))


def test_error_of_the_system_names_the_file():
    assert (
        words(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.wav")) == "a.wav: No space left on device"
    )
    assert words(OSError("no file has this")) == "no file has this"
    assert words(BrokenPipeError(errno.EPIPE, "Broken pipe")) == "Broken pipe"  # of a connection to the hub


@pytest.mark.parametrize(
    "error", [ValueError("it is so."), WeightsError("it is so."), FloatingPointError("it is so.")]
)
def test_sentences_of_the_library_stay_as_they_are(error):
    assert words(error) == "it is so."


@pytest.mark.parametrize(
    "error", [TypeError("x"), RuntimeError("mat1 and mat2"), KeyError("x"), AttributeError("x")]
)
def test_bugs_have_no_sentence(error):
    assert words(error) is None


def test_out_of_memory_ends_in_one_sentence(sound, folder, monkeypatch):
    def starved(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(audioldm2.AudioLDM2, "decode", starved)
    code, out, err = sound("dog")
    assert_refused(
        (code, out, without_stages(err)), "not enough memory", "--duration", "--candidates", "--low-memory"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), TypeError("no such option")]
)
def test_bug_keeps_its_traceback(sound, folder, monkeypatch, error):
    def faulty(*_, **__):
        raise error

    monkeypatch.setattr(audioldm2.AudioLDM2, "decode", faulty)
    with pytest.raises(type(error), match=str(error)):
        sound("dog")
