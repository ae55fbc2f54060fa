"""`audioldm2 train` as a user meets it: every stage on a folder of ten sounds, resuming, errors in a line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.cli import train_run
from audioldm2.cli.main import main
from audioldm2.training import STAGES, Stage
from scripts import train as train_script
from tests.support.training import untrained, write_sizes, write_sounds

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


def run(*words: object) -> int:
    return main(["train", *map(str, words)])


@pytest.mark.slow
def test_stages_one_after_another(home: Path, capsys):
    model = home / "sizes.json"
    for stage in ("vae", "vocoder", "clap", "ldm"):
        config = home / "vocoder.json" if stage == "vocoder" else "small"
        flags = ["--seconds", "0.256" if stage == "vocoder" else "0.64", "--config", config]
        data = ["--stage", stage, "--data", home / "sounds", "--out", home / stage, "--model", model]
        assert run(*data, *flags, *FEW) == 0, capsys.readouterr().err
        model = home / stage / "model"
        written = audioldm2.load(model, device="cpu")
    err = capsys.readouterr().err
    assert "ldm on cpu: trains unet, projection, gpt2, t5" in err
    assert "10 captioned sounds, 0.2 minutes" in err and f"done: {model} is the model" in err
    result = written.generate("a dog barks", audio_length_in_s=0.64, num_waveforms_per_prompt=2)
    assert result.audio.isfinite().all() and result.scores is not None
    assert written.networks.configs["vae"].scaling_factor != 1.0  # measured by the first stage, and kept


@pytest.mark.slow
def test_resume_with_more_steps(home: Path, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(home)
    words = ["--stage", "clap", "--data", "sounds", "--out", tmp_path / "run", "--model", "sizes.json"]
    assert run(*words, *FEW) == 0
    monkeypatch.chdir(tmp_path)  # the run remembers where the sounds are
    assert run("--resume", "--out", tmp_path / "run") == 0
    assert "2 steps are done already" in capsys.readouterr().err
    assert run("--resume", "--out", tmp_path / "run", "--steps", 3) == 0
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, as in a terminal; the background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_saves(home: Path, tmp_path: Path, capsys, monkeypatch, interruptible):
    step = Stage.step_prepared

    def interrupted(stage: Stage, *batch) -> dict[str, float]:
        metrics = step(stage, *batch)
        if stage.done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(Stage, "step_prepared", interrupted)
    words = ["--stage", "clap", "--data", home / "sounds", "--out", tmp_path / "run"]
    assert run(*words, "--model", home / "sizes.json", *FEW, "--steps", 9) == 128 + signal.SIGINT
    err = capsys.readouterr().err
    assert "SIGINT: stopping after this step" in err and "saved at step 2;" in err
    assert (tmp_path / "run" / "state.pt").exists()


@pytest.mark.slow
def test_signal_saves_and_reports_how_to_continue(home: Path, tmp_path: Path):
    words = ["--stage", "vae", "--data", "procedural", "--out", tmp_path / "run"]
    words += ["--model", home / "sizes.json", "--batch", 1, "--seconds", 0.64, "--sample-every", 0]
    words += ["--steps", 100_000, "--device", "cpu"]
    command = [sys.executable, "-u", ROOT / "scripts" / "train.py", *words]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("audioldm2: step "):
                break
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    done = int(err.split("saved at step ")[1].split(";")[0])
    assert f"--resume --out {tmp_path / 'run'}" in err
    again = ["--resume", "--out", str(tmp_path / "run"), "--steps", str(done + 1)]
    assert train_script.main(again) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == done + 1


@pytest.mark.slow
def test_trained_model_gets_the_gentle_recipe(home: Path, tmp_path: Path, capsys):
    model = tmp_path / "model"
    storage.write(replace(untrained(tmp_path), seconds=0.32), model)
    words = ["--stage", "ldm", "--data", home / "sounds", "--model", model, "--mix", f"{home / 'sounds'}:0.5"]
    more = ["--validation", 0.2, "--validate-every", 1]
    assert run(*words, *more, "--out", tmp_path / "run", *FEW, "--steps", 1) == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    assert f"recipe finetune, because {model} is a trained model: 1 steps of 2 clips of 0.32 s" in err
    assert "learning rate 0.0001 (constant), T5 fixed" in err and "trains unet, projection, gpt2, 0." in err
    assert "with 50% of " in err and "validation loss " in err
    assert (tmp_path / "run" / "best" / "step-0000001" / "config.json").exists()
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings["mix_share"] == 0.5 and settings["recipe"]["train_t5"] is False


def test_settings_of_version_0_1_resume(home: Path, tmp_path: Path, capsys):
    words = ["--stage", "clap", "--data", home / "sounds", "--out", tmp_path / "run"]
    assert run(*words, "--model", home / "sizes.json", *FEW) == 0, capsys.readouterr().err
    file = tmp_path / "run" / "run.json"
    settings = json.loads(file.read_text())
    old = {name: settings[name] for name in ("stage", "data", "recipe", "seed", "save", "sample")}
    old["recipe"]["cosine"] = old["recipe"].pop("schedule") == "cosine"
    file.write_text(json.dumps(old))
    assert run("--resume", "--out", tmp_path / "run", "--steps", 3) == 0, capsys.readouterr().err


def test_edited_settings_are_refused(home: Path, tmp_path: Path, capsys):
    words = ["--stage", "clap", "--data", home / "sounds", "--out", tmp_path / "run"]
    assert run(*words, "--model", home / "sizes.json", *FEW) == 0, capsys.readouterr().err
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.5'))
    capsys.readouterr()
    assert run("--resume", "--out", tmp_path / "run", "--steps", 3) == 2
    err = capsys.readouterr().err
    assert "run.json was edited: learning_rate is 0.5 and was 0.001" in err


def test_sentence_about_a_recipe_names_what_learns():
    assert train_run.in_short(STAGES["ldm"], STAGES["ldm"].recipes["finetune"]).endswith(
        "T5 fixed, GPT-2 learns"
    )
    for name in ("lora", "word"):
        assert train_run.in_short(STAGES[name], STAGES[name].recipes["finetune"]).endswith("(constant)")


def test_show_prints_the_recipe(home: Path, capsys):
    assert run("--stage", "ldm", "--show", "--config", "published", "--batch", 7) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["batch"], shown["ema"], shown["prompt_dropout"]) == (7, 0.9999, 0.1)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "nowhere"], "nowhere is not a folder."),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "nothing.json"], "nothing.json cannot be found."),
        (["--config", "nothing.json"], "--config is 'nothing.json'; it has to be one of "),
        (["--config", "odd.json"], "the recipe odd.json has 'speed'; "),
        (
            ["--config", "unlike.json"],
            "'like' in unlike.json is 'huge'; it has to be one of published, small, finetune.",
        ),
        (["--mix", "sounds:2"], "--mix is 2.0; it has to have a share above 0 and below 1"),
        (["--patience", "2"], "--patience is 2; it has to be 0 without --validation"),
        (["--stage", "vae", "--prompt", "a dog"], "--prompt is ['a dog']; it has to be left out"),
        (["--steps", "0"], "--steps is 0; it has to be a whole number of at least 1"),
        (["--save-every", "0"], "--save-every is 0; it has to be a whole number of at least 1"),
        (["--out", "sounds"], "sounds is not empty"),
        (["--device", "abacus"], "'abacus'"),
        (
            ["--model", "wrong.json"],
            "do not fit together: gpt2_dim of 'projection' is 96, but dim of 'gpt2' is 192",
        ),
    ],
)
def test_mistake_is_one_sentence(words, message, home: Path, capsys, monkeypatch):
    monkeypatch.chdir(home)
    (home / "odd.json").write_text('{"speed": 3}')
    (home / "unlike.json").write_text('{"like": "huge"}')
    (home / "wrong.json").write_text('{"gpt2": {"dim": 192}}')
    given = {"--stage": "ldm", "--data": "sounds", "--out": "new", "--model": "sizes.json"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    assert run(*(word for pair in given.items() for word in pair)) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err, err
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "audioldm2 train needs --stage and --data and --out"),
        (["--resume"], "--resume takes --out RUN"),
        (["--resume", "--out", "run", "--batch", "3"], "--resume takes --out RUN"),
        (["--stage", "unet"], "invalid choice: 'unet'"),
        (
            ["--stage", "vae", "--data", "x", "--out", "y", "--seed", "-1"],
            "--seed is -1; it has to be a whole",
        ),
    ],
)
def test_mistyped_command_is_one_sentence(words, message, capsys):
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_rejects_folder_without_a_run(tmp_path: Path, capsys):
    assert run("--resume", "--out", tmp_path) == 2
    assert "holds no run to continue" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert run("--resume", "--out", tmp_path) == 2
    assert "it has to have 'data', 'recipe'" in capsys.readouterr().err


def test_train_alone_suggests_the_sound_of_a_train(capsys):
    assert run() == 2
    assert 'audioldm2 generate "train"' in capsys.readouterr().err


def test_world_of_the_scripts_is_unknown_to_the_package(home: Path, tmp_path: Path, capsys):
    words = ["--stage", "vae", "--data", "procedural", "--out", tmp_path / "run"]
    assert run(*words, "--model", home / "sizes.json", *FEW) == 2
    assert "procedural is not a folder" in capsys.readouterr().err


def test_full_disk_while_saving_names_the_run(home: Path, tmp_path: Path, capsys, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22")

    monkeypatch.setattr("torch.save", full)
    words = ["--stage", "vae", "--data", home / "sounds", "--out", tmp_path / "run"]
    words += ["--model", home / "sizes.json", "--seconds", "0.64"]
    assert run(*words, *FEW, "--on-full-disk", "stop") == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'run'}: it could not be written" in err and "Traceback" not in err
