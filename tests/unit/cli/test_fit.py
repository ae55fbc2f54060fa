"""`audioldm2 train --fit`: sizes, the lines that say what was chosen, refusals in a line."""

import argparse
import json
from pathlib import Path

import pytest

from audioldm2.cli.arguments import memory
from audioldm2.cli.main import main
from audioldm2.training import memory_plan
from tests.support.training import write_sounds
from tests.unit.training.test_memory_plan import measured_as

FEW = ["--steps", "1", "--batch", "2", "--seconds", "0.32", "--sample-every", "0", "--device", "cpu"]


@pytest.mark.parametrize("text, size", [("8GB", 8e9), ("8", 8e9), ("1.5 gb", 1.5e9), ("500MB", 5e8)])
def test_sizes(text: str, size: float):
    assert memory(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "-8", "8TB", "much"])
def test_what_is_not_a_size(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size, such as 8GB"):
        memory(text)


def train(tmp_path: Path, model: Path, *words: object) -> int:
    data = write_sounds(tmp_path / "sounds")
    given = ["train", "--data", data, "--out", tmp_path / "run", "--model", model, *FEW, *words]
    return main([*map(str, given)])


@pytest.mark.slow
def test_run_has_the_settings_that_fit(tmp_path: Path, tiny_folder: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory_plan, "rehearse", measured_as)
    assert train(tmp_path, tiny_folder, "--lora", 2, "--crops", 1, "--fit", "6GB") == 0
    err = capsys.readouterr().err
    assert "fits into 6 GB: " in err and "  accumulate 2: parts of a batch" in err and "cache_gb" in err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert recipe["accumulate"] == 2 and recipe["cache_gb"] > 0 and not recipe["recompute"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ("--stage", "vae", "--fit", "8GB"),
            "--fit is 8000000000.0; it has to be left out for the stage 'vae'",
        ),
        (("--lora", 2, "--fit", "1MB"), "--fit is '0.001GB'; it has to be at least"),
    ],
)
def test_refusals(words: tuple, sentence: str, tmp_path: Path, tiny_folder: Path, monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, "rehearse", measured_as)
    assert train(tmp_path, tiny_folder, *words) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()
