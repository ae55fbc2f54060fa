"""Original `.pth` files: every tensor at its place, sounds of each kind, and a sentence for every fault."""

import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

import audioldm2
from audioldm2 import NoiseSchedule, convert
from audioldm2.checkpoints import storage
from audioldm2.convert import original
from audioldm2.errors import WeightsError
from audioldm2.prompt.conditioning import Conditioning
from tests.support import checkpoints, originals

KINDS = tuple(originals.CONFIGS)
SOUNDING = tuple(kind for kind in KINDS if kind != "speech")
RATES = {"base": 16000, "large": 16000, "48k": 48000, "t5": 16000}
QUICK = dict(audio_length_in_s=0.25, num_inference_steps=2)
UNET = "model.diffusion_model"
posix = pytest.mark.skipif(os.name == "nt", reason="needs the processes and limits of POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A file of each kind, with tokenizers beside them."""
    folder = tmp_path_factory.mktemp("originals")
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
    checkpoints.write_tokenizers(folder / "tokenizer", folder / "tokenizer_2")
    for kind in KINDS:
        originals.save(folder / f"{kind}.pth", originals.make(kind).table)
    return folder


@pytest.fixture(scope="module")
def models(folder) -> Callable[[str], audioldm2.AudioLDM2]:
    """A model of a kind, loaded from its .pth."""
    loaded = {}

    def model(kind: str) -> audioldm2.AudioLDM2:
        if kind not in loaded:
            loaded[kind] = audioldm2.load(folder / f"{kind}.pth", device="cpu")
        return loaded[kind]

    return model


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    """No network, and nothing in the cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def tables(kind: str, **changes: Any) -> dict[str, Any]:
    """The table of a kind's file, less the average, with some keys changed; `...` removes one."""
    table = {
        key: each for key, each in originals.make(kind).table.items() if not key.startswith("model_ema.")
    }
    return {key: tensor for key, tensor in (table | changes).items() if tensor is not ...}


def states_of(checkpoint: storage.Checkpoint) -> dict[str, dict[str, Tensor]]:
    return {name: open_state() for name, open_state in checkpoint.states.items()}


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].keys() == expected[name].keys()
        for key, tensor in expected[name].items():
            assert torch.equal(found[name][key], tensor), f"{name}: {key}"


def converted(file: Path, **arguments: Any) -> dict[str, dict[str, Tensor]]:
    """What a file becomes: each network's tensors, as they would be written."""
    checkpoint = convert.read_original(file, **arguments)
    return {
        name: storage.prepare(name, state, None, str(file)) for name, state in states_of(checkpoint).items()
    }


def refused(file: Path, **arguments: Any) -> str:
    """The sentence of the WeightsError that converting raises; anything else fails."""
    with pytest.raises(WeightsError) as caught:
        converted(file, **arguments)
    said = str(caught.value)
    assert str(file) in said and said.endswith((".", "?")), said
    return said


def refused_table(tmp_path: Path, table: Mapping[str, Any], **arguments: Any) -> str:
    return refused(originals.save(tmp_path / "file.pth", table), **arguments)


# ---- what is read


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_at_its_place(folder, kind):
    """CLAP and T5 from the copy nearest to the top, the UNet as trained, not averaged."""
    checkpoint = convert.read_original(folder / f"{kind}.pth")
    assert_same(states_of(checkpoint), originals.make(kind).states)


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_is_read_off_the_tensors(folder, kind):
    checkpoint = convert.read_original(folder / f"{kind}.pth")
    assert checkpoint.configs == originals.make(kind).configs
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()
    assert checkpoint.clap_mel == {}


def test_the_scaling_factor_is_read(tmp_path):
    file = originals.save(tmp_path / "a.pth", tables("t5", scale_factor=torch.tensor(0.75)))
    assert convert.read_original(file).configs["vae"].scaling_factor == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_left_is_told_with_a_reason(folder, kind):
    checkpoint = convert.read_original(folder / f"{kind}.pth")
    assert {move.source for move in checkpoint.dropped} == originals.make(kind).unused
    assert all(move.row.note for move in checkpoint.dropped)


