"""The stage that learns a new word: what learns, what is saved, exact resuming."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioldm2.adapters import words
from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint
from audioldm2.prompt.words import Word
from audioldm2.training import loop, run_folder
from audioldm2.training.word import WordRecipe, WordStage
from tests.support.training import clips, parameter_copies, stage_of

SHORT = {"batch": 2, "seconds": 0.32}


class WordClips:
    """Clips whose captions contain the word."""

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        return clips(size, 0.32)[0], ["a <zorp>"] * size

    def captions(self) -> list[str]:
        return ["a <zorp>"]


def read(checkpoint: Checkpoint, folder: Path) -> Word:
    tokenizer = TOKENIZERS["t5_tokenizer"].from_folder(checkpoint.tokenizers["t5_tokenizer"])
    return words.read(folder, tokenizer, checkpoint.configs)


def test_only_the_vectors_learn(random_weights: Checkpoint):
    stage = stage_of("word", random_weights)
    first = stage.trained["t5"].vectors.detach().clone()
    assert first.shape == (2, random_weights.configs["t5"].dim) and not torch.equal(*first)
    names = ("t5", *stage.frozen())
    before = parameter_copies({name: stage.network(name) for name in names})
    waves, _ = clips(2, 0.32)
    stage.step(waves, ["a <zorp>", "a <zorp>, loud"])
    assert ((stage.trained["t5"].vectors - first).abs() > 0).all()
    for name in names:
        for key, parameter in stage.network(name).named_parameters():
            assert torch.equal(parameter, before[name][key]) and not parameter.requires_grad


@pytest.mark.slow
def test_word_learns(random_weights: Checkpoint):
    stage = stage_of("word", random_weights, vectors=4)
    losses = [stage.step(*WordClips().batch(0, 4))["loss"] for _ in range(16)]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_word_begins_as_what_it_is_like(random_weights: Checkpoint):
    bell, dog, again = (stage_of("word", random_weights, like=text) for text in ("bell", "dog", "bell"))
    vectors = [stage.trained["t5"].vectors for stage in (bell, dog, again)]
    assert torch.equal(vectors[0], vectors[2]) and not torch.equal(vectors[0], vectors[1])
    table = bell.network("t5").embedding.weight
    tokenizer = TOKENIZERS["t5_tokenizer"].from_folder(random_weights.tokenizers["t5_tokenizer"])
    mean = table[tokenizer.encode("bell")[:-1]].mean(0)
    assert (vectors[0] - mean).std() < 0.2 * table.std()


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(random_weights: Checkpoint, tmp_path: Path):
    def stage() -> WordStage:
        made = stage_of("word", random_weights, steps=3, ema=0.9, **SHORT)
        made.base, made.base_hash = "somewhere", "abc"
        return made

    whole, parts, intervals = tmp_path / "whole", tmp_path / "parts", loop.Intervals(sample=0)
    for folder in (whole, parts):
        folder.mkdir()
    assert loop.train(stage(), WordClips(), whole, intervals)
    answers = iter([False, True])
    assert not loop.train(stage(), WordClips(), parts, intervals, should_stop=lambda: next(answers))
    resumed = stage()
    run_folder.resume(resumed, parts)
    assert loop.train(resumed, WordClips(), parts, intervals)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = (read(random_weights, each / "word") for each in (parts, whole))
    last = resumed.trained["t5"].vectors
    assert torch.equal(found.vectors, resumed.ema["t5"].state["vectors"])
    assert torch.equal(found.vectors, expected.vectors) and not torch.equal(found.vectors, last)
    assert (found.text, found.like) == ("<zorp>", "a sound")
    assert found.metadata["base_model"] == "somewhere" and found.metadata["base_sha256"] == "abc"


@pytest.mark.parametrize(
    "values, why",
    [
        ({"vectors": 0}, "vectors is 0; it has to be from 1 to 64"),
        ({"like": " "}, "like is ' '; it has to be a text"),
        ({"train_t5": True}, "train_t5 is True; it has to be false"),
    ],
)
def test_recipe_rejects(values: dict, why: str):
    with pytest.raises(ValueError, match=why):
        WordRecipe(**values)


@pytest.mark.parametrize("word", ["", "zorp", "<a zorp>", "</s>", "<pad>"])
def test_stage_rejects_what_is_not_a_new_word(word: str, random_weights: Checkpoint):
    with pytest.raises(ValueError, match="word is"):
        stage_of("word", random_weights, word=word)
