"""Adapters on the command line: `train --lora`, `--lora` of `generate` and `convert`, mistakes in a line."""

import json
import shutil
from pathlib import Path

import pytest

import audioldm2
from audioldm2.cli.arguments import adapter_and_weight
from audioldm2.cli.main import main
from tests.support.training import write_sounds

FEW = ["--steps", "2", "--batch", "2", "--seconds", "0.32", "--sample-every", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("home") / "sounds")


@pytest.fixture(scope="module")
def run(sounds: Path, tiny_folder: Path) -> Path:
    """A finished run."""
    folder = sounds.parent / "oud"
    words = ["train", "--lora", 2, "--lora-layers", "attention+ff", "--data", sounds, "--out", folder, *FEW]
    assert main([*map(str, words), "--model", str(tiny_folder)]) == 0
    return folder


def error(capsys, *words: object) -> str:
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_run_makes_an_adapter_for_a_model_named_by_path_and_hash(run: Path, tiny_folder: Path):
    assert {path.name for path in run.iterdir()} == {"adapter", "metrics.jsonl", "run.json", "state.pt"}
    settings = json.loads((run / "run.json").read_text())
    assert settings["stage"] == "lora" and settings["recipe"]["rank"] == 2
    assert settings["recipe"]["layers"] == "attention+ff"
    assert settings["base"] == str(tiny_folder.resolve()) and len(settings["base_sha256"]) == 64
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == settings["base"] and config["r"] == 2


def test_resuming_needs_no_model(run: Path, capsys):
    assert main(["train", "--resume", "--out", str(run), "--steps", "3"]) == 0
    assert f"{run / 'adapter'} is the adapter; use it with --model" in capsys.readouterr().err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_base_that_has_changed_stops_resuming(run: Path, capsys):
    file = run / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"base_sha256": "', '"base_sha256": "0'))
    assert "has changed since this run began" in error(
        capsys, "train", "--resume", "--out", run, "--steps", 9
    )
    file.write_text(text)


def test_sound_with_two_adapters(run: Path, tiny_folder: Path, tmp_path: Path, capsys):
    words = ["a bell", "--model", tiny_folder, "--duration", 0.32, "--steps", 1, "-o", tmp_path / "a.wav"]
    words += ["--lora", f"{run / 'adapter'}:0.5", "--lora", run / "adapter" / "adapter_model.safetensors"]
    assert main([*map(str, words)]) == 0, capsys.readouterr().err
    adapters = json.loads((tmp_path / "a.wav.json").read_text())["adapters"]
    assert [(each["name"], each["weight"]) for each in adapters] == [("oud", 0.5), ("adapter_model", 1.0)]
    assert adapters[0]["sha256"] == adapters[1]["sha256"] and adapters[0]["base_model"] == str(tiny_folder)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["converted", "diffusers"])
def test_convert_folds_adapters_in(layout: str, run: Path, tiny_folder: Path, tmp_path: Path, capsys):
    words = ["convert", tiny_folder, tmp_path / "merged", "--to", layout, "--lora", f"{run / 'adapter'}:2"]
    assert main([*map(str, words)]) == 0, capsys.readouterr().err
    merged, model = (audioldm2.load(each, device="cpu") for each in (tmp_path / "merged", tiny_folder))
    model.load_lora(run / "adapter", weight=2)
    settings = dict(audio_length_in_s=0.32, num_inference_steps=1)
    found, expected = (each.generate("a bell", **settings).latents for each in (merged, model))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert main(["info", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert f"adapter       oud, weight 2.0, in the weights, trained on {tiny_folder}" in said


@pytest.mark.parametrize(
    "text, source, weight",
    [("oud", "oud", 1.0), ("oud:0.5", "oud", 0.5), ("C:/oud", "C:/oud", 1.0), ("a:b:-2", "a:b", -2.0)],
)
def test_weight_stands_behind_the_last_colon(text: str, source: str, weight: float):
    assert adapter_and_weight(text) == (source, weight)


def test_mistakes(run: Path, sounds: Path, tmp_path: Path, capsys):
    out = tmp_path / "x.wav"
    assert "there is no adapter 'nowhere'" in error(capsys, "a bell", "-o", out, "--lora", "nowhere")
    wrong_size = error(capsys, "a bell", "-o", out, "--lora", run / "adapter")  # the demo model
    assert "does not fit this model" in wrong_size and "and should be" in wrong_size
    train = ["train", "--data", sounds, "--out", tmp_path / "run", *FEW]
    assert "--model is 'small'; it has to be a trained model" in error(capsys, *train, "--lora", 2)
    assert "--stage is 'vae'; it has to be lora" in error(capsys, *train, "--lora", 2, "--stage", "vae")
    assert "--lora is 0; it has to be a whole number from 1 to 1024" in error(
        capsys, *train, "--lora", 0, "--model", "demo"
    )
    assert "--resume takes --out RUN" in error(capsys, "train", "--resume", "--out", run, "--lora", 2)
    assert not any(tmp_path.iterdir())


def test_adapters_whose_folders_have_one_name_are_called_by_their_paths(
    run: Path, tiny_folder: Path, tmp_path: Path
):
    sources = []
    for folder in ("one", "two"):
        shutil.copytree(run / "adapter", tmp_path / folder / "oud")
        sources.append(str(tmp_path / folder / "oud"))
    out = tmp_path / "x.wav"
    flags = ["--lora", sources[0], "--lora", f"{sources[1]}:0.5", "--duration", "0.3", "--steps", "1"]
    assert main(["a bell", "--model", str(tiny_folder), "-o", str(out), *flags]) == 0
    record = json.loads((tmp_path / "x.wav.json").read_text())
    assert [(each["name"], each["weight"]) for each in record["adapters"]] == [
        (sources[0], 1),
        (sources[1], 0.5),
    ]