def test_a_linear_schedule_is_told_from_the_usual_one(tmp_path):
    file = originals.save(tmp_path / "a.pth", tables("t5", betas=torch.linspace(0.001, 0.02, 500)))
    schedule = NoiseSchedule(**convert.read_original(file).schedule)
    assert schedule == replace(NoiseSchedule(), kind="linear", beta_start=0.001, beta_end=0.02, steps=500)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_the_published_schedule_is_known_however_it_is_stored(tmp_path, name: str, dtype: torch.dtype):
    table = {key: each for key, each in tables("t5").items() if key not in originals.schedule_buffers()}
    file = originals.save(tmp_path / "a.pth", table | {name: originals.schedule_buffers()[name].to(dtype)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NoiseSchedule(**convert.read_original(file).schedule) == NoiseSchedule()


def test_a_linear_schedule_is_told_by_what_is_left_of_the_signal_too(tmp_path):
    wanted = replace(NoiseSchedule(), kind="linear", beta_start=0.001, beta_end=0.02, steps=500)
    table = {key: each for key, each in tables("t5").items() if key != "betas"}
    file = originals.save(tmp_path / "a.pth", table | {"alphas_cumprod": wanted.alpha_bar})
    assert NoiseSchedule(**convert.read_original(file).schedule) == wanted


def test_a_file_of_data_parallel_training_is_the_same(tmp_path):
    plain, wrapped = tables("t5"), {f"module.{key}": each for key, each in tables("t5").items()}
    first, second = (
        converted(originals.save(tmp_path / f"{i}.pth", table)) for i, table in enumerate((plain, wrapped))
    )
    assert_same(first, second)


def test_an_unknown_schedule_is_told_and_the_published_one_taken(tmp_path):
    file = originals.save(tmp_path / "a.pth", tables("t5", betas=torch.linspace(0.01, 0.1, 1000) ** 3))
    with pytest.warns(UserWarning, match=r"noise schedule \(betas 1e-06 to 0\.001\).*published one is taken"):
        checkpoint = convert.read_original(file)
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()


def test_speech_keeps_its_symbols_and_positions(folder):
    checkpoint = convert.read_original(folder / "speech.pth")
    symbols = checkpoint.symbols
    assert len(symbols) == checkpoint.configs["phonemes"].vocabulary == 183
    places = {"_": 0, ";": 1, " ": 16, "A": 17, "a": 43, "\u0251": 69, "ᵻ": 177, "⚠": 182}
    assert {symbol: symbols[place] for symbol, place in places.items()} == {each: each for each in places}
    assert [place for place, symbol in enumerate(symbols) if symbol == "'"] == [174, 176]
    assert checkpoint.configs["projection"].positions == 30
    assert checkpoint.configs["gpt2"].new_vectors == 512
    ours = checkpoint.states["projection"]()["t5_positions"]
    theirs = originals.make("speech").table[originals.POSITIONS]
    assert torch.equal(ours, theirs[0].T)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_folder_holds_the_same(folder, tmp_path, kind):
    tokenizers = {"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"}
    before = convert.read_original(folder / f"{kind}.pth", tokenizers=tokenizers)
    storage.write(before, tmp_path / "out")
    after = storage.read(tmp_path / "out")
    assert_same(states_of(after), originals.make(kind).states)
    assert (after.configs, after.symbols, after.source) == (before.configs, before.symbols, before.source)
    assert after.tokenizers.keys() == storage.TOKENIZERS.keys() - (
        set() if "t5" in before.configs else {"t5_tokenizer"}
    )
    networks = {f"{name}.safetensors" for name in before.configs}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *networks,
        *after.tokenizers,
        "config.json",
    }


FORMS = {
    "a bare table": lambda table, file: torch.save(table, file),
    "as Lightning saves it": lambda table, file: torch.save(
        {"state_dict": OrderedDict(table), "epoch": 3, "optimizer_states": [{"state": {0: torch.ones(3)}}]},
        file,
    ),
    "with gradients": lambda table, file: torch.save(
        {"state_dict": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in table.items()}}, file
    ),
    "before PyTorch 1.6": lambda table, file: torch.save(
        {"state_dict": table}, file, _use_new_zipfile_serialization=False
    ),
    "as safetensors": lambda table, file: save_file({k: v.clone() for k, v in table.items()}, file),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_in_which_such_a_table_comes(tmp_path, form):
    file = tmp_path / ("a.safetensors" if form == "as safetensors" else "a.ckpt")
    FORMS[form](tables("t5"), file)
    assert_same(converted(file), originals.make("t5").states)


def test_half_precision_stays_half(tmp_path):
    table = {key: each.half() if each.is_floating_point() else each for key, each in tables("t5").items()}
    file = originals.save(tmp_path / "a.pth", table | {"scale_factor": torch.tensor(0.75)})
    expected = originals.make("t5").states["unet"]
    found = converted(file)["unet"]
    assert all(torch.equal(found[key], expected[key].half()) for key in expected)


# ---- what is heard


@pytest.mark.parametrize("kind", SOUNDING)
def test_a_file_makes_sounds_of_its_rate_and_length(models, kind):
    model = models(kind)
    result = model.generate("a dog", **QUICK)
    assert result.sample_rate == model.sample_rate == RATES[kind]
    assert result.audio.shape == (1, 1, RATES[kind] // 4)
    assert result.audio.isfinite().all() and result.audio.std() > 1e-3


@pytest.mark.parametrize("kind", SOUNDING)
def test_its_converted_folder_makes_the_same_sound(models, folder, tmp_path, kind):
    tokenizers = {"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"}
    storage.write(convert.read_original(folder / f"{kind}.pth", tokenizers=tokenizers), tmp_path / "out")
    again = audioldm2.load(tmp_path / "out", device="cpu")
    one, other = (
        model.generate("a dog", negative_prompt="noise", **QUICK) for model in (models(kind), again)
    )
    # A transposed view and a copy of it may differ in the last bit.
    torch.testing.assert_close(one.audio, other.audio, rtol=0, atol=1e-5)


HEARD = {
    "base": {"gpt2_context", "text_context", "t5_mask"},
    "large": {"gpt2_context", "text_context", "t5_mask"},
    "48k": {"clap_vector"},
    "t5": {"text_context", "t5_mask"},
}


@pytest.mark.parametrize("kind", SOUNDING)
def test_a_conditioning_has_just_what_is_heard(models, kind):
    model = models(kind)
    conditioning = model.encode_prompt(["a dog", "rain"], "noise")
    configs = model.networks.configs
    assert conditioning.tensors.keys() == conditioning.negative.tensors.keys() == HEARD[kind]
    widths = {"gpt2_context": 128, "text_context": 14, "clap_vector": 10}
    for name in HEARD[kind] - {"t5_mask"}:
        assert conditioning.tensors[name].shape[-1] == widths[name]
        assert len(conditioning.tensors[name]) == 2
    assert (configs["unet"].film_dim > 0) == (conditioning.clap_vector is not None)


@pytest.mark.parametrize("kind", SOUNDING)
def test_guidance_leads_away_from_the_negative_prompt(models, kind):
    model = models(kind)
    plain, away, towards_itself, unguided = (
        model.generate("a dog", guidance_scale=scale, negative_prompt=negative, **QUICK).latents
        for scale, negative in ((3.5, None), (3.5, "rain on the roof"), (3.5, "a dog"), (1.0, None))
    )
    torch.testing.assert_close(towards_itself, unguided, rtol=0, atol=1e-4)  # nothing to lead away from
    for one, other in ((plain, away), (plain, unguided), (away, unguided)):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SOUNDING)
def test_candidates_are_ranked(models, kind):
    result = models(kind).generate("a dog", num_waveforms_per_prompt=3, **QUICK)
    assert result.audio.shape[:2] == result.scores.shape == (1, 3)
    assert result.scores[0].tolist() == sorted(result.scores[0].tolist(), reverse=True)
    assert sorted(result.seeds[0]) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["48k", "t5"])
