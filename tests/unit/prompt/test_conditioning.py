"""Conditioning as data: checked, saved and loaded, mixed, weighted, denoised without the text networks."""

import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import audioldm2
from audioldm2 import Conditioning
from audioldm2.errors import ArgumentError
from audioldm2.models.unet import SELF, T5

SHORT, LONG = "a dog", "A hammer hitting a wooden surface, again and again"
TEXT_NETWORKS = ("clap_text", "t5", "projection", "gpt2")


def conditioning(*tokens: int, seq: int | None = None, seed: int = 0, negative: bool = True) -> Conditioning:
    """Random contexts of prompts with so many real tokens, against empty negative prompts."""
    generator = torch.Generator().manual_seed(seed)
    seq = seq or max(tokens)
    mask = torch.arange(seq) < torch.tensor(tokens)[:, None]
    return Conditioning(
        torch.randn(len(tokens), 8, 6, generator=generator),
        torch.randn(len(tokens), seq, 5, generator=generator),
        mask,
        conditioning(*[1] * len(tokens), seq=seq, seed=seed + 1, negative=False) if negative else None,
    )


def tensors(of: Conditioning) -> list[Tensor]:
    own = [of.gpt2_context, of.text_context, of.t5_mask]
    return own if of.negative is None else own + tensors(of.negative)


def assert_same(found: Conditioning, expected: Conditioning, atol: float = 0.0) -> None:
    """As many tensors, of the same dtype and shape, equal to within atol (0: every bit)."""
    assert len(tensors(found)) == len(tensors(expected))
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, equal_nan=True)


def denoised(model: audioldm2.AudioLDM2, of: Conditioning) -> Tensor:
    noise = torch.randn(model.sound.latents(len(of), 25), generator=torch.Generator().manual_seed(0))
    return model.denoise(of, noise, num_inference_steps=3)


# Checks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, change",
    [
        ("gpt2_context", lambda x: x[0]),
        ("gpt2_context", lambda x: x[:1]),
        ("gpt2_context", lambda x: x.long()),
        ("text_context", lambda x: x[:, 1:]),
        ("text_context", lambda x: x[..., 0]),
        ("t5_mask", lambda x: x.long()),
        ("t5_mask", lambda x: x & torch.tensor([[True], [False]])),
        ("negative", lambda x: x[:1]),
        ("negative", lambda x: replace(x, negative=x)),
        ("negative", lambda x: x.gpt2_context),
        ("negative", lambda x: Conditioning(x.gpt2_context, None, None)),
        ("gpt2_context", lambda x: x.numpy()),
        ("text_context", lambda x: None),
    ],
)
def test_rejects_tensors_that_do_not_fit(name, change):
    good = conditioning(4, 2)
    with pytest.raises(ArgumentError, match=rf"{name.split('_')[0]}.*; it has to "):
        replace(good, **{name: change(getattr(good, name))})


def test_rejects_an_empty_conditioning():
    with pytest.raises(ArgumentError, match="conditioning has no tensors; it has to have a context"):
        Conditioning(None, None, None)


# Files of version 0.1 ---------------------------------------------------------------------------------------


