"""scripts/train.py: every stage on a folder of ten sounds, resuming, messages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import audioldm2
from scripts import train
from tests.support.training import write_sizes, write_sounds

ROOT = Path(__file__).resolve().parents[3]
FEW = ["--steps", "2", "--batch", "2", "--sample-every", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_sounds(home / "sounds")
    write_sizes(home / "sizes.json")
    narrow = {"adversary_start": 1, "adversary_width": 4}
    (home / "vocoder.json").write_text(json.dumps({"like": "published"} | narrow))
    return home


def run(*arguments: object) -> int:
    return train.main([str(word) for word in arguments])


def test_all_stages_in_sequence(home: Path, capsys):
    model = home / "sizes.json"
    for stage in ("vae", "vocoder", "clap", "ldm"):
        config = home / "vocoder.json" if stage == "vocoder" else "small"
        flags = ["--seconds", "0.256" if stage == "vocoder" else "0.64", "--config", config]
        data = ["--stage", stage, "--data", home / "sounds", "--out", home / stage, "--model", model]
        assert run(*data, *flags, *FEW) == 0, capsys.readouterr().err
        model = home / stage / "model"
        written = audioldm2.load(model, device="cpu")
    err = capsys.readouterr().err
    assert "ldm on cpu: unet, projection, gpt2, t5 learn" in err
    assert "10 captioned sounds, 0.2 minutes" in err and f"done: {model} is the model" in err
    result = written.generate("a dog barks", audio_length_in_s=0.64, num_waveforms_per_prompt=2)
    assert result.audio.isfinite().all() and result.scores is not None
    assert written.networks.configs["vae"].scaling_factor != 1.0  # measured by the first stage and kept


def test_finished_run_resumes_with_more_steps(home: Path, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(home)
    arguments = ["--stage", "clap", "--data", "sounds", "--out", tmp_path / "run", "--model", "sizes.json"]
    assert run(*arguments, *FEW) == 0
    monkeypatch.chdir(tmp_path)  # run.json holds an absolute path
    assert run("--resume", "--out", tmp_path / "run") == 0
    assert "2 steps are done already" in capsys.readouterr().err
    assert run("--resume", "--out", tmp_path / "run", "--steps", 3) == 0
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3]


def test_ctrl_c_saves_and_names_the_command_that_resumes(home: Path, tmp_path: Path):
    arguments = [
        "--stage",
        "vae",
        "--data",
        "procedural",
        "--out",
        tmp_path / "run",
        "--model",
        home / "sizes.json",
    ]
    arguments += ["--batch", 1, "--seconds", 0.64, "--sample-every", 0, "--steps", 100_000, "--device", "cpu"]
    command = [sys.executable, "-u", ROOT / "scripts" / "train.py", *arguments]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step "):
            break
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err
    done = int(err.split("saved at step ")[1].split(";")[0])
    assert f"--resume --out {tmp_path / 'run'}" in err
    assert run("--resume", "--out", tmp_path / "run", "--steps", done + 1) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == done + 1


def test_show_prints_the_recipe(home: Path, capsys):
    assert run("--stage", "ldm", "--show", "--config", "published", "--batch", 7) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["batch"], shown["ema"], shown["prompt_dropout"]) == (7, 0.9999, 0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere"], "nowhere is not a folder."),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "nothing.json"], "nothing.json cannot be found."),
        (["--config", "nothing.json"], "nothing.json cannot be found."),
        (["--config", "odd.json"], "the recipe odd.json has 'speed'; the fields of this recipe are batch, "),
        (
            ["--config", "unlike.json"],
            "'like' in unlike.json is 'huge'; it has to be one of published, small.",
        ),
        (["--steps", "0"], "steps is 0; it has to be at least 1"),
        (["--save-every", "0"], "save is 0; it has to be a whole number of at least 1"),
        (["--out", "sounds"], "sounds is not empty"),
        (["--device", "abacus"], "device is 'abacus', which is not on this machine"),
        (
            ["--model", "wrong.json"],
            "do not fit together: gpt2_dim of 'projection' is 96, but dim of 'gpt2' is 192",
        ),
    ],
)
def test_mistake_is_reported_in_one_sentence(arguments, message, home: Path, capsys, monkeypatch):
    monkeypatch.chdir(home)
    (home / "odd.json").write_text('{"speed": 3}')
    (home / "unlike.json").write_text('{"like": "huge"}')
    (home / "wrong.json").write_text('{"gpt2": {"dim": 192}}')
    given = {"--stage": "ldm", "--data": "sounds", "--out": "new", "--model": "sizes.json"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert run(*(word for pair in given.items() for word in pair)) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err, err
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--stage and --data and --out needed"),
        (["--resume"], "--resume takes --out RUN"),
        (["--resume", "--out", "run", "--batch", "3"], "--resume takes --out RUN"),
        (["--stage", "unet"], "invalid choice: 'unet'"),
        (["--stage", "vae", "--data", "x", "--out", "y", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_rejects_mistyped_commands(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_rejects_folders_without_a_run(tmp_path: Path, capsys):
    assert run("--resume", "--out", tmp_path) == 2
    assert "holds no run to go on with" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert run("--resume", "--out", tmp_path) == 2
    assert "it has to have 'data', 'recipe'" in capsys.readouterr().err
