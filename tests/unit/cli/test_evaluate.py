"""`audioldm2 evaluate`: a model judged by prompts, a folder judged by its captions."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from audioldm2.audio import write_wav
from audioldm2.evaluation import Prompt
from audioldm2.evaluation.prompts import read_prompts
from tests.support.command_line import assert_refused, process
from tests.support.page import until

pytestmark = pytest.mark.usefixtures("folder")
ROOT = Path(__file__).parents[3]
QUICK = ("--seeds", 2, "--seconds", 0.32, "--steps", 1, "--device", "cpu")


def write_sounds(folder: str, count: int = 3) -> None:
    Path(folder).mkdir()
    for i in range(count):
        write_wav(Path(folder, f"{i}.wav"), 0.1 * torch.randn(8000), 16_000)


def test_prompts_of_a_text_and_of_a_table():
    Path("a.txt").write_text("\ufeffrain\n\n  a dog \n", encoding="utf-8")
    Path("a.csv").write_text('prompt,family\n"a dog, far",dog\nrain,\n')
    assert [prompt.text for prompt in read_prompts(Path("a.txt"))] == ["rain", "a dog"]
    assert read_prompts(Path("a.csv")) == [Prompt("a dog, far", "dog"), Prompt("rain")]


def write_prompts() -> None:
    Path("prompts.csv").write_text("prompt,family,category\na dog barks,dog,one\nrain,rain,two\nmusic,,two\n")


@pytest.mark.slow
def test_judges_a_model(run, tiny_folder):
    write_prompts()
    write_sounds("reference", 4)
    Path("reference", "broken.wav").write_text("no sound")
    Path("reference", "notes.txt").write_text("notes")
    words = ("--model", tiny_folder, "--prompts", "prompts.csv", "--reference", "reference")
    code, out, err = run("evaluate", *words, "--json", "found.json", *QUICK)
    assert code == 0, err
    found = json.loads(Path("found.json").read_text())
    figures = found["figures"]
    assert list(figures) == [
        "FD-CLAP",
        "KAD-CLAP",
        "CLAP score",
        "retrieval, top 1",
        "retrieval, top 10",
        "families",
    ]
    assert figures["FD-CLAP"]["value"] > 0 and -1 <= figures["CLAP score"]["value"] <= 1
    assert figures["retrieval, top 10"]["value"] == 1  # of three prompts
    assert figures["families"]["sounds"] == 4
    assert found["floors"]["KAD-CLAP"]["sounds"] == 2
    assert {name: each["sounds"] for name, each in found["categories"].items()} == {"one": 2, "two": 4}
    assert "| FD-CLAP, 2 against 2 |" in out and "- CLAP: " in out and "Hz -> 48000 Hz" in out
    assert "6 by " in found["facts"]["sounds"] and found["facts"]["reference"] == "4 of reference"
    assert "passed over 1 file (.txt)" in err and "left out:" in err and "broken.wav" in err
    assert {path.name for path in Path().iterdir()} == {"prompts.csv", "reference", "found.json"}
    assert set(found["seconds"]) >= {"generating", "judging the sounds", "figures and intervals"}


@pytest.mark.slow
def test_same_command_goes_on_where_it_stopped(run, tiny_folder, monkeypatch):
    write_prompts()
    words = ("evaluate", "--model", tiny_folder, "--prompts", "prompts.csv", "--out", "out", *QUICK)
    assert run(*words)[0] == 0
    report, sounds = Path("out", "report.md").read_text(), sorted(Path("out", "sounds").rglob("*.wav"))
    assert len(sounds) == 6 and Path("out", "report.json").exists()
    written = [sound.stat().st_mtime_ns for sound in sounds]
    code, out, err = run(*words)
    assert code == 0 and "6 of 6 sounds are there already" in err
    assert [sound.stat().st_mtime_ns for sound in sounds] == written
    assert _without_time(out) == _without_time(report)
    assert_refused_after(run(*words, "--steps", 2), "out holds the sounds of a run with other options")


@pytest.mark.slow
def test_processes_share_a_run(tiny_folder, run, monkeypatch):
    """Two at once, without any connection between them; the last to finish judges."""
    write_prompts()
    words = ("evaluate", "--model", tiny_folder, "--prompts", "prompts.csv", "--out", "out", *QUICK)
    place = {"RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    other = process(*words, env=os.environ | place)
    until(Path("out").exists)
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        code, *ours = run(*words)
    printed = [ours, other.communicate()]
    assert (code, other.returncode) == (0, 0), printed
    reports = [err for _, err in printed]
    assert all("generated 3 of 3 sounds" in err for err in reports)
    assert any("| CLAP score |" in out for out, _ in printed)
    assert all("share is done" in err for (out, err) in printed if not out)
    alone = run(*words)
    assert "6 of 6 sounds are there already" in alone[2]
    assert _without_time(alone[1]) == _without_time(Path("out", "report.md").read_text())


def _without_time(report: str) -> list[str]:
    return [line for line in report.splitlines() if not line.startswith("- time")]


def assert_refused_after(outcome, *words: str) -> None:
    """The same as `assert_refused`, after reports of what was begun."""
    code, out, err = outcome
    assert_refused((code, out, err.splitlines(keepends=True)[-1]), *words)


@pytest.mark.slow
def test_builtin_prompts_have_a_score_for_each_category(run, tiny_folder, monkeypatch):
    def write_all(model, jobs, *_, **__) -> list:
        for job in jobs:
            job.file.parent.mkdir(parents=True, exist_ok=True)
            write_wav(job.file, torch.linspace(-0.1, 0.1, 5120), 16_000)  # all equal: embedded once
        return []

    monkeypatch.setattr("audioldm2.cli.evaluate.generate", write_all)
    words = ("--model", tiny_folder, "--prompts", "builtin", "--seeds", 1, "--out", "out", "--device", "cpu")
    code, out, err = run("evaluate", *words)
    assert code == 0, err
    assert "| sound effects | 20 |" in out and "| other languages | 14 |" in out and "families" not in out
    assert "| retrieval, top 1 | 0.01 |" in out  # equal sounds are found by chance


@pytest.mark.slow
def test_judges_a_folder(run, tiny_folder):
    write_sounds("sounds")
    write_sounds("reference", 4)
    Path("sounds", "captions.csv").write_text("file,caption\n0.wav,rain\n2.wav,a dog barks\n")
    words = ("--sounds", "sounds", "--judge", tiny_folder, "--device", "cpu", "--json", "found.json")
    assert run("evaluate", *words, "--reference", "reference")[0] == 0
    found = json.loads(Path("found.json").read_text())
    assert list(found["figures"]) == [
        "FD-CLAP",
        "KAD-CLAP",
        "CLAP score",
        "retrieval, top 1",
        "retrieval, top 10",
    ]
    assert found["facts"]["sounds"] == "2 of sounds"
    assert found["figures"]["FD-CLAP"]["interval"] is None  # two sounds have no halves

    Path("sounds", "captions.csv").unlink()
    assert run("evaluate", *words, "--reference", "sounds", "--rate", 8000)[0] == 0
    found = json.loads(Path("found.json").read_text())
    assert found["figures"]["FD-CLAP"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["facts"]["resampling"].startswith("file -> 8000 Hz -> 48000 Hz")


def test_other_judges_add_their_figures(run, tiny_folder, monkeypatch):
    package = SimpleNamespace(
        load_silero_vad=lambda: None, get_speech_timestamps=lambda *_, **__: [{"start": 0, "end": 2000}]
    )
    monkeypatch.setitem(sys.modules, "silero_vad", package)
    write_sounds("sounds")
    words = ("--sounds", "sounds", "--judge", tiny_folder, "--device", "cpu", "--other-judges", "silero-vad")
    code, out, err = run("evaluate", *words)
    assert code == 0 and "| speech, share of time | 0.25 |" in out, err


MISTAKES = {
    "nothing": ((), "either --model with --prompts, or --sounds", "audioldm2 evaluate --help"),
    "both": (("--model", "a", "--sounds", "b"), "either --model with --prompts, or --sounds"),
    "no prompts": (("--model", "a"), "--model needs --prompts"),
    "no judge": (("--sounds", "a"), "--sounds needs --judge"),
    "prompts nowhere": (("--model", "a", "--prompts", "nowhere.txt"), "nowhere.txt: No such file"),
    "prompts empty": (("--model", "a", "--prompts", "empty.txt"), "empty.txt holds no prompts."),
    "prompts without a column": (("--model", "a", "--prompts", "odd.csv"), "odd.csv has no column 'prompt'"),
    "model nowhere": (("--model", "./nowhere", "--prompts", "prompts.txt"), "nowhere"),
    "no folder": (("--model", "a", "--prompts", "prompts.txt", "--json", "no/f.json"), "does not exist"),
    "figures to a folder": (("--model", "a", "--prompts", "prompts.txt", "--json", "folder"), "is a folder"),
    "no seeds": (("--model", "a", "--prompts", "prompts.txt", "--seeds", "0"), "--seeds is 0; it has to be"),
    "no steps": (("--model", "a", "--prompts", "prompts.txt", "--steps", "0"), "--steps is 0; it has to be"),
    "no seconds": (("--model", "a", "--prompts", "prompts.txt", "--seconds", "-1"), "--seconds is -1.0"),
    "reference empty": (
        ("--model", "a", "--prompts", "prompts.txt", "--reference", "folder"), "folder holds no sound files",
    ),
    "reference nowhere": (
        ("--model", "a", "--prompts", "prompts.txt", "--reference", "no"), "no is not a folder",
    ),
    "captions missing": (("--sounds", "gaps", "--judge", "a", "--reference", "gaps"), "captions.csv, line 2"),
    "no such judge": (("--sounds", "a", "--judge", "b", "--other-judges", "ear"), "invalid choice: 'ear'"),
    "rate too low": (("--sounds", "a", "--judge", "b", "--rate", "10"), "--rate is 10; it has to be"),
    "out is a file": (("--sounds", "a", "--judge", "b", "--out", "prompts.txt"), "prompts.txt is a file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(run, mistake):
    Path("empty.txt").write_text("\n")
    Path("odd.csv").write_text("text\nrain\n")
    Path("prompts.txt").write_text("rain\n")
    Path("folder").mkdir()
    Path("gaps").mkdir()
    Path("gaps", "captions.csv").write_text("file,caption\n0.wav,\n")
    arguments, *words = MISTAKES[mistake]
    assert_refused(run("evaluate", *arguments), *words)


@pytest.mark.parametrize("count", [1, 0])
def test_too_few_sounds_for_a_distance_are_refused(run, tiny_folder, count):
    write_sounds("sounds")
    write_sounds("one", 2)
    Path("one", "0.wav").write_text("no sound")
    if not count:
        Path("one", "1.wav").write_text("no sound")
    words = ("--sounds", "sounds", "--judge", tiny_folder, "--reference", "one", "--device", "cpu")
    expected = "--reference has one sound; it has to have at least two" if count else "none of the 2 sounds"
    assert_refused_after(run("evaluate", *words), expected)


def test_processes_need_a_folder_to_share(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    Path("prompts.txt").write_text("rain\n")
    assert_refused(
        run("evaluate", "--model", "a", "--prompts", "prompts.txt"), "WORLD_SIZE is 2; it has to be 1"
    )
    monkeypatch.setenv("RANK", "2")
    assert_refused(
        run("evaluate", "--model", "a", "--prompts", "prompts.txt"), "RANK is '2' with WORLD_SIZE '2'"
    )
