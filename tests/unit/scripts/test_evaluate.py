"""scripts/evaluate.py: figures that are known, prompts, messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import audioldm2
from scripts import evaluate
from scripts.make_random_checkpoint import make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "tiny"
    make(folder, "tiny")
    return folder


def test_the_frechet_distance_of_normal_distributions():
    chance = np.random.default_rng(0)
    ours = chance.standard_normal((4000, 3)) * [1.0, 2.0, 3.0]
    theirs = chance.standard_normal((4000, 3)) * [2.0, 2.0, 1.0] + [5.0, 0.0, 0.0]
    # |difference of means|², and of uncorrelated axes the squared differences of their deviations
    expected = 25 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2
    assert evaluate.frechet(ours, theirs) == pytest.approx(expected, rel=0.03)
    assert evaluate.frechet(ours, ours) == pytest.approx(0, abs=1e-6)


def test_prompts_of_a_text_and_of_a_table(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeffrain\n\n  a dog \n", encoding="utf-8")
    (tmp_path / "a.csv").write_text('prompt,family\n"a dog, far",dog\nrain,\n')
    assert [prompt.text for prompt in evaluate.read_prompts(tmp_path / "a.txt")] == ["rain", "a dog"]
    assert evaluate.read_prompts(tmp_path / "a.csv") == [
        evaluate.Prompt("a dog, far", "dog"),
        evaluate.Prompt("rain"),
    ]


def test_any_model_is_judged(tiny: Path, tmp_path: Path, capsys):
    (tmp_path / "prompts.csv").write_text("prompt,family\na dog barks,dog\nrain on a roof,rain\nmusic,\n")
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for i in range(3):
        noise = torch.randn(8000, generator=torch.Generator().manual_seed(i))
        audioldm2.audio.write_wav(sounds / f"{i}.wav", 0.1 * noise, 16_000)
    words = ["--model", tiny, "--prompts", tmp_path / "prompts.csv", "--reference", sounds, "--seeds", 2]
    words += ["--seconds", 0.32, "--steps", 1, "--device", "cpu", "--json", tmp_path / "found.json"]
    assert evaluate.main([str(word) for word in words]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sounds"] == 6 and -1 <= found["CLAP score"] <= 1
    assert 0 <= found["families"] <= 1 and found["Frechet"] > 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompts."),
        (["--prompts", "odd.csv"], "odd.csv has no column 'prompt'"),
        (["--model", "nowhere", "--prompts", "empty.txt"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, tiny: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("odd.csv").write_text("text\nrain\n")
    assert evaluate.main(["--model", str(tiny), *words]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err
