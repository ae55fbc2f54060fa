"""scripts/evaluate.py: figures that are known, and its questions, asked of true and of false sounds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.demo_sounds import FAMILIES
from scripts.make_demo_data import render

import audioldm2
from audioldm2.training.randomness import rng
from scripts import evaluate, world_questions
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


# The world's questions --------------------------------------------------------------------------------------


class Told(world_questions.World):
    """Answers captions with procedural sounds, of what `heard` makes of what was said."""

    def __init__(self, heard: Callable[[str, dict[str, str]], tuple[str, dict[str, str]]]):
        self.seeds, self.rate, self.seconds, self.heard = range(10), 16_000, 2.56, heard
        self.meant: dict[str, tuple[str, dict[str, str]]] = {}

    def caption(self, family: str, seed: int, **said: str) -> str:
        words = f"{family} {seed} {said}"
        self.meant[words] = family, said
        return words

    def make(self, captions, seeds, **settings):
        sounds = []
        for place, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
            family, said = self.heard(*self.meant[caption])
            sounds.append(render(rng("told", seed, place), {family: said}, "", self.seconds))
        return sounds


def answers(world: world_questions.World) -> dict[str, world_questions.Answer]:
    return world.pitch() | world.tempo() | world.noisiness() | world.sweeps()


def test_true_sounds_answer_every_question():
    found = answers(Told(lambda family, said: (family, said)))
    assert len(found) == 4 and all("yes" in str(answer) for answer in found.values()), found


OPPOSITE = {"low": "high", "high": "low", "slow": "fast", "fast": "slow"}
OTHER = {"rising": "falling", "falling": "rising"} | dict(
    zip(
        world_questions.NOISES + world_questions.TONES,
        world_questions.TONES + world_questions.NOISES,
        strict=True,
    )
)


def test_the_opposite_of_what_was_said_answers_none():
    def opposite(family: str, said: dict[str, str]) -> tuple[str, dict[str, str]]:
        said = {name: OPPOSITE[word] for name, word in said.items()}
        return (family if said else OTHER[family]), said

    found = answers(Told(opposite))
    assert all("NO" in str(answer) and answer.value < 0.2 for answer in found.values()), found


def test_what_is_said_stays_unsaid_in_training():
    """Each question's captions are of the split "test", whose wordings training does not have."""
    world = world_questions.World.__new__(world_questions.World)
    phrases = [phrase for words in world_questions.WORDINGS.values() for phrase in words["train"].nouns]
    for family in FAMILIES:
        for seed in range(10):
            assert world.caption(family, seed).lower().rstrip(".") not in phrases
