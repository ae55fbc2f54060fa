"""Captions: well-formed English, with wordings that the splits do not share."""

import re
from itertools import pairwise

import numpy as np
import pytest

from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import draw_scene
from scripts.demo_world.wordings import ATTRIBUTE_PHRASES, CONJUNCTIONS, SPLITS, WORDINGS
from tests.support.demo_world import random_attributes


def every_caption(split: str, count: int) -> list[str]:
    """Captions of random items, without rendering the sounds."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        relation, attributes = draw_scene(rng, 2.56)
        found.append(describe(rng, attributes, relation, split))
    return found


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def phrases(split: str) -> dict[tuple, set[str]]:
    """All wordings of a split, by table and key."""
    return {
        (table_name, key): {text for texts in table[key][split] for text in texts}
        for table_name, table in {
            "conjunctions": CONJUNCTIONS,
            "wordings": WORDINGS,
            "attributes": ATTRIBUTE_PHRASES,
        }.items()
        for key in table
    }


def test_each_family_has_several_wordings():
    for family, wording in WORDINGS.items():
        for split, least in [("train", 6), ("test", 2)]:
            assert len(set(wording[split].nouns)) == len(wording[split].nouns) >= least, family
            assert all(noun.count("{}") <= 1 for noun in wording[split].nouns)
            assert wording[split].clauses
        assert any("{}" in noun for noun in wording["test"].nouns)


def test_wordings_of_the_two_splits_are_disjoint():
    for key, texts in phrases("train").items():
        shared = texts & phrases("test")[key]
        if key[0] == "attributes":  # both splits have an attribute's plain word
            plain = ATTRIBUTE_PHRASES[key[1]]["train"].before[0]
            assert shared == {plain} and ATTRIBUTE_PHRASES[key[1]]["test"].before[0] == plain
        else:
            assert not shared, key


@pytest.mark.slow
def test_captions_of_the_two_splits_are_disjoint():
    train, test = ({" ".join(words(caption)) for caption in every_caption(split, 3000)} for split in SPLITS)
    assert len(train) > 1500 and len(test) > 600
    assert not train & test


def test_every_word_of_a_test_caption_is_known_from_training():
    known = {word for texts in phrases("train").values() for text in texts for word in words(text)}
    asked = {word for texts in phrases("test").values() for text in texts for word in words(text)}
    assert not asked - known


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_well_formed(split):
    for caption in every_caption(split, 3000):
        assert not re.search(r"[{}|]|  |^\s|\s$|\s[,.]|,,", caption), caption
        assert re.fullmatch(r"[A-Za-z][a-z',-]*( [a-z',-]+)*\.?", caption), caption
        for first, second in pairwise(re.findall(r"[a-z'-]+", caption.lower())):
            if first in ("a", "an"):
                assert (first == "an") == (second[0] in "aeiou"), caption
            assert not ({first, second} <= {"a", "an", "the", "one"}), caption
            assert first != second, caption


@pytest.mark.parametrize("split", SPLITS)
def test_caption_mentions_its_attributes(split):
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        for _ in range(10):
            mentioned = random_attributes(rng, family)
            caption = describe(rng, {family: mentioned}, split=split).lower()
            for name, word in mentioned.items():
                options = [text for texts in ATTRIBUTE_PHRASES[name, word][split] for text in texts]
                assert any(option in caption for option in options), (caption, name, word)


def test_expected_captions_occur():
    rng = np.random.default_rng(1)
    found = {describe(rng, {"beep": {"pitch": "high", "level": "loud"}}) for _ in range(300)}
    assert "a loud, high beep" in found and "one very loud beep at a high pitch" in found
    found = {describe(rng, {"beep": {"pitch": "high"}, "rain": {}}, "then") for _ in range(3000)}
    assert {"a high beep, then rain", "a shrill electronic beep followed by rain falling"} <= found
    found = {describe(rng, {"dog": {"room": "dry"}, "engine": {}}, "and") for _ in range(3000)}
    assert "a dog barks without any echo while an engine runs" in found
