"""What the README promises: its commands and its Python run as they stand there."""

import re
from pathlib import Path

import pytest

from audioldm2.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The fenced block after <!-- marker -->."""
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def test_the_python_of_the_readme_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("six lines"), names)
    exec(block("stages"), names)
    assert (tmp_path / "birds.wav").stat().st_size > 2 * 16000 * 2
    assert "16000" in capsys.readouterr().out
    assert names["wave"].shape[0] == 1 and names["wave"].shape[1] == pytest.approx(5 * 16000, abs=1000)


def test_the_first_command_makes_its_sound(tmp_path, monkeypatch):
    """Its last line, after the set-up."""
    monkeypatch.chdir(tmp_path)
    prompt, rest = re.search(r'&& audioldm2 "(.*?)" (.*)\n', block("the first sound")).groups()
    assert main([prompt, *rest.split()]) == 0
    assert (tmp_path / "beep.wav").exists()


def test_the_file_guide_names_every_file():
    guide = block_after("## File guide")
    for folder in ("audioldm2", "audioldm2/models", "convert", "scripts"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name in guide or path.name == "__init__.py", (
                f"{path.relative_to(ROOT)} has no caption"
            )
    for name in re.findall(r"\b[a-z_0-9]+\.py\b", guide):
        assert any(ROOT.glob(f"*/{name}")) or any(ROOT.glob(f"*/*/{name}")), (
            f"{name} is in the guide, not here"
        )


def block_after(heading: str) -> str:
    return README.split(heading, 1)[1].split("```", 2)[1]
