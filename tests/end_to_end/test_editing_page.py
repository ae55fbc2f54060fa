"""The page about editing: its Python and its commands run, its pictures are small and the script's."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from audioldm2.audio import read, resample, write_wav
from audioldm2.cli.main import main
from tests.support.demo_world import make

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "audioldm2" / "editing" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
PICTURES = sorted((PAGE.parent / "pictures").iterdir())
RATE = 16_000


@pytest.fixture
def sounds(tmp_path, monkeypatch) -> Path:
    """A folder with the sounds of the page, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    fire = torch.from_numpy(make("fire", 2))
    write_wav("siren.wav", make("siren", 0), RATE)
    write_wav("bell.wav", make("bell", 1, {"pitch": "high"}), RATE)
    write_wav("street.wav", make("rain", 0), RATE)
    write_wav("birds.wav", make("birds", 3)[: RATE * 5 // 4], RATE)
    write_wav("phone.wav", resample(fire, RATE, RATE // 2), RATE // 2)
    return tmp_path


@pytest.mark.slow
def test_python_and_commands_of_each_edit_make_the_same_sound(sounds):
    names: dict = {}
    loading, *edits = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(loading, names)
    for python, command in zip(edits, re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL), strict=True):
        exec(python.replace(").save", ", num_inference_steps=2).save"), names)
        program, *words = shlex.split(command)
        out = Path(words[-1])
        expected = read(out)[0]
        out.unlink()
        assert program == "audioldm2" and main([*words, "--steps", "2", "--quiet"]) == 0, command
        assert torch.equal(read(out)[0], expected), command


def test_sections_have_a_picture_a_measurement_and_a_limit():
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:-1]
    assert len(sections) == len(PICTURES)
    for section in sections:
        for part in ("```python", "```bash", "](pictures/", "*Measured*", "*Limit*"):
            assert part in section, f"{section.splitlines()[0]} has no {part}"


def test_lines_have_at_most_120_columns():
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_is_small_and_shown(path):
    assert path.stat().st_size < 60_000 and f"(pictures/{path.name})" in TEXT


@pytest.mark.slow
def test_script_draws_the_pictures_of_the_page(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from scripts import make_editing_pictures

    assert {f"{name}.png" for name in make_editing_pictures.PICTURES} == {path.name for path in PICTURES}
    words = ["make_editing_pictures.py", "--only", "continuation", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert make_editing_pictures.main() == 0
    assert (tmp_path / "continuation.png").read_bytes()[:4] == b"\x89PNG"
