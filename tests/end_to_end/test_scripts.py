"""The scripts that measure and score, run as their --help says, on small requests."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from audioldm2.audio import write_wav

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments: object) -> list[str]:
        """The lines that a script prints."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        monkeypatch.syspath_prepend(SCRIPTS)
        spec = importlib.util.spec_from_file_location("script", SCRIPTS / name)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        assert script.main() == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_score_ranks_sound_files_of_any_rate(run, tiny_folder, tiny_model, tmp_path):
    sounds = {}
    for name, rate, seconds in (("a.wav", 16_000, 1), ("b.flac", 44_100, 2), ("c.ogg", 48_000, 11)):
        wave = 0.2 * torch.randn(rate * seconds) * torch.rand(seconds).repeat_interleave(rate)
        write_wav(tmp_path / name, wave, rate)
        sounds[str(tmp_path / name)] = tiny_model.score("rain", wave, rate).item()
    lines = [line.split() for line in run("score.py", *sounds, "--prompt", "rain", "--model", tiny_folder)]
    assert {file for _, file in lines} == set(sounds)
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    for score, file in lines:
        assert float(score) == pytest.approx(sounds[file], abs=0.02)  # 16 bits; Vorbis loses more


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a stage is Linux's to tell")
def test_a_long_sound_runs_through(run, tiny_folder):
    lines = run(
        *("long_sound.py", "--model", tiny_folder, "--seconds", 35, "--unet-seconds", 0.5),
        *("--steps", 2, "--candidates", 2),
    )
    assert [line.split()[0] for line in lines if " peak " in line] == [
        "decode",
        "vocode",
        "score",
        "generate",
    ]
    assert "  audio (2, 560000), all finite" in lines
    assert "  audio (1, 2, 8000), all finite" in lines


def test_a_point_of_the_memory_curve(run):
    header, row = run("memory_curve.py", "--stages", "vocode", "--ways", "pieces", "--seconds", 0.5)
    assert header.split()[:4] == ["stage", "way", "sound,", "s"]
    stage, way, seconds, weights, peak, *_ = row.split()
    assert (stage, way, seconds) == ("vocode", "pieces", "0.5")
    assert float(peak) >= float(weights) > 0
