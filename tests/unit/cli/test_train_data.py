"""`audioldm2 train` and the data it is given: options, bad files, clips that are too short, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.cli.main import main
from tests.support.training import write_sizes, write_sounds

FEW = ["--steps", 2, "--batch", 2, "--sample-every", 0, "--device", "cpu"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sounds(tmp_path / "sounds")
    write_sizes(tmp_path / "sizes.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: object) -> int:
    return main(["train", *map(str, words)])


def begin(*words: object, stage: str = "clap", data: object = "sounds", seconds: float = 0.64) -> int:
    given = ["--stage", stage, "--data", data, "--out", "run", "--model", "sizes.json"]
    return run(*given, "--seconds", seconds, *FEW, *words)


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_options_of_the_data_are_kept_and_resumed(home: Path, capsys):
    table = home / "sounds" / "captions.csv"
    table.write_text(table.read_text().replace("file,caption", "sound,title"))
    words = ["--audio-column", "sound", "--caption-column", "title", "--validation", "0.2", "--workers", 2]
    assert begin(*words, data="sounds/captions.csv") == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    assert "captions.csv: 8 captioned sounds" in err
    assert f"<for validation {home}/sounds/captions.csv: 2 captioned sounds" in err
    kept = json.loads((home / "run" / "run.json").read_text())
    expected = {"validation": "0.2", "audio_column": "sound", "caption_column": "title", "skip_bad": False}
    assert {name: kept[name] for name in expected} == expected
    assert run("--resume", "--out", "run", "--steps", 3, "--workers", 1) == 0
    err = capsys.readouterr().err
    assert "8 captioned sounds" in err and "<for validation" in err and "note:" not in err
    assert len(steps(home)) == 3


@pytest.mark.slow
def test_threads_and_resuming_do_not_change_a_run(home: Path):
    assert begin("--workers", 1) == 0
    expected = steps(home)
    (home / "run").rename(home / "first")
    assert begin("--workers", 3, "--steps", 1) == 0
    assert run("--resume", "--out", "run", "--steps", 2, "--workers", 2) == 0
    losses = [{key: value for key, value in line.items() if key != "learning_rate"} for line in steps(home)]
    assert losses == [{key: line[key] for key in losses[0]} for line in expected]


def test_run_folder_without_options_of_the_data_is_resumed(home: Path, capsys):
    assert begin() == 0
    settings = json.loads((home / "run" / "run.json").read_text())
    del settings["audio_column"], settings["skip_bad"], settings["recipe"]["normalize"]
    (home / "run" / "run.json").write_text(json.dumps(settings))
    assert run("--resume", "--out", "run", "--steps", 3) == 0, capsys.readouterr().err
    assert len(steps(home)) == 3


@pytest.mark.slow
def test_resuming_tells_that_the_sounds_have_changed(home: Path, capsys):
    assert begin() == 0
    table = home / "sounds" / "captions.csv"
    table.write_text(table.read_text().replace("a low tone", "a lower tone"))
    assert run("--resume", "--out", "run", "--steps", 3) == 0
    assert "have changed since the run began" in capsys.readouterr().err


def test_bad_file_stops_the_start_unless_it_is_left_out(home: Path, capsys):
    samples = np.array([0.1] * 9000 + [np.nan])
    soundfile.write(home / "sounds" / "3.wav", samples, 16_000, subtype="FLOAT")
    assert begin() == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and f"1 of 10 sounds of {home}/sounds cannot be used: 3.wav has 1 samples" in err
    )
    assert "--skip-bad" in err and not (home / "run").exists()
    assert begin("--skip-bad") == 0
    err = capsys.readouterr().err
    assert "left out:\naudioldm2:   3.wav has 1 samples of 9001 that are NaN" in err
    assert "sounds: 9 captioned sounds" in err


@pytest.mark.slow
def test_file_that_is_deleted_while_training_is_named(home: Path, capsys, monkeypatch):
    original = soundfile.SoundFile.read

    def delete_and_read(file, *given, **named):
        (home / "sounds" / "7.wav").unlink(missing_ok=True)
        return original(file, *given, **named)

    assert begin() == 0  # fills the cache of checks
    capsys.readouterr()
    (home / "run").rename(home / "first")
    monkeypatch.setattr(soundfile.SoundFile, "read", delete_and_read)
    assert begin("--steps", 6) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "sounds/7.wav is gone since it was checked; " in last and "--resume" in last


@pytest.mark.parametrize(
    ("stage", "seconds", "message"),
    [
        ("vae", 0.01, "--seconds is 0.01; it has to be at least 0.24 for the stage 'vae'"),
        ("vocoder", 0.01, "--seconds is 0.01; it has to be at least 0.08 for the stage 'vocoder'"),
        ("clap", 0.01, "--seconds is 0.01; it has to be at least 0.04 for the stage 'clap'"),
        ("ldm", 0.01, "--seconds is 0.01; it has to be at least 0.04 for the stage 'ldm'"),
    ],
)
def test_clip_that_is_too_short_for_the_stage(home: Path, capsys, stage, seconds, message):
    assert begin("--config", "published", stage=stage, seconds=seconds) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validation", "7"], "--validation is '7'; it has to be a table, a folder, or a fraction"),
        (["--workers", "0"], "--workers is 0; it has to be a whole number of at least 1"),
        (["--caption-column", "title"], "has no column 'title' (--caption-column); its columns are 'file'"),
    ],
)  # fmt: skip
def test_mistaken_option_is_one_sentence(home: Path, capsys, words, message):
    assert begin(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (home / "run").exists()


def test_unquoted_comma_is_one_sentence_with_the_row(home: Path, capsys):
    (home / "sounds" / "captions.csv").write_text("file,caption\n0.wav,a dog, loud, barks\n")
    assert begin() == 2
    err = capsys.readouterr().err
    assert "captions.csv, line 2: 4 fields where the header has 2: '0.wav,a dog, loud, barks'" in err
    assert err.count("\n") == 1


def test_recipes_tell_whether_levels_are_normalized(capsys):
    for stage, config, expected in (
        ("ldm", "published", True), ("ldm", "small", False), ("vae", "published", True),
        ("vae", "small", False), ("vocoder", "published", False), ("clap", "published", False),
    ):  # fmt: skip
        assert run("--stage", stage, "--show", "--config", config) == 0
        assert json.loads(capsys.readouterr().out)["normalize"] is expected, (stage, config)