def test_a_prompt_sounds_the_same_alone_and_in_a_batch(models, kind):
    model, prompts = models(kind), ["a dog", "a hammer hitting a wooden surface", "rain"]
    together = model.generate(prompts, **QUICK).audio
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(model.generate(prompt, **QUICK).audio[0], together[row], rtol=0, atol=1e-4)


def test_the_vector_beside_the_time_is_the_clap_embedding_of_the_text(models):
    """At length 1; without a negative prompt the unconditional half is that of the empty text."""
    model = models("48k")
    conditioning = model.encode_prompt("a dog")
    torch.testing.assert_close(conditioning.clap_vector.norm(dim=-1), torch.ones(1))
    empty = model.encode_prompt("", guided=False)
    torch.testing.assert_close(conditioning.negative.clap_vector, empty.clap_vector)
    assert (conditioning.clap_vector - empty.clap_vector).abs().max() > 1e-3


def test_a_conditioning_of_48_khz_is_saved_and_comes_back(models, tmp_path):
    conditioning = models("48k").encode_prompt(["a dog", "rain"], "noise")
    conditioning.save(tmp_path / "dog.safetensors")
    found = Conditioning.load(tmp_path / "dog.safetensors")
    assert found.tensors.keys() == {"clap_vector"} == found.negative.tensors.keys()
    assert torch.equal(found.clap_vector, conditioning.clap_vector)
    assert torch.equal(found.negative.clap_vector, conditioning.negative.clap_vector)


def test_a_conditioning_of_48_khz_is_mixed_at_length_1(models):
    model = models("48k")
    dog, rain = (model.encode_prompt(prompt, "noise") for prompt in ("a dog", "rain on the roof"))
    for amount, end in ((0, dog), (1, rain)):
        assert torch.equal(dog.mix(rain, amount).clap_vector, end.clap_vector)
    middle = dog.mix(rain, 0.5).clap_vector
    torch.testing.assert_close(middle.norm(dim=-1), torch.ones(1))
    towards = [torch.cosine_similarity(middle, each.clap_vector).item() for each in (dog, rain)]
    assert towards[0] == pytest.approx(towards[1], abs=1e-5)
    assert towards[0] > torch.cosine_similarity(dog.clap_vector, rain.clap_vector).item()


def test_a_mixed_conditioning_of_48_khz_sounds_like_neither(models):
    model = models("48k")
    dog, rain = (model.encode_prompt(prompt) for prompt in ("a dog", "rain on the roof"))
    noise = torch.randn(model.sound.latents(1, 4))
    one, middle, other = (
        model.denoise(each, noise, num_inference_steps=2) for each in (dog, dog.mix(rain, 0.5), rain)
    )
    assert (one - middle).abs().max() > 1e-3 and (other - middle).abs().max() > 1e-3


@pytest.mark.parametrize(("of", "to"), [("t5", "48k"), ("48k", "t5"), ("base", "t5"), ("t5", "base")])
def test_a_conditioning_of_another_kind_is_refused(models, of, to):
    """But for one that has more than this model hears."""
    conditioning, noise = models(of).encode_prompt("a dog"), torch.randn(models(to).sound.latents(1, 4))
    if HEARD[to] <= HEARD[of]:
        assert models(to).denoise(conditioning, noise, num_inference_steps=1).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"this model needs .*Make it with this model's encode_prompt"):
        models(to).denoise(conditioning, noise, num_inference_steps=1)


@pytest.mark.parametrize("residence", ["offload", "low_memory"])
def test_weights_may_wait_elsewhere(models, folder, residence):
    other = audioldm2.load(folder / "48k.pth", device="cpu", **{residence: True})
    one, other = (model.generate("a dog", **QUICK).audio for model in (models("48k"), other))
    assert torch.equal(one, other)


def test_speech_is_refused_in_a_sentence(folder):
    with pytest.raises(WeightsError, match=r"speech\.pth is a speech model: .* cannot be run yet\."):
        audioldm2.load(folder / "speech.pth", device="cpu")


def test_a_folder_with_one_original_is_that_original(folder, tmp_path):
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).symlink_to(folder / name)
    originals.save(tmp_path / "audioldm_48k.pth", tables("48k"))
    assert audioldm2.load(tmp_path, device="cpu").sample_rate == 48000


def test_a_folder_with_several_originals_asks_for_one(folder):
    with pytest.raises(WeightsError, match=r"has several original checkpoints .* name the one that is meant"):
        audioldm2.load(folder, device="cpu")


def test_without_tokenizers_nothing_can_be_said_to_it(tmp_path, offline):
    file = originals.save(tmp_path / "a.pth", tables("t5"))
    with pytest.raises(WeightsError, match=r"a\.pth has no 'clap_tokenizer', 't5_tokenizer'.*--tokenizers"):
        audioldm2.load(file, device="cpu")


def test_nothing_is_in_memory_that_can_stay_in_the_file(folder):
    """Every tensor that is not transposed or cut is a view of the mapped file; two reads share it."""
    one, other = (states_of(convert.read_original(folder / "t5.pth"))["unet"] for _ in range(2))
    mapped = mapped_ranges(folder / "t5.pth")
    for state in (one, other):
        for key, tensor in state.items():
            assert any(low <= tensor.data_ptr() < high for low, high in mapped), key


def mapped_ranges(file: Path) -> list[tuple[int, int]]:
    if not Path("/proc/self/maps").exists():
        pytest.skip("reads /proc/self/maps")
    found = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(file) in line
    ]
    return [(int(low, 16), int(high, 16)) for low, high in found]


# ---- what may be asked for: the average, heads, a config


