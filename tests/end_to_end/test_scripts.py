"""The scripts that measure, run as their --help says, on small requests."""

import importlib.util
import sys
from pathlib import Path

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a stage")
def test_long_sound_reports_every_stage(run, tiny_folder):
    lines = run(
        *("long_sound.py", "--model", tiny_folder, "--seconds", 35, "--unet-seconds", 0.5),
        *("--steps", 2, "--candidates", 2),
    )
    stages = [line.split()[0] for line in lines if " peak " in line]
    assert stages == ["decode", "vocode", "score", "generate"]
    assert "  audio (2, 560000), all finite" in lines
    assert "  audio (1, 2, 8000), all finite" in lines


def test_memory_curve_measures_a_point(run):
    header, row = run("memory_curve.py", "--stages", "vocode", "--ways", "pieces", "--seconds", 0.5)
    assert header.split()[:4] == ["stage", "way", "sound,", "s"]
    stage, way, seconds, weights, peak, *_ = row.split()
    assert (stage, way, seconds) == ("vocode", "pieces", "0.5")
    assert float(peak) >= float(weights) > 0
