"""scripts/benchmark/compare_precision.py: the error of lower precision, a line per network."""

import math

import pytest
import torch

from scripts.benchmark.compare_precision import decibels, main

NETWORKS = ["clap_text", "t5", "projection", "gpt2", "unet", "vae", "hifigan", "clap_audio"]


def test_decibels_compare_powers():
    exact = torch.randn(1000)
    assert decibels(exact, 0.9 * exact) == pytest.approx(20, abs=1e-3)
    assert decibels(exact, exact) > 200 and math.isfinite(decibels(exact, exact))


@pytest.mark.slow
def test_every_network_has_a_row(tiny_folder, capsys):
    assert main(["--model", str(tiny_folder), "--device", "cpu", "--seconds", "0.64", "--runs", "1"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["signal", "/", "error", "float32", "bfloat16", "ratio"]
    assert [row.split()[0] for row in rows] == NETWORKS
    assert all(20 < float(row.split()[1]) < 80 for row in rows)  # bfloat16 has 8 bits of precision


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "auto"], "--dtype is auto; it has to be the dtype to compare with float32"),
        (["--dtype", "float8"], "it has to be one of auto, float32, float16, bfloat16"),
        (["--seconds", "0"], "--seconds has to be from 0.1 to 30"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistake_is_reported_in_one_sentence(flags: list[str], message: str, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err
