"""Every script prints its help from anywhere; the scripts that measure run on small requests."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.support import programs

SCRIPTS = Path(__file__).parents[2] / "scripts"


# Modules that other scripts import and that have no command line.
LIBRARIES = {
    "training_runs.py",
    *(f"benchmark/{name}.py" for name in ("arithmetic", "runs", "sides")),
    *(f"gpu_checks/{name}.py" for name in ("beside", "context", "networks", "requests")),
    *(f"demo_world/{name}.py" for name in ("captions", "families", "model_checks", "new_sounds", "registry")),
    *(f"demo_world/{name}.py" for name in ("sound_measures", "synthesis", "wordings")),
    *(f"speech_demo/{name}.py" for name in ("judges", "vocabulary")),
}
COMMANDS = sorted({path.relative_to(SCRIPTS).as_posix() for path in SCRIPTS.rglob("*.py")} - LIBRARIES)


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, programs.Outcome]:
    """What each script does with --help, in an empty folder."""
    commands = [[str(SCRIPTS / script), "--help"] for script in COMMANDS]
    found = programs.outcomes(commands, tmp_path_factory.mktemp("elsewhere"))
    return dict(zip(COMMANDS, found, strict=True))


@pytest.mark.parametrize("script", COMMANDS)
def test_help_is_printed_from_any_folder(script: str, helps: dict[str, programs.Outcome]):
    code, out, err = helps[script]
    assert code == 0, err
    assert Path(script).name in out and not err


def test_libraries_exist():
    assert all((SCRIPTS / path).is_file() for path in LIBRARIES)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments: object) -> list[str]:
        """Runs a script; returns the lines that it prints."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        monkeypatch.syspath_prepend(SCRIPTS)
        spec = importlib.util.spec_from_file_location("script", SCRIPTS / name)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        assert script.main() == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a stage")
def test_long_sound(run, tiny_folder):
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


def test_memory_curve_of_one_case(run):
    header, row = run("benchmark/memory_curve.py", "--stages", "vocode", "--ways", "pieces", "--seconds", 0.1)
    assert header.split()[:4] == ["stage", "way", "sound,", "s"]
    stage, way, seconds, weights, peak, *_ = row.split()
    assert (stage, way, seconds) == ("vocode", "pieces", "0.1")
    assert float(peak) >= float(weights) > 0
