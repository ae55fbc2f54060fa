"""A sound as a prompt: given vectors in place of GPT-2's, all of them, some, or none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.models.gpt2 import GPT2
from audioldm2.prompt.conditioning import Conditioning

PROMPTS = ["a dog barks", "rain on the roof, again and again"]


def random_loa(rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, 8, 24, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Conditioning, expected: Conditioning) -> None:
    for one, other in ((found, expected), (found.negative, expected.negative)):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


@pytest.fixture
def gpt2_runs(monkeypatch) -> list[int]:
    """How many vectors each run of GPT-2 has generated."""
    runs, generate = [], GPT2.generate

    def counted(self, x, mask, new_vectors=None):
        found = generate(self, x, mask, new_vectors)
        runs.append(found.shape[1])
        return found

    monkeypatch.setattr(GPT2, "generate", counted)
    return runs


def test_all_vectors_heard_are_the_given_ones_bit_for_bit(tiny_model, gpt2_runs):
    loa = random_loa(2)
    found = tiny_model.encode_prompt(PROMPTS, guided=False, loa=loa, heard=8)
    assert torch.equal(found.gpt2_context, loa)
    assert not gpt2_runs, "GPT-2 has nothing to do"
    plain = tiny_model.encode_prompt(PROMPTS, guided=False)
    assert torch.equal(found.text_context, plain.text_context) and torch.equal(found.t5_mask, plain.t5_mask)
    assert_same(
        tiny_model.encode_prompt(PROMPTS, loa=loa), tiny_model.encode_prompt(PROMPTS, loa=loa, heard=8)
    )


def test_none_heard_is_the_prompt_alone_bit_for_bit(tiny_model):
    found = tiny_model.encode_prompt(PROMPTS, "noise", loa=random_loa(2), heard=0)
    assert_same(found, tiny_model.encode_prompt(PROMPTS, "noise"))


@pytest.mark.parametrize("heard", [1, 3, 7])
def test_gpt2_continues_its_own_vectors_as_it_did(tiny_model, gpt2_runs, heard: int):
    """Given the first vectors that it has generated itself, it generates the others again."""
    own = tiny_model.encode_prompt(PROMPTS[0], guided=False).gpt2_context
    loa = own.clone()
    loa[:, heard:] = torch.nan_to_num(random_loa())[:, heard:]  # not read
    found = tiny_model.encode_prompt(PROMPTS[0], guided=False, loa=loa, heard=heard).gpt2_context
    assert torch.equal(found[:, :heard], own[:, :heard])
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
    assert gpt2_runs == [8, 8 - heard]


def test_continuation_depends_on_what_is_heard(tiny_model):
    one, other = (
        tiny_model.encode_prompt(PROMPTS[0], guided=False, loa=random_loa(seed=seed), heard=4).gpt2_context
        for seed in (1, 2)
    )
    assert (one[:, 4:] - other[:, 4:]).abs().max() > 1e-2


def test_one_sound_serves_all_prompts_and_each_prompt_its_own(tiny_model):
    loa = random_loa(2)
    shared = tiny_model.encode_prompt(PROMPTS, guided=False, loa=loa[:1]).gpt2_context
    assert torch.equal(shared, loa[:1].expand(2, -1, -1))
    together = tiny_model.encode_prompt(PROMPTS, guided=False, loa=loa, heard=2).gpt2_context
    for row, prompt in enumerate(PROMPTS):
        alone = tiny_model.encode_prompt(prompt, guided=False, loa=loa[row], heard=2).gpt2_context
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_negative_prompt_has_vectors_of_its_own(tiny_model):
    found = tiny_model.encode_prompt(PROMPTS[0], loa=random_loa()).negative
    expected = tiny_model.encode_prompt(PROMPTS[0]).negative
    torch.testing.assert_close(found.gpt2_context, expected.gpt2_context, atol=1e-5, rtol=0)
    as_trained = tiny_model.encode_prompt(PROMPTS[0], loa=random_loa(), unconditional="trained").negative
    assert not as_trained.gpt2_context.any()


def test_sound_changes_what_is_denoised(tiny_model):
    noise = torch.randn(tiny_model.sound.latents(1, 8))
    plain, one, other = (
        tiny_model.denoise(tiny_model.encode_prompt("", loa=loa), noise, num_inference_steps=2)
        for loa in (None, random_loa(seed=1), random_loa(seed=2))
    )
    assert (plain - one).abs().max() > 1e-3 and (one - other).abs().max() > 1e-3


BAD: dict[str, tuple[Callable[[], object], object, str]] = {
    "heard alone": (lambda: None, 3, "heard is 3; it has to be left out without a sound"),
    "too many": (random_loa, 9, "heard is 9; it has to be a whole number from 0 to 8"),
    "negative": (random_loa, -1, "heard is -1"),
    "half": (random_loa, 2.5, "heard is 2.5"),
    "a list": (lambda: [[0.0]], None, "loa is a list; it has to be finite floats"),
    "a text": (lambda: "dog.wav", None, "loa is 'dog.wav'; it has to be"),
    "whole numbers": (lambda: random_loa().long(), None, "loa is a Tensor"),
    "width": (
        lambda: random_loa()[..., :20],
        None,
        r"loa has shape \(1, 8, 20\); it has to be finite floats",
    ),
    "fewer": (lambda: random_loa()[:, :4], None, r"loa has shape \(1, 4, 24\)"),
    "sounds": (lambda: random_loa(3), None, r"loa has shape \(3, 8, 24\); .* \(2, ...\) of these"),
    "NaN": (lambda: random_loa() * torch.nan, None, "loa holds NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sound_is_named_before_any_network_runs(tiny_model, case: str, monkeypatch):
    monkeypatch.setattr(tiny_model.networks, "running", lambda name: pytest.fail(f"{name} ran"))
    loa, heard, words = BAD[case]
    with pytest.raises(ArgumentError, match=words):
        tiny_model.encode_prompt(PROMPTS, loa=loa(), heard=heard)
