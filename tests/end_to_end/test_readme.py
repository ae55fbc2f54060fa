"""The README files: commands and Python run as printed, links lead somewhere, the file guide is complete."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.adapters.writing import write as write_adapter
from audioldm2.audio import write_wav
from audioldm2.cli.main import COMMANDS, main
from tests.support.adapters import random_adapter
from tests.support.hearing import add_audiomae

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = sorted(path.parent.name for path in (ROOT / "audioldm2").glob("*/__init__.py"))
FOLDERS = ("audioldm2", "convert", "scripts", "tests")
PAGES = sorted(
    page.relative_to(ROOT)
    for page in [*ROOT.glob("*.md"), *(p for f in (*FOLDERS, ".github") for p in (ROOT / f).rglob("*.md"))]
)


def block(marker: str) -> str:
    """The fenced block after <!-- marker --> or after a heading."""
    return re.search(rf"^(?:<!-- {marker} -->|## {marker}\n)\n```\w+\n(.*?)```", README, re.M | re.S)[1]


def commands() -> list[str]:
    """The lines under "The command line"."""
    return [line for line in block("The command line").splitlines() if line.strip()]


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_has_at_most_150_lines_of_120_columns():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_python_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("six lines"), names)
    exec(block("stages"), names)
    assert (tmp_path / "birds.wav").stat().st_size > 2 * 16000 * 2
    assert "16000" in capsys.readouterr().out
    assert names["wave"].shape[0] == 1 and names["wave"].shape[1] == pytest.approx(5 * 16000, abs=1000)


def test_first_command_writes_its_sound(tmp_path, monkeypatch):
    """Its last line, after the set-up."""
    monkeypatch.chdir(tmp_path)
    prompt, rest = re.search(r'&& audioldm2 "(.*?)" (.*)\n', block("the first sound")).groups()
    assert main([prompt, *rest.split()]) == 0
    assert (tmp_path / "beep.wav").exists()


def test_ci_runs_the_test_command():
    """.ci/run cuts the command out of the README and runs it: style, types, tests."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == 'eval "$command"'
    wanted = block("the tests").rstrip("\n")
    for part in ('pip install -e ".[test]"', "ruff check .", "mypy", "python -m pytest -n 2"):
        assert part in wanted
    if not shutil.which("bash") or not shutil.which("sed"):
        pytest.skip("no bash or sed to run the line of .ci/run")
    cut = next(line for line in script.splitlines() if line.startswith("command="))
    found = subprocess.run(
        ["bash", "-c", f'{cut}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == wanted


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line):
    program, *arguments = shlex.split(line, comments=True)
    assert program == "audioldm2"
    name = arguments.pop(0) if arguments[0] in COMMANDS else "generate"
    COMMANDS[name]().parser().parse_args(arguments)  # raises for an unknown flag


def test_each_command_is_shown():
    shown = {shlex.split(line, comments=True)[1] for line in commands()}
    assert set(COMMANDS) - {"generate"} <= shown


def test_commands_of_generation_run(tmp_path, monkeypatch, tiny_folder):
    """Those that need nothing but folders ./base and ./full, prompts and a sound; in a few steps."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "base")
    Path("prompts.txt").write_text("heavy rain\na dog barks\n", encoding="utf-8")
    add_audiomae(Path("base"), Path("full"))
    model = audioldm2.load("base", device="cpu")
    Path("runs/oud").mkdir(parents=True)
    write_adapter(random_adapter(model.networks.configs), Path("runs/oud/adapter"), model.networks.configs)
    write_wav("dog.wav", 0.3 * torch.sin(torch.arange(16000) / 6), 16000)
    for line in commands():
        arguments = shlex.split(line, comments=True)[1:]
        if arguments[0] in {"convert", "train", "evaluate", "verify", "ui"}:  # of another model, or long
            continue
        steps = [] if arguments[0] in COMMANDS else ["--steps", "3"]  # the last of a flag holds
        assert main([*arguments, *steps]) == 0, line
    written = {path.name for path in tmp_path.glob("*.wav")}
    assert written == {
        "rain.wav", "heavy_rain.wav", "best.wav", "a_cat.wav", "an_oud.wav", "dog.wav", "in_a_cave.wav",
        "a_woman_speaks.wav",
    }  # fmt: skip
    assert Path("rain.wav.json").exists() and len(list(Path("sounds").glob("*.wav"))) == 2


def test_nothing_recommends_the_other_package_of_this_name():
    """PyPI's audioldm2 is another project, so extras are installed from the clone or by their own names."""
    for folder in ("audioldm2", "convert", "scripts", "."):
        for path in (ROOT / folder).glob("*" if folder == "." else "**/*"):
            if path.suffix in {".py", ".md"}:
                assert not re.search(r"pip install \S?audioldm2", path.read_text(encoding="utf-8")), path


def test_file_guide_names_every_package_and_module():
    guide = block("File guide")
    for name in PACKAGES:
        assert re.search(rf"^  {name}/ ", guide, re.MULTILINE), f"audioldm2/{name}/ has no line"
    for path in (ROOT / "audioldm2").glob("*.py"):
        assert path.name in guide, f"audioldm2/{path.name} is not named"
    for folder in FOLDERS:
        assert re.search(rf"^{folder}/ ", guide, re.MULTILINE), f"{folder}/ has no line"


def test_file_guide_names_nothing_else():
    for name in re.findall(r"\b\w+(?:\.py\b|/)", block("File guide")):
        found = (ROOT / name).exists() or any(any((ROOT / f).rglob(name)) for f in FOLDERS)
        assert found, f"{name} does not exist"


def test_all_pages_are_found():
    rooms = {"README.md", "audioldm2/models/README.md", "audioldm2/runtime/README.md", "convert/README.md"}
    rooms |= {
        "audioldm2/adapters/README.md",
        "audioldm2/editing/README.md",
        "audioldm2/evaluation/README.md",
        "audioldm2/sampling/README.md",
        "audioldm2/verification/README.md",
        "audioldm2/ops/README.md",
        "audioldm2/training/README.md",
        "scripts/README.md",
        "tests/README.md",
    }
    assert rooms <= {page.as_posix() for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if fragment:
            assert fragment in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_scripts_exist(page):
    for name in re.findall(r"\bscripts/[\w/]+\.py\b", (ROOT / page).read_text(encoding="utf-8")):
        if page.name != "CHANGELOG.md":  # which names what has moved
            assert (ROOT / name).exists(), f"{page} names {name}"