def test_loads_files_of_version_0_1_silently(tmp_path):
    given, path = conditioning(4, 2), tmp_path / "dog.safetensors"
    given.save(path)
    old = {key.replace("text_context", "t5_context"): tensor for key, tensor in load_file(path).items()}
    assert {"t5_context", "negative.t5_context"} <= old.keys()
    save_file(old, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", DeprecationWarning)
        assert_same(Conditioning.load(path), given)


# Rows -------------------------------------------------------------------------------------------------------


def test_rows_are_selected_joined_and_repeated():
    batch = conditioning(4, 2, 3)
    assert len(batch) == 3
    assert_same(Conditioning.cat(list(batch)), batch)
    assert_same(batch[1], batch[1:2])
    assert_same(batch[-1:], batch[2])
    assert_same(batch.repeat(2)[2:4], Conditioning.cat([batch[1], batch[1]]))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_cat_pads_text_contexts(lengths):
    parts = [conditioning(length, seed=length) for length in lengths]
    joined = Conditioning.cat(parts)
    assert joined.t5_mask.sum(dim=1).tolist() == lengths
    for row, part in zip(joined, parts, strict=True):
        assert torch.equal(row.text_context[row.t5_mask], part.text_context[part.t5_mask])
        assert not row.text_context[~row.t5_mask].any()


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("negative", [True, False])
def test_load_returns_every_saved_bit(tmp_path, dtype, negative):
    given = conditioning(5, 3, negative=negative).to(torch.device("cpu"), dtype)
    given.gpt2_context[0, 0, :4] = torch.tensor([-0.0, float("inf"), float("nan"), 1e-40]).to(dtype)
    path = tmp_path / "dog.safetensors"
    given.save(path)
    given.save(str(path))  # over an older one
    assert_same(Conditioning.load(str(path)), given)
    assert list(tmp_path.iterdir()) == [path]


def test_saves_tensors_that_share_memory(tmp_path):
    given = conditioning(5, 3)
    twin = replace(given, negative=replace(given, negative=None))
    slice = twin[:1]
    slice.save(tmp_path / "dog.safetensors")
    assert_same(Conditioning.load(tmp_path / "dog.safetensors"), slice)


def test_save_replaces_a_file_without_writing_into_it(tmp_path):
    older, path = conditioning(5, 3), tmp_path / "dog.safetensors"
    older.save(path)
    os.link(path, tmp_path / "old.safetensors")  # a second name for the older file's bytes
    conditioning(2).save(path)
    assert_same(Conditioning.load(tmp_path / "old.safetensors"), older)


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    given, path = conditioning(5, 3), tmp_path / "dog.safetensors"
    given.save(path)
    loaded = Conditioning.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(loaded, given)


def test_load_rejects_other_and_damaged_files(tmp_path):
    path = tmp_path / "dog.safetensors"
    with pytest.raises(FileNotFoundError):
        Conditioning.load(path)
    with pytest.raises(FileNotFoundError):
        conditioning(3).save(tmp_path / "nowhere" / "dog.safetensors")

    conditioning(3).save(path)
    whole = path.read_bytes()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped: the file changes
    pointer = b"version https://git-lfs.github.com/spec/v1"
    for content in (*(whole[:cut] for cut in (0, 7, 100, len(whole) - 1)), pointer):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"dog\.safetensors is not a saved conditioning"):
            Conditioning.load(path)
    without = {key: tensor for key, tensor in state.items() if key != "negative.t5_mask"}
    for wrong, named in (
        (without, "text_context with t5_mask"),
        (state | {"unet": torch.zeros(3)}, "'unet'"),
        ({"weight": torch.zeros(3)}, "'weight'"),
        (state | {"t5_mask": torch.ones(1, 3)}, "t5_mask"),
        (state | {"text_context": torch.ones(1, 9, 5)}, "text_context"),
    ):
        save_file(wrong, path)
        with pytest.raises(ValueError, match=named):
            Conditioning.load(path)


# Denoising --------------------------------------------------------------------------------------------------


def test_denoising_runs_no_text_network(tiny_model, tmp_path, monkeypatch):
    encoded = tiny_model.encode_prompt([SHORT, LONG], negative_prompt="noise")
    expected = denoised(tiny_model, encoded)
    encoded.save(tmp_path / "prompts.safetensors")
    running = tiny_model.networks.running

    @contextmanager
    def no_text(name):
        assert name not in TEXT_NETWORKS
        with running(name) as network:
            yield network

    monkeypatch.setattr(tiny_model.networks, "running", no_text)
    with pytest.raises(AssertionError):
        tiny_model.encode_prompt(SHORT)
    assert torch.equal(denoised(tiny_model, Conditioning.load(tmp_path / "prompts.safetensors")), expected)


@pytest.mark.slow
def test_denoising_needs_no_text_network(tiny_model, tiny_folder, tmp_path):
    """Not even on disk: with low_memory, a network is read when its stage begins."""
    encoded = tiny_model.encode_prompt(LONG)
    shutil.copytree(tiny_folder, tmp_path / "model")
    model = audioldm2.load(tmp_path / "model", device="cpu", low_memory=True)
    for name in TEXT_NETWORKS:
        (tmp_path / "model" / f"{name}.safetensors").unlink()
    z = denoised(model, encoded)
    assert torch.equal(z, denoised(tiny_model, encoded))
    assert model.vocode(model.decode(z)).isfinite().all()


