"""`audioldm2 convert --check`: a folder is compared with its source, value by value."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import checkpoints, originals
from tests.support.commands import (
    BASE,
    CODE,
    assert_failed,
)


@pytest.mark.parametrize("options", [(), ("--ema",), ("--heads", "config")])
def test_check_accepts_what_was_converted(run, options):
    run("convert", "t5.pth", "out", *options)
    count = sum(len(state) for state in originals.make("t5").states.values())
    assert run("convert", "t5.pth", "out", "--check", *options) == (
        0,
        f"out: all {count} tensors are those of t5.pth\n",
        "",
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_check_accepts_cast_weights(run, dtype):
    run("convert", "t5.pth", "out", "--dtype", dtype)
    assert run("convert", "t5.pth", "out", "--check")[CODE] == 0


def change(file: str, key: str, edit: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor of a safetensors file."""
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    os.unlink(file)  # a file that is mapped must not change
    save_file(state | {key: edit(state[key])}, file)


def one_bit(tensor: Tensor) -> Tensor:
    """Flip the last bit of the first value."""
    tensor.view(torch.int32).view(-1)[0] ^= 1
    return tensor


@pytest.mark.parametrize(
    ("network", "key", "edit"),
    [
        ("unet", "conv_out.weight", one_bit),
        ("clap_audio", "band_norm.running_mean", one_bit),
        ("hifigan", "mean", lambda tensor: tensor + 1),
        ("t5", "embedding.weight", lambda tensor: tensor * float("nan")),
    ],
)
def test_check_finds_one_changed_value(run, network, key, edit):
    run("convert", "t5.pth", "out")
    change(f"out/{network}.safetensors", key, edit)
    refused = run("convert", "t5.pth", "out", "--check")
    assert_failed(refused, f"'{network}' in out is not what t5.pth holds: ", f"'{key}'")


@pytest.mark.parametrize(
    ("field", "value"),
    [("schedule", {"beta_end": 0.02}), ("clap_mel", {"f_max": 12000}), ("symbols", ["x"] * 183)],
)
def test_check_finds_changed_settings(run, field, value):
    run("convert", "speech.pth", "out")
    checkpoints.change_json(Path("out/config.json"), **{field: value})
    assert_failed(run("convert", "speech.pth", "out", "--check"), "differ")


def test_check_names_differences_to_another_model(run):
    run("convert", "t5.pth", "out")
    refused = run("convert", BASE, "out", "--check")
    assert_failed(refused, "out and base.pth differ in the configs of", "'gpt2'", "another checkpoint")
    refused = run("convert", "t5.pth", "out", "--check", "--heads", "config")
    assert_failed(refused, "differ in the configs of 'unet'", "--heads")
    assert_failed(
        run("convert", "t5.pth", "out", "--check", "--ema"), "'unet' in out is not what t5.pth holds"
    )


def test_check_writes_nothing(run, folder):
    run("convert", "t5.pth", "out")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run("convert", "t5.pth", "out", "--check")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