def test_the_average_is_taken_where_it_is_asked_for(folder):
    expected = originals.make("base")
    found = states_of(convert.read_original(folder / "base.pth", ema=True))
    assert_same(found, expected.states | {"unet": expected.average})


def test_the_average_is_not_dropped_where_it_is_taken(folder):
    left = {move.source for move in convert.read_original(folder / "t5.pth", ema=True).dropped}
    assert not any(key.startswith("model_ema.diffusion_model") for key in left)


@pytest.mark.parametrize("kept", [False, True], ids=["none", "all but one"])
def test_a_missing_average_is_a_sentence(tmp_path, kept):
    table = dict(originals.make("t5").table) if kept else tables("t5")
    table.pop("model_ema.diffusion_modelout2bias", None)
    said = refused_table(tmp_path, table, ema=True)
    assert "no running average of its UNet" in said and "convert it without --ema" in said
    assert_same(converted(tmp_path / "file.pth"), originals.make("t5").states)


def test_an_average_of_another_shape_is_a_sentence(tmp_path):
    table = originals.make("t5").table | {"model_ema.diffusion_modelout2bias": torch.ones(4)}
    said = refused_table(tmp_path, table, ema=True)
    assert "of the wrong shape 'conv_out.bias is (4,) and should be (3,)'" in said


@pytest.mark.parametrize("kind", KINDS)
def test_equal_copies_are_not_worth_a_word(folder, kind):
    assert convert.differing_copies(convert.read_original(folder / f"{kind}.pth")) == []


@pytest.mark.parametrize(
    ("kind", "network", "key"),
    [
        ("base", "CLAP", "cond_stage_models.0.cond_stage_models.0.model.text_projection.0.bias"),
        ("base", "CLAP", "clap.model.text_projection.0.bias"),
        ("base", "T5", "cond_stage_models.0.cond_stage_models.1.model.shared.weight"),
        ("48k", "CLAP", "cond_stage_models.0.model.audio_branch.bn0.running_mean"),
        ("speech", "CLAP", "cond_stage_models.0.cond_stage_models.0.model.logit_scale_a"),
    ],
)
def test_copies_that_differ_are_told(tmp_path, kind, network, key):
    table = tables(kind)
    file = originals.save(tmp_path / "a.pth", table | {key: table[key] + 0.5})
    checkpoint = convert.read_original(file)
    (said,) = convert.differing_copies(checkpoint)
    taken = {"CLAP": "clap.model", "T5": "cond_stage_models.1.model"}[network]
    assert f"two copies of {network} that differ, at '{taken}' (taken)" in said
    assert "1 of " in said or re.search(r"'[\w.]+' of \d+ tensors", said)
    if not key.startswith("clap."):  # the first is taken, whatever the other holds
        assert_same(states_of(checkpoint), originals.make(kind).states)


def test_a_copy_that_lacks_tensors_differs(tmp_path):
    key = "cond_stage_models.0.model.text_branch.pooler.dense.bias"
    checkpoint = convert.read_original(originals.save(tmp_path / "a.pth", tables("48k", **{key: ...})))
    assert [said for said in convert.differing_copies(checkpoint) if "CLAP" in said]


def test_heads_are_32_wide_or_8_as_the_twins_say(folder):
    assert convert.read_original(folder / "base.pth").configs["unet"].heads == (1, 2)
    assert convert.read_original(folder / "base.pth", heads="config").configs["unet"].heads == (8, 8)
    file = folder / "base.pth"
    assert audioldm2.load(file, device="cpu", heads="config").networks.configs["unet"].heads == (8, 8)


def test_a_config_says_what_no_tensor_can(folder):
    config = {
        "unet": {"heads": [2, 4]},
        "hifigan": {"sample_rate": 22050},
        "clap_text": {"heads": 4},
        "schedule": {"beta_end": 0.02},
        "clap_mel": {"f_max": 12000},
    }
    checkpoint = convert.read_original(folder / "base.pth", config=config)
    assert checkpoint.configs["unet"].heads == (2, 4)
    assert checkpoint.configs["hifigan"].sample_rate == 22050
    assert checkpoint.configs["clap_text"].heads == 4
    assert NoiseSchedule(**checkpoint.schedule) == replace(NoiseSchedule(), beta_end=0.02)
    assert storage.hearing_of(checkpoint, "here").f_max == 12000
    assert config["schedule"] == {"beta_end": 0.02}, "the caller's config was changed"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"unit": {}}, "speaks of 'unit'; "),
        ({"unet": {"head": [2, 4]}}, "'unet' of the config file and this version differ in head"),
        ({"unet": {"heads": "two"}}, "heads of 'unet' of the config file is 'two'; it has to be a list"),
        ({"unet": {"heads": [2]}}, "channels, heads and transformers need one entry a level each"),
        ({"unet": {"heads": [3, 3]}}, "have to be multiples of heads (3, 3)"),
        ({"unet": {"channels": [32, 96]}}, "of the wrong shape"),
        ({"unet": [1]}, "'unet' of the config file is [1]; it has to be an object"),
        ({"schedule": {"beta_end": 2}}, "schedule"),
        ({"schedule": {"speed": 2}}, "differ in speed"),
        ({"clap_mel": {"f_max": 90000}}, "f_max (90000)"),
        ({"gpt2": {"heads": 3}}, "gpt2"),  # the file has none, so nobody would follow it
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(folder, config, words):
    with pytest.raises(WeightsError) as caught:
        converted(folder / "t5.pth", config=config)
    assert words in str(caught.value)


def unknown_vocoder() -> dict[str, Tensor]:
    """The same rates as the published one, with a kernel that upstream never used."""
    kernel = torch.randn(32, 16, 10)
    return tables("t5", **{"first_stage_model.vocoder.ups.0.weight": kernel})


def test_a_vocoder_of_unknown_rates_asks_for_them(tmp_path):
    said = refused_table(tmp_path, unknown_vocoder())
    assert "kernels (10, 16, 8, 4, 4), which no published one has" in said
    assert '{"hifigan": {"upsample_rates": [...], "sample_rate": ...}}' in said


