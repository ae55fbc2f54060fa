"""`audioldm2 evaluate`: a model judged by prompts, a folder judged by its captions."""

import json
from pathlib import Path

import pytest
import torch

from audioldm2.audio import write_wav
from audioldm2.cli.evaluate import read_prompts
from audioldm2.evaluation import Prompt
from tests.support.command_line import assert_refused

pytestmark = pytest.mark.usefixtures("folder")
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


def test_judges_a_model(run, tiny_folder):
    Path("prompts.csv").write_text("prompt,family\na dog barks,dog\nrain on a roof,rain\nmusic,\n")
    write_sounds("reference")
    Path("reference", "broken.wav").write_text("no sound")
    Path("reference", "notes.txt").write_text("notes")
    words = (
        "--model",
        tiny_folder,
        "--prompts",
        "prompts.csv",
        "--reference",
        "reference",
        "--json",
        "found.json",
    )
    code, out, err = run("evaluate", *words, *QUICK)
    assert code == 0, err
    found = json.loads(Path("found.json").read_text())
    assert found["sounds"] == 6 and -1 <= found["CLAP score"] <= 1
    assert 0 <= found["families"] <= 1 and found["Frechet"] > 0
    assert [line[:12].strip() for line in out.splitlines()] == list(found)
    assert "seed 1: 3 of 3 prompts" in err
    assert "passed over 1 file (.txt)" in err and "left out:" in err and "broken.wav" in err


def test_judges_a_folder(run, tiny_folder):
    write_sounds("sounds")
    write_sounds("reference", 4)
    Path("sounds", "captions.csv").write_text("file,caption\n0.wav,rain\n2.wav,a dog barks\n")
    words = ("--sounds", "sounds", "--judge", tiny_folder, "--device", "cpu", "--json", "found.json")
    assert run("evaluate", *words, "--reference", "reference")[0] == 0
    found = json.loads(Path("found.json").read_text())
    assert found.keys() == {"sounds", "CLAP score", "Frechet"} and found["sounds"] == 2

    Path("sounds", "captions.csv").unlink()
    assert run("evaluate", *words, "--reference", "sounds")[0] == 0
    found = json.loads(Path("found.json").read_text())
    assert found == {"sounds": 3, "Frechet": pytest.approx(0, abs=1e-6)}


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
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(run, mistake):
    Path("empty.txt").write_text("\n")
    Path("odd.csv").write_text("text\nrain\n")
    Path("prompts.txt").write_text("rain\n")
    Path("folder").mkdir()
    arguments, *words = MISTAKES[mistake]
    assert_refused(run("evaluate", *arguments), *words)


def test_single_sound_of_reference_is_refused(run, tiny_folder):
    write_sounds("sounds")
    write_sounds("one", 1)
    refused = run(
        "evaluate", "--sounds", "sounds", "--judge", tiny_folder, "--reference", "one", "--device", "cpu"
    )
    assert_refused(refused, "--reference has one sound; it has to have at least two")
