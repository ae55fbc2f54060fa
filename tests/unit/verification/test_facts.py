"""Facts and fingerprints: written and read back, and what they tell apart."""

import json
from dataclasses import replace

import pytest
import torch

from audioldm2.errors import WeightsError
from audioldm2.verification import facts as facts_module
from audioldm2.verification.fingerprints import OTHER, ROUNDED, SAME, compare, fingerprint, kinship


@pytest.fixture
def file(facts, tmp_path):
    facts_module.write(facts, tmp_path / "facts.json")
    return tmp_path / "facts.json"


@pytest.mark.slow
def test_facts_are_read_as_they_were_written(facts, file):
    found = facts_module.read(file)
    assert found == replace(facts, parameters={}, folders={}, original=None)
    assert len(found.slices) == 2 and len(found.slices[0].values) == 10
    assert set(found.tensors) == set(facts.configs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(audioldm2_facts=99), "no facts that this version reads"),
        (dict(surplus=1), "surplus"),
        (dict(heads="eight"), "'heads'"),
        (dict(configs={"decoder": {}}), "decoder"),
        (dict(slices=[{"sampler": "ddim"}]), "'slices'"),
        (dict(tokens={"t5_tokenizer": {"rain": "12"}}), "'rain'"),
        (dict(tensors={"unet": {"a": [1, 2]}}), "unet.a"),
        (dict(tensors={"unet": {"a": ["x", "y", 0.0, 1.0, "z"]}}), "samples"),
    ],
)
def test_damaged_facts_are_named(file, change, words):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=words) as caught:
        facts_module.read(file)
    assert str(file) in str(caught.value)


def test_fingerprints_know_the_same_values_in_any_dtype():
    tensor = torch.randn(64, 32)
    right = fingerprint(tensor)
    assert kinship(fingerprint(tensor.double()), right, torch.float64) == SAME
    for dtype in (torch.float16, torch.bfloat16):
        assert kinship(fingerprint(tensor.to(dtype)), right, dtype) == ROUNDED
    nudged = tensor * (1 + 1e-7 * torch.randn(64, 32))  # as another machine folds a weight norm
    assert kinship(fingerprint(nudged), right) == ROUNDED


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor * 1.001,
        lambda tensor: tensor + 1e-3,
        lambda tensor: tensor.flip(0),
        lambda tensor: tensor.reshape(32, 64),
        lambda tensor: torch.randn_like(tensor),
    ],
)
def test_fingerprints_tell_other_values_and_shapes_apart(change):
    tensor = torch.randn(64, 32)
    assert fingerprint(change(tensor)).float32 != fingerprint(tensor).float32
    if change(tensor).shape == tensor.shape:
        assert kinship(fingerprint(change(tensor)), fingerprint(tensor)) == OTHER


def test_values_that_several_tensors_share_have_no_owner():
    ones, others = fingerprint(torch.ones(4)), fingerprint(torch.arange(4.0))
    expected = {"unet": {"a": ones, "b": ones, "c": others}}
    dtypes = dict.fromkeys("abc", torch.float32)
    found = compare("unet", {"a": ones, "b": others, "c": ones}, expected, dtypes)
    assert found.swapped == {"b": "unet.c"} and found.differing == ["c"]