def test_a_vocoder_of_rates_that_a_config_tells_is_taken(tmp_path):
    file = originals.save(tmp_path / "a.pth", unknown_vocoder())
    told = {"hifigan": {"upsample_rates": [5, 4, 2, 2, 2], "sample_rate": 24000}}
    vocoder = convert.read_original(file, config=told).configs["hifigan"]
    assert (vocoder.hop, vocoder.sample_rate, vocoder.upsample_kernels) == (160, 24000, (10, 16, 8, 4, 4))
    converted(file, config=told)


# ---- tables with a fault


FIRST_OF = {  # of each network a tensor that does not tell the architecture
    "clap_text": "clap.model.text_branch.pooler.dense.bias",
    "clap_audio": "clap.model.audio_branch.norm.bias",
    "t5": "cond_stage_models.1.model.encoder.final_layer_norm.weight",
    "gpt2": "cond_stage_models.0.model.ln_f.bias",
    "projection": "cond_stage_models.0.input_sequence_embed_linear.1.bias",
    "unet": f"{UNET}.out.2.bias",
    "vae": "first_stage_model.decoder.conv_out.bias",
    "hifigan": "first_stage_model.vocoder.conv_post.bias",
}


@pytest.mark.parametrize(
    "key",
    [
        "first_stage_model.extra.weight",
        "global_step_of_training",
        f"{UNET}.label_emb.weight",
        "clap.model.audio_branch.fusion_model.weight",
        "cond_stage_models.2.model.weight",
    ],
)
def test_a_key_too_many(tmp_path, key):
    said = refused_table(tmp_path, tables("base", **{key: torch.ones(2)}))
    assert f"'{key}' not part of this architecture" in said


@pytest.mark.parametrize("network", FIRST_OF)
def test_a_key_too_few(tmp_path, network):
    said = refused_table(tmp_path, tables("base", **{FIRST_OF[network]: ...}))
    assert "nothing found for" in said or "does not fit its configuration: missing" in said


@pytest.mark.parametrize("network", FIRST_OF)
def test_a_tensor_of_another_shape(tmp_path, network):
    said = refused_table(tmp_path, tables("base", **{FIRST_OF[network]: torch.ones(5)}))
    assert "of the wrong shape" in said and "is (5,) and should be (" in said


@pytest.mark.parametrize("network", FIRST_OF)
def test_a_renamed_key(tmp_path, network):
    key = FIRST_OF[network]
    renamed = key.replace("bias", "shift").replace("layer_norm.weight", "layer_norm.gain")
    said = refused_table(tmp_path, tables("base", **{key: ..., renamed: tables("base")[key]}))
    assert "shift" in said or "gain" in said


@pytest.mark.parametrize(
    ("network", "value"), [("unet", float("inf")), *((network, float("nan")) for network in FIRST_OF)]
)
def test_values_that_are_no_numbers_are_never_written(tmp_path, network, value):
    tensor = tables("base")[FIRST_OF[network]].clone()
    tensor[-1] = value
    checkpoint = convert.read_original(
        originals.save(tmp_path / "file.pth", tables("base", **{FIRST_OF[network]: tensor}))
    )
    checkpoint.tokenizers = {}
    with pytest.raises(WeightsError, match=rf"'{network}' in .*file\.pth holds values that are no numbers"):
        storage.write(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_is_no_weight(tmp_path, dtype):
    said = refused_table(tmp_path, tables("t5", **{f"{UNET}.out.2.bias": torch.ones(3).to(dtype)}))
    assert f"of a dtype that is no weight's 'conv_out.bias is {dtype}'" in said


@pytest.mark.parametrize("what", ["sparse", "meta"])
@pytest.mark.parametrize("key", [f"{UNET}.out.2.bias", "scale_factor", "betas"])
def test_a_tensor_without_plain_data(tmp_path, what, key):
    tensor = tables("t5")[key]
    tensor = tensor.reshape(-1).to_sparse() if what == "sparse" else tensor.to("meta")
    refused_table(tmp_path, tables("t5", **{key: tensor}))


FACTORS = {
    "missing": ...,
    "several": torch.ones(3),
    "none": torch.ones(0),
    "zero": torch.tensor(0.0),
    "negative": torch.tensor(-1.0),
    "nan": torch.tensor(float("nan")),
    "infinite": torch.tensor(float("inf")),
    "complex": torch.tensor(1j),
}


@pytest.mark.parametrize("factor", FACTORS)
def test_a_scaling_factor_that_scales_nothing(tmp_path, factor):
    said = refused_table(tmp_path, tables("t5", scale_factor=FACTORS[factor]))
    assert "scale_factor" in said or "scaling_factor" in said


@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize(
    "betas",
    [torch.ones(0), torch.zeros(9), -torch.ones(9), torch.full((9,), 5.0), torch.full((9,), float("nan"))],
    ids=["none", "zeros", "negative", "above 1", "nan"],
)
def test_betas_that_make_no_schedule_leave_the_published_one_or_are_refused(tmp_path, betas):
    file = originals.save(tmp_path / "file.pth", tables("t5", betas=betas))
    try:
        checkpoint = convert.read_original(file)
    except WeightsError as error:
        assert "betas" in str(error)
    else:
        assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()


SHAPES = [(), (0,), (3,), (2, 2), (1, 1, 1, 1, 1), (0, 0, 0)]


@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize("kind", ["t5", "speech"])
def test_any_shape_of_any_tensor_gives_a_model_or_a_sentence(monkeypatch, kind):
    """A tensor of each sort, by the end of its name, in one of the odd shapes."""
    content: dict[str, Tensor] = {}
    monkeypatch.setattr(original, "read_file", lambda path: content)
    sorts: dict[str, str] = {}
    table = tables(kind)
    for key in table:
        sorts.setdefault(".".join(re.sub(r"\d+", "N", key).split(".")[-3:]), key)
    wrong, outcomes = [], set()
    for turn, key in enumerate(sorted(sorts.values())):
        content.clear()
        content.update(table | {key: torch.ones(SHAPES[turn % len(SHAPES)])})
        try:
            converted(Path("file.pth"))
            outcomes.add("model")
        except WeightsError as error:
            assert "file.pth" in str(error)
            outcomes.add("sentence")
        except Exception as error:
            wrong.append(f"{key} {SHAPES[turn % len(SHAPES)]}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(sorts)}", *wrong])
    assert outcomes == {"model", "sentence"}