# Mixing -----------------------------------------------------------------------------------------------------


def test_mix_at_0_and_1_is_exact():
    a, b = conditioning(4, 2, seed=1), conditioning(3, 9, seed=5)
    for amount in (0, 0.0):
        assert_same(a.mix(b, amount), a)
    for amount in (1, 1.0):
        assert_same(a.mix(b, amount), b)
    assert_same(Conditioning.mix(a, b, 1), b)


def test_mix_interpolates_prompts_of_equal_length():
    a, b = conditioning(4, 2, seed=1), conditioning(4, 2, seed=5)
    mixed = a.mix(b, 0.3)
    for found, one, two in (
        (mixed, a, b),
        (mixed.negative, a.negative, b.negative),
    ):
        real = one.t5_mask
        torch.testing.assert_close(found.gpt2_context, 0.7 * one.gpt2_context + 0.3 * two.gpt2_context)
        torch.testing.assert_close(
            found.text_context[found.t5_mask], (0.7 * one.text_context + 0.3 * two.text_context)[real]
        )
        assert torch.equal(found.t5_mask.sum(dim=1), real.sum(dim=1))


@pytest.mark.slow
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_mix_spreads_the_shorter_prompt(short, long, amount):
    """As many vectors as the longer prompt has, each interpolated, first with first and last with last."""
    a, b = conditioning(short, seed=1), conditioning(long, seed=5)
    mixed = a.mix(b, amount)
    most = max(short, long)
    assert mixed.t5_mask.shape == (1, most)
    assert mixed.t5_mask.all()
    for end in (0, -1):
        expected = torch.lerp(a.text_context[0, end], b.text_context[0, end], amount)
        torch.testing.assert_close(mixed.text_context[0, end], expected)
    assert_same(b.mix(a, 1 - amount), mixed, atol=1e-5)
    same = a.mix(a, amount)
    assert_same(same, replace(a, negative=same.negative), atol=1e-6)


def test_mix_treats_rows_independently():
    a, b = conditioning(4, 2, 7, seed=1), conditioning(3, 9, 1, seed=5)
    together = a.mix(b, 0.4)
    for row in range(3):
        alone = a[row].mix(b[row], 0.4)
        expected = together[row].text_context[together[row].t5_mask]
        assert torch.equal(alone.text_context[alone.t5_mask], expected)
        assert torch.equal(alone.gpt2_context, together[row].gpt2_context)


def test_mix_with_a_little_of_a_longer_prompt_changes_little(tiny_model):
    """Zero padding of the shorter prompt would change much: the zeros would take most of its attention."""
    generator = torch.Generator().manual_seed(0)
    gpt2 = torch.randn(1, 8, 24, generator=generator)

    def prompt(t5: Tensor) -> Conditioning:
        mask = torch.ones(t5.shape[:2], dtype=torch.bool)
        return Conditioning(gpt2, t5, mask, Conditioning(gpt2, t5, mask))

    short, long = (torch.randn(1, tokens, 20, generator=generator) for tokens in (4, 20))
    expected = denoised(tiny_model, prompt(short))
    zeros = denoised(tiny_model, prompt(F.pad(short, (0, 0, 0, 16))))
    slightly = denoised(tiny_model, prompt(short).mix(prompt(long), 1e-5))
    assert (slightly - expected).norm() < 1e-4 * expected.norm()
    assert (zeros - expected).norm() > 1e-2 * expected.norm()


def test_mix_keeps_the_dtype():
    a = conditioning(4, 2, seed=1).to(torch.device("cpu"), torch.float16)
    mixed = a.mix(conditioning(3, 9, seed=5), 0.5)
    assert mixed.text_context.dtype == mixed.gpt2_context.dtype == torch.float16
    assert mixed.negative.text_context.dtype == torch.float16


