"""scripts/compare_precision.py: a line a network, each with the error of fewer bits."""

import math

import pytest
import torch
from scripts.compare_precision import decibels, main

NETWORKS = ["clap_text", "t5", "projection", "gpt2", "unet", "vae", "hifigan", "clap_audio"]


def test_decibels_are_of_powers():
    exact = torch.randn(1000)
    assert decibels(exact, 0.9 * exact) == pytest.approx(20, abs=1e-3)
    assert decibels(exact, exact) > 200 and math.isfinite(decibels(exact, exact))


def test_every_network_is_told_of(tiny_folder, capsys):
    assert main(["--model", str(tiny_folder), "--device", "cpu", "--seconds", "0.64", "--runs", "1"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["signal", "/", "error", "float32", "bfloat16", "ratio"]
    assert [row.split()[0] for row in rows] == NETWORKS
    assert all(20 < float(row.split()[1]) < 80 for row in rows)  # 8 bits, through some layers


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dtype", "auto"], "--dtype is auto; give the one to compare with float32"),
        (["--dtype", "float8"], "choose 'auto' or one of float32, float16, bfloat16"),
        (["--seconds", "0"], "--seconds has to be from 0.1 to 30"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(flags: list[str], said: str, capsys):
    assert main(flags) == 2
    assert said in capsys.readouterr().err