@pytest.mark.parametrize("kind", ["t5", "48k"])
def test_any_missing_tensor_is_a_sentence(monkeypatch, kind):
    made, content = originals.make(kind), {}
    monkeypatch.setattr(original, "read_file", lambda path: content)
    used = sorted(made.table.keys() - made.unused)
    for key in random.Random(kind).sample(used, 30):
        content.clear()
        content.update({name: tensor for name, tensor in made.table.items() if name != key})
        refused(Path("file.pth"))


# ---- files of another kind


def resnet() -> dict[str, Tensor]:
    return {
        "conv1.weight": torch.ones(4, 3, 7, 7),
        "bn1.running_mean": torch.ones(4),
        "fc.bias": torch.ones(5),
    }


def stable_diffusion() -> dict[str, Tensor]:
    """Its UNet and autoencoder have our names; it has no vocoder, and CLIP."""
    table = {key: tensor for key, tensor in tables("t5").items() if ".vocoder." not in key}
    table = {key: tensor for key, tensor in table.items() if not key.startswith(("clap.", "cond_stage"))}
    clip = "cond_stage_model.transformer.text_model.embeddings"
    return table | {
        f"{clip}.position_ids": torch.arange(9),
        f"{clip}.token_embedding.weight": torch.ones(9, 4),
    }


def diffusers_unet() -> dict[str, Tensor]:
    made = originals.make("base")
    return checkpoints.to_diffusers("unet", made.configs["unet"], made.states["unet"])


OTHER_KINDS = {
    "a resnet": (resnet, "is not an original AudioLDM 2 checkpoint: it has no 'unet', 'vae', 'hifigan'"),
    "Stable Diffusion": (stable_diffusion, "is not an original AudioLDM 2 checkpoint: it has no 'hifigan'"),
    "a UNet of diffusers": (diffusers_unet, "is not an original AudioLDM 2 checkpoint: it has no 'unet'"),
    "nothing": (dict, "is not an original AudioLDM 2 checkpoint: it has no 'unet', 'vae', 'hifigan'"),
}