def test_mix_rejects_arguments():
    a = conditioning(4, 2)
    for amount in (-0.1, 1.1, float("nan"), "half", None):
        with pytest.raises(ArgumentError, match=r"amount is .* from 0 to 1"):
            a.mix(a, amount)
    assert_same(a.mix(a, np.float32(0.0)), a)
    with pytest.raises(ArgumentError, match="other is a str; it has to be a Conditioning"):
        a.mix("dog", 0.5)
    with pytest.raises(ValueError, match="negative part"):
        a.mix(conditioning(4, 2, negative=False), 0.5)
    with pytest.raises(
        ValueError, match=r"other has gpt2_context \(1, 8, 6\), .*have gpt2_context \(2, 8, 6\), "
    ):
        a.mix(a[:1], 0.5)
    wider = replace(a, text_context=torch.zeros(2, 4, 7), negative=None)
    with pytest.raises(ValueError, match="same model"):
        replace(a, negative=None).mix(wider, 0)


# Weighting --------------------------------------------------------------------------------------------------


def test_weighted_extrapolates_from_the_negative_prompt():
    given = conditioning(4, 2)
    assert_same(given.weighted(1), given)
    assert_same(given.weighted(0), replace(given.negative, negative=given.negative))
    for factor in (0.4, 1.7):
        found = given.weighted(factor)
        assert_same(found.negative, given.negative)
        away = given.gpt2_context - given.negative.gpt2_context
        torch.testing.assert_close(found.gpt2_context, given.negative.gpt2_context + factor * away)
        for row in range(2):  # the negative prompt is empty: its only T5 vector meets each of the prompt's
            origin = given.negative.text_context[row, :1]
            real = given.t5_mask[row]
            expected = origin + factor * (given.text_context[row, real] - origin)
            torch.testing.assert_close(found.text_context[row, found.t5_mask[row]], expected)


@pytest.mark.slow
def test_weights_change_the_denoised_latent(tiny_model):
    encoded = tiny_model.encode_prompt([SHORT, LONG])
    expected = denoised(tiny_model, encoded)
    assert torch.equal(denoised(tiny_model, encoded.weighted(1.0)), expected)
    changes = [(denoised(tiny_model, encoded.weighted(w)) - expected).norm().item() for w in (1.1, 1.5, 3.0)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_weighted_rejects_arguments():
    for factor in (-1, float("inf"), float("nan"), "much"):
        with pytest.raises(ValueError, match="factor"):
            conditioning(3).weighted(factor)
    with pytest.raises(ValueError, match="guided=True"):
        conditioning(3, negative=False).weighted(1.2)


def test_encode_rejects_prompts_beyond_gpt2_positions(tiny_model, monkeypatch):
    small = replace(
        tiny_model.networks.configs["gpt2"], max_positions=20
    )  # 8 new vectors, 5 beside the text's
    monkeypatch.setitem(tiny_model.networks.configs, "gpt2", small)
    assert len(tiny_model.encode_prompt("a")) == 1
    with pytest.raises(
        ValueError,
        match=r"prompt has \d+ T5 tokens; it has to be shorter: GPT-2 of this checkpoint has positions for 7",
    ):
        tiny_model.encode_prompt("rain on a tin roof and then much more of it")


def test_denoise_checks_only_the_widths_that_the_unet_uses(tiny_model, monkeypatch):
    unet, cond = tiny_model.networks.configs["unet"], tiny_model.encode_prompt("rain")
    noise = torch.randn(tiny_model.sound.latents(1, 4))
    monkeypatch.setitem(tiny_model.networks.configs, "unet", replace(unet, gpt2_dim=999))
    with pytest.raises(ValueError, match=r"gpt2_context 24 wide, .*; it has to have gpt2_context 999 wide"):
        tiny_model.denoise(cond, noise, num_inference_steps=1)
    t5_alone = replace(unet, gpt2_dim=999, transformers=((), (), (SELF, T5)))
    monkeypatch.setitem(tiny_model.networks.configs, "unet", t5_alone)
    assert tiny_model.denoise(cond, noise, num_inference_steps=1).shape == noise.shape
