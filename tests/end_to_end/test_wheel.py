"""The wheel: what is in it, and that it generates a sound where nothing else of the repository is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_A_COPY = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees neither the repository nor the network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("audioldm2", "convert"):
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_IN_A_COPY)
    pip = (sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist")
    run(*pip, cwd=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


def shipped() -> set[str]:
    """Every file of ours that an installation needs, by its path in the wheel."""
    wanted = set()
    for source, target in (("audioldm2", "audioldm2"), ("convert", "audioldm2/convert")):
        for path in (ROOT / source).rglob("*"):
            inside = path.relative_to(ROOT / source)
            data = path.name in ("py.typed", "prompts.csv")
            ours = data or path.suffix == ".py" or inside.parts[0] == "assets"
            if ours and path.is_file() and "__pycache__" not in inside.parts:
                wanted.add(f"{target}/{inside.as_posix()}")
    return wanted


def test_wheel_holds_every_module_and_the_models_in_the_box(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == shipped()
    assert {"audioldm2/py.typed", "audioldm2/convert/keymap.py", "audioldm2/assets/demo/config.json"} <= held


def test_installed_wheel_generates_a_sound(wheel: Path, tmp_path: Path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    scheme = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv" if os.name != "nt" else "nt", scheme))
    python = next((environment / folder) for folder in ("bin", "Scripts") if (environment / folder).is_dir())
    run(
        *(sys.executable, "-m", "pip", "--python", python / "python", "install"),
        *("--no-deps", "--no-cache-dir", wheel),
        cwd=tmp_path,
    )
    # torch and the others, as plain folders: .pth files there, such as an editable install's, are not read.
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")

    run(python / "audioldm2", "a beep", "--steps", "2", "-o", "beep.wav", cwd=tmp_path)
    sound, rate = soundfile.read(tmp_path / "beep.wav")
    assert rate == 16_000 and len(sound) > rate and abs(sound).max() > 0
    program = "import audioldm2.convert; from audioldm2.cli.main import main; print(audioldm2.__file__)"
    where, *text = run(
        python / "python", "-c", f"{program}; main(['convert', '--help'])", cwd=tmp_path
    ).splitlines()
    assert Path(where).is_relative_to(environment) and text[0].startswith("usage: audioldm2 convert")