@pytest.mark.parametrize("wrapped", [True, False], ids=["state_dict", "bare"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_architecture(tmp_path, kind, wrapped):
    table, words = OTHER_KINDS[kind]
    torch.save({"state_dict": table()} if wrapped else table(), tmp_path / "file.pth")
    assert words in refused(tmp_path / "file.pth")


NO_TABLES = {
    "a list": [torch.ones(1)],
    "a tensor": torch.ones(3),
    "a number": 3,
    "numbers": {"state_dict": {"betas": 0.1}},
    "a list in a table": {"state_dict": [torch.ones(1)]},
    "nothing in a table": {"state_dict": None},
    "a table in a table": {"state_dict": {"model": {"betas": torch.ones(1)}}},
    "numbers for keys": {"state_dict": {1: torch.ones(1)}},
    "numbers among the keys": lambda: {"state_dict": {**tables("t5"), 7: torch.ones(1)}},
    "meta tensors": lambda: {"state_dict": {key: each.to("meta") for key, each in tables("t5").items()}},
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_a_file_that_holds_no_table_of_tensors(tmp_path, kind):
    content = NO_TABLES[kind]
    torch.save(content() if callable(content) else content, tmp_path / "file.pth")
    assert re.search("table of tensors|is not an original", refused(tmp_path / "file.pth"))


def test_two_networks_of_one_kind_that_are_no_copies(tmp_path):
    """Two UNets: which is meant?"""
    second = {
        key.replace("model.", "model_2.", 1): each
        for key, each in tables("t5").items()
        if key.startswith(UNET)
    }
    assert "not part of this architecture" in refused_table(tmp_path, tables("t5") | second)


# ---- damaged files


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A whole file without an average: what the tests below damage."""
    file = originals.save(tmp_path_factory.mktemp("small") / "a.pth", tables("t5"))
    assert_same(converted(file), originals.make("t5").states)
    return file.read_bytes()


@pytest.fixture
def file(small, tmp_path) -> Path:
    """Such a file, to be damaged at will."""
    path = tmp_path / "file.pth"
    path.write_bytes(small)
    return path


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_cut_anywhere(file, suffix):
    """At every fortieth of it, and in each of its last 64 bytes."""
    if suffix == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file({key: each.clone() for key, each in tables("t5").items()}, file)
    size = file.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(file, length)  # shorter each time
        assert f"{file} is truncated or damaged" in refused(file)


def parts_of(file: Path) -> dict[str, range]:
    """Where in a zip file what stands."""
    with zipfile.ZipFile(file) as archive:
        first = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
        return {
            "its first bytes": range(first.header_offset, first.header_offset + 60),
            "its pickle": range(first.header_offset + 60, first.header_offset + 60 + first.file_size),
            "its directory": range(archive.start_dir, file.stat().st_size),
            "its tensors": range(first.header_offset + 200 + first.file_size, archive.start_dir),
        }


@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize(
    ("part", "times", "outcomes"),
    [
        ("its first bytes", 20, {"tensors", "sentence"}),
        ("its pickle", 40, {"tensors", "sentence"}),
        ("its directory", 40, {"tensors", "sentence"}),
        ("its tensors", 20, {"tensors"}),
    ],
)
def test_a_flipped_bit_gives_tensors_or_a_sentence(file, part, times, outcomes):
    """A wrong bit of a weight that is a number all the same cannot be seen; nothing else may come of it."""
    places, found = random.Random(part), set()
    where = parts_of(file)[part]
    for _ in range(times):
        place, bit = places.choice(where), 1 << places.randrange(8)
        flip(file, place, bit)
        try:
            converted(file)
            found.add("tensors")
        except WeightsError as error:
            assert str(file) in str(error)
            found.add("sentence")
        flip(file, place, bit)
    assert found == outcomes
    assert_same(converted(file), originals.make("t5").states)


def flip(file: Path, place: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ bit]))


def repack(file: Path, method: int = zipfile.ZIP_STORED, without: str = "?") -> None:
    """The archive written again, less the members of a name."""
    content = file.read_bytes()
    source = file.with_name("source.zip")
    source.write_bytes(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, "w", method) as new:
        for each in old.infolist():
            if not each.filename.endswith(without):
                new.writestr(each.filename, old.read(each))
    source.unlink()


@pytest.mark.parametrize("member", ["/data/5", "/data/17", "/data.pkl", "/version"])
def test_an_archive_without_one_of_its_members(file, member):
    repack(file, without=member)
    assert f"{file} is truncated or damaged" in refused(file)


def test_an_archive_that_was_packed_again_is_the_same(file):
    repack(file)
    assert_same(converted(file), originals.make("t5").states)


@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize("factor", ["as it is", "given"])
def test_a_compressed_archive_is_read_right_or_refused(file, factor):
    """Mapped, the compressed bytes would be taken for converted."""
    repack(file, zipfile.ZIP_DEFLATED)
    more = {"config": {"vae": {"scaling_factor": originals.SCALING_FACTOR}}} if factor == "given" else {}
    try:
        found = converted(file, **more)
    except WeightsError as error:
        assert str(file) in str(error)
    else:
        assert_same(found, originals.make("t5").states)


NO_ARCHIVES = {
    "empty": b"",
    "zeros": bytes(10_000),
    "a page": b"<html>404</html>" * 9,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4\n",
    "a pickle": pickle.dumps({"state_dict": {"betas": 1}}),
    "half an archive": b"PK\x03\x04" + bytes(300),
}


@pytest.mark.parametrize("content", NO_ARCHIVES)
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(NO_ARCHIVES[content])
    assert re.search("truncated or damaged|not a plain file of tensors", refused(tmp_path / "file.pth"))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code was run"))


def as_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def before_1_6(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("place", ["state_dict", "beside it"])
@pytest.mark.parametrize("save", [torch.save, before_1_6, as_pickle], ids=["zip", "old", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, save, place):
    marker = tmp_path / "marker"
    trap, table = Trap(marker), {"betas": torch.ones(1)}
    content = (
        {"state_dict": table | {"betas": trap}} if place == "state_dict" else {"state_dict": table, "a": trap}
    )
    save(content, tmp_path / "file.pth")
    assert "would run code when read, which is refused" in refused(tmp_path / "file.pth")
    with pytest.raises(WeightsError):
        audioldm2.load(tmp_path / "file.pth", device="cpu")
    assert not marker.exists()
    pickle.loads(pickle.dumps(trap))
    assert marker.exists()  # the trap works


# ---- damaged safetensors, where other tests have not looked


def test_any_damage_to_a_header_of_the_diffusers_layout_gives_tensors_or_a_sentence(tmp_path):
    checkpoints.write_diffusers(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "projection_model" / "diffusion_pytorch_model.safetensors"
    reading = convert.read_diffusers(tmp_path / "diffusers").states["projection"]
    content, places, found = path.read_bytes(), random.Random(0), set()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(150):
        damaged = bytearray(content)
        damaged[places.randrange(header)] ^= 1 << places.randrange(8)
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(damaged)
        try:
            found.add(len(reading()))
        except WeightsError as error:
            assert str(path.parent) in str(error)
            found.add("sentence")
    assert "sentence" in found


def test_a_network_of_the_diffusers_layout_cut_anywhere(tmp_path):
    checkpoints.write_diffusers(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "vocoder" / "model.safetensors"
    reading, size = convert.read_diffusers(tmp_path / "diffusers").states["hifigan"], path.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(path, length)
        with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is truncated or damaged"):
            reading()


def test_a_network_of_a_converted_folder_cut_anywhere(folder, tmp_path):
    checkpoint = convert.read_original(folder / "48k.pth")
    checkpoint.tokenizers = {}
    storage.write(checkpoint, tmp_path / "out")
    path = tmp_path / "out" / "clap_audio.safetensors"
    reading, size = storage.read(tmp_path / "out").states["clap_audio"], path.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(path, length)
        with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is truncated or damaged"):
            reading()


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        (None, "has 0 phoneme symbols, and its encoder knows 183"),
        (["a"], "has 1 phoneme symbols, and its encoder knows 183"),
        ("a" * 183, "'symbols' in"),
        ([1] * 183, "'symbols' in"),
    ],
    ids=["none", "one", "a text", "numbers"],
)
def test_symbols_that_are_not_the_encoder_s(folder, tmp_path, symbols, words):
    checkpoint = convert.read_original(folder / "speech.pth")
    checkpoint.tokenizers = {}
    storage.write(checkpoint, tmp_path / "out")
    checkpoints.change_json(tmp_path / "out" / "config.json", symbols=symbols)
    with pytest.raises(WeightsError) as caught:
        storage.read(tmp_path / "out")
    assert words in str(caught.value)


@pytest.mark.parametrize("network", ["clap_text", "unet", "vae", "hifigan"])
def test_a_converted_config_without_a_network_that_is_needed(folder, tmp_path, network):
    checkpoint = convert.read_original(folder / "48k.pth")
    checkpoint.tokenizers = {}
    storage.write(checkpoint, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["networks"][network]
    checkpoints.write_json(tmp_path / "out" / "config.json", config)
    with pytest.raises(WeightsError, match=f"lacks the networks '{network}'"):
        storage.read(tmp_path / "out")


# ---- writing: full disks, kills, two at once, memory


CONVERTING = """
import json, os, resource, signal, sys, time
from audioldm2.cli.main import main

source, work = sys.argv[1:]

def start(folder, *options, bytes_a_file=None):
    # a process that converts, with all that is imported already; what it says goes beside the folder
    child = os.fork()
    if not child:
        log = os.open(f"{work}/{folder}.{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(log, 1), os.dup2(log, 2)
        if bytes_a_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))
        code = 99
        try:
            code = main(["convert", source, f"{work}/{folder}", *options])
        finally:
            os._exit(code)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

fates = {}
for name, options in (("full", []), ("full-diffusers", ["--to", "diffusers"])):
    fates[name] = [ended(start(name, *options, bytes_a_file=300_000))]  # Python ignores SIGXFSZ
fates["two"] = [ended(child) for child in [start("two"), start("two")]]

began = time.monotonic()
fates["alone"] = [ended(start("alone"))]
whole = time.monotonic() - began
for moment in range(1, 6):
    child = start(f"killed-{moment}", *(["--to", "diffusers"] if moment % 2 else []))
    time.sleep(moment / 5 * whole)
    os.kill(child, signal.SIGKILL)
    fates[f"killed-{moment}"] = [ended(child)]
print(json.dumps(fates))
"""


def in_a_process(program: str, *arguments: object) -> str:
    """What a program prints that runs in a process of its own; it must end well."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    steady = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # freed memory is given back, as it is for larger models
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **steady})
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def converting(folder, tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """A folder in which the base model was converted time and again, and how each of the processes ended.

    On a disk that is full; two at once into one folder; and killed at five moments.
    """
    source, work = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("work")
    for name in ("base.pth", "tokenizer", "tokenizer_2"):
        (source / name).symlink_to(folder / name)
    return work, json.loads(in_a_process(CONVERTING, source / "base.pth", work))


def errors_in(work: Path, name: str) -> list[str]:
    """What the processes that wrote a folder complained of."""
    logs = [path.read_text() for path in work.glob(f"{name}.*.txt")]
    assert logs and not any("Traceback" in log for log in logs)
    return [line for log in logs for line in log.splitlines() if line.startswith("audioldm2: error: ")]


def assert_whole(folder: Path) -> None:
    """A converted folder or one in the diffusers layout that has every tensor."""
    checkpoint = storage.read(folder) if storage.is_converted(folder) else convert.read_diffusers(folder)
    assert_same(states_of(checkpoint), originals.make("base").states)


@posix
@pytest.mark.parametrize("name", ["full", "full-diffusers"])
def test_a_full_disk_is_told_and_leaves_nothing(converting, name):
    work, fates = converting
    assert fates[name] == [2] and not (work / name).exists()
    (error,) = errors_in(work, name)
    assert error.startswith(f"audioldm2: error: {work / name} cannot be written: ")
    assert "File too large" in error


@posix
def test_of_two_converters_into_one_folder_one_wins(converting):
    work, fates = converting
    assert sorted(fates["two"]) == [0, 2]
    assert_whole(work / "two")
    (error,) = errors_in(work, "two")
    assert error.startswith(f"audioldm2: error: {work / 'two'} exists already")


@posix
def test_whenever_it_is_killed_nothing_half_written_can_be_loaded(converting):
    work, fates = converting
    assert fates["alone"] == [0]
    assert_whole(work / "alone")
    killed = {name: codes for name, codes in fates.items() if name.startswith("killed")}
    assert [-9] in killed.values()
    for name, codes in killed.items():
        assert (work / name).exists() or codes == [-9]
        if (work / name).exists():
            assert_whole(work / name)


@posix
def test_what_the_killed_leave_is_no_checkpoint(converting):
    """But for one that was killed between its last file and its name. Those that failed leave nothing."""
    work, fates = converting
    drafts = list(work.glob(".audioldm2-*"))
    assert len(drafts) <= sum(codes == [-9] for codes in fates.values())
    for draft in drafts:
        try:
            audioldm2.load(draft, device="cpu")
        except WeightsError:
            continue
        assert_whole(draft)


def heavy() -> Iterator[tuple[str, Tensor]]:
    """The table of "base" with long tables of embeddings: 270 MB, of which 140 MB are to be written."""
    for key, tensor in tables("base").items():
        if key.endswith(("word_embeddings.weight", "wpe.weight", "shared.weight", "embed_tokens.weight")):
            yield key, torch.zeros(40_000_000 // 4 // tensor.shape[1], tensor.shape[1])
        else:
            yield key, tensor


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_memory_beside_the_mapped_file_stays_below_what_is_written(tmp_path):
    file = originals.save(tmp_path / "heavy.pth", dict(heavy()))
    assert file.stat().st_size > 200e6
    program = """
import sys, threading, time
from pathlib import Path
from audioldm2 import convert
from audioldm2.checkpoints import storage

source, out = sys.argv[1:]

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.002)

checkpoint = convert.read_original(Path(source))
checkpoint.tokenizers = {}
for dtype in (None, "float16"):
    done, before = threading.Event(), anonymous()
    peaks = [before]
    watcher = threading.Thread(target=watch)
    watcher.start()
    checkpoint = convert.read_original(Path(source))
    checkpoint.tokenizers = {}
    convert.differing_copies(checkpoint)
    storage.write(checkpoint, Path(f"{out}-{dtype}"), dtype=dtype and storage.DTYPES[dtype])
    done.set()
    watcher.join()
    written = sum(path.stat().st_size for path in Path(f"{out}-{dtype}").iterdir())
    print(max(peaks) - before, written)
"""
    for line in in_a_process(program, file, tmp_path / "out").splitlines():
        grown, written = map(int, line.split())
        assert written > 60e6
        assert grown <= 1.3 * written, f"{grown / 1e6:.0f} MB for {written / 1e6:.0f} MB"
