"""New words on the command line: `train --new-word`, `--word` of `generate`, mistakes in a line."""

import json
from pathlib import Path

import pytest

from audioldm2.cli.main import main
from tests.support.training import write_sounds

FEW = ["--steps", "2", "--batch", "2", "--seconds", "0.32", "--sample-every", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = write_sounds(tmp_path_factory.mktemp("home") / "sounds")
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace("a bell rings", "a <zorp> rings"))
    return folder


@pytest.fixture(scope="module")
def run(sounds: Path, tiny_folder: Path) -> Path:
    """A finished run."""
    folder = sounds.parent / "zorp"
    words = ["train", "--new-word", "<zorp>", "--vectors", 2, "--like", "a bell", "--data", sounds]
    words += ["--out", folder, *FEW, "--model", tiny_folder]
    assert main([*map(str, words)]) == 0
    return folder


def error(capsys, *words: object) -> str:
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_run_makes_a_word_that_resumes(run: Path, tiny_folder: Path, capsys):
    assert {path.name for path in run.iterdir()} == {
        *("word", "metrics.jsonl", "run.json", "state.pt", "samples")
    }
    settings = json.loads((run / "run.json").read_text())
    assert settings["stage"] == "word" and settings["base"] == str(tiny_folder.resolve())
    assert {key: settings["recipe"][key] for key in ("word", "vectors", "like")} == {
        "word": "<zorp>", "vectors": 2, "like": "a bell"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in (run / "word").iterdir()) < 4000
    assert main(["train", "--resume", "--out", str(run), "--steps", "3"]) == 0
    assert f"{run / 'word'} is the word <zorp>; use it with --model" in capsys.readouterr().err


def test_sound_with_a_word(run: Path, tiny_folder: Path, tmp_path: Path, capsys):
    words = ["a <zorp>", "--model", tiny_folder, "--duration", 0.32, "--steps", 1, "-o", tmp_path / "a.wav"]
    assert main([*map(str, words), "--word", str(run / "word")]) == 0, capsys.readouterr().err
    (record,) = json.loads((tmp_path / "a.wav.json").read_text())["words"]
    assert record["word"] == "<zorp>" and record["base_model"] == str(tiny_folder)


@pytest.mark.slow
def test_mistakes_are_one_line(run: Path, sounds: Path, tiny_folder: Path, tmp_path: Path, capsys):
    a_bell = ["a bell", "-o", tmp_path / "a.wav"]
    assert "nowhere cannot be found; it has to be a word" in error(capsys, *a_bell, "--word", "nowhere")
    assert "It belongs to a model of another size" in error(capsys, *a_bell, "--word", run / "word")
    twice = ["--model", tiny_folder, "--word", run / "word", "--word", run / "word"]
    assert "it has to differ from the words that are loaded" in error(capsys, *a_bell, *twice)
    train = ["train", "--data", sounds, "--out", tmp_path / "new"]
    model = ["--model", tiny_folder]
    assert "--like is 'x'; it has to be left out without --new-word" in error(capsys, *train, "--like", "x")
    assert "it has to be word" in error(capsys, *train, "--new-word", "<a>", "--stage", "vae")
    assert "it has to be a trained model" in error(capsys, *train, "--new-word", "<a>")
    assert "it is in none of them" in error(capsys, *train, "--new-word", "<a>", *model, *FEW)
    assert "such as <zorp>" in error(capsys, *train, "--new-word", "zorp", *model)
    assert not (tmp_path / "new").exists()
