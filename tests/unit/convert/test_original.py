"""Original `.pth` files: every tensor and every setting at its place, and what can be chosen."""

import re
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import audioldm2
from audioldm2 import NoiseSchedule, convert
from audioldm2.checkpoints import storage
from audioldm2.convert.original import Original
from audioldm2.errors import WeightsError
from tests.support import originals
from tests.support.checkpoints import assert_same_states, states_of
from tests.support.original_names import POSITIONS
from tests.support.originals import convert_file, convert_table, table_error, table_of

KINDS = tuple(originals.CONFIGS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_mapped_to_our_networks(read, kind):
    """CLAP and T5 come from the copy nearest to the top, the UNet from its weights, not their average."""
    checkpoint = read(kind)
    assert_same_states(states_of(checkpoint), originals.make(kind).states)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_read_from_shapes(read, kind):
    checkpoint = read(kind)
    assert checkpoint.configs == originals.make(kind).configs
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()
    assert checkpoint.clap_mel == {}


def read_table(table: dict[str, Tensor]) -> Original:
    with originals.in_memory(table):
        return convert.read_original(Path("a.pth"))


def test_scaling_factor_is_read():
    found = read_table(table_of("t5", scale_factor=torch.tensor(0.75)))
    assert found.configs["vae"].scaling_factor == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_every_dropped_tensor_has_a_reason(read, kind):
    checkpoint = read(kind)
    assert {move.source for move in checkpoint.dropped} == originals.make(kind).unused
    assert all(move.row.note for move in checkpoint.dropped)


def test_linear_schedule_is_recognised_by_betas():
    table = table_of("t5", betas=torch.linspace(0.001, 0.02, 500))
    schedule = NoiseSchedule(**read_table(table).schedule)
    assert schedule == replace(NoiseSchedule(), kind="linear", beta_start=0.001, beta_end=0.02, steps=500)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_published_schedule_is_recognised_in_every_dtype(name: str, dtype: torch.dtype):
    buffers = originals.schedule_buffers()
    table = {key: each for key, each in table_of("t5").items() if key not in buffers}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_table(table | {name: buffers[name].to(dtype)})
    assert NoiseSchedule(**found.schedule) == NoiseSchedule()


def test_linear_schedule_is_recognised_by_alpha_bar():
    wanted = replace(NoiseSchedule(), kind="linear", beta_start=0.001, beta_end=0.02, steps=500)
    table = {key: each for key, each in table_of("t5").items() if key != "betas"}
    found = read_table(table | {"alphas_cumprod": wanted.alpha_bar})
    assert NoiseSchedule(**found.schedule) == wanted


def test_unknown_schedule_warns_and_uses_the_published_one():
    table = table_of("t5", betas=torch.linspace(0.01, 0.1, 1000) ** 3)
    with pytest.warns(UserWarning, match=r"noise schedule \(betas 1e-06 to 0\.001\).*published one is used"):
        checkpoint = read_table(table)
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()


def test_speech_keeps_symbols_and_positions(read):
    checkpoint = read("speech")
    symbols = checkpoint.symbols
    assert len(symbols) == checkpoint.configs["phonemes"].vocabulary == 183
    places = {"_": 0, ";": 1, " ": 16, "A": 17, "a": 43, "\u0251": 69, "ᵻ": 177, "⚠": 182}
    assert {symbol: symbols[place] for symbol, place in places.items()} == {each: each for each in places}
    assert [place for place, symbol in enumerate(symbols) if symbol == "'"] == [174, 176]
    assert checkpoint.configs["projection"].positions == 30
    assert checkpoint.configs["gpt2"].new_vectors == 512
    ours = checkpoint.states["projection"]()["t5_positions"]
    theirs = originals.make("speech").table[POSITIONS]
    assert torch.equal(ours, theirs[0].T)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_converted_folder_holds_the_same_tensors(folder, tmp_path, kind):
    tokenizers = {"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"}
    before = convert.read_original(folder / f"{kind}.pth", tokenizers=tokenizers)
    storage.write(before, tmp_path / "out")
    after = storage.read(tmp_path / "out")
    assert_same_states(states_of(after), originals.make(kind).states)
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
def test_forms_of_a_table_convert_alike(tmp_path, form):
    file = tmp_path / ("a.safetensors" if form == "as safetensors" else "a.ckpt")
    FORMS[form](table_of("t5"), file)
    assert_same_states(convert_file(file), originals.make("t5").states)


def test_ema_takes_the_average(folder):
    expected = originals.make("base")
    found = states_of(convert.read_original(folder / "base.pth", ema=True))
    assert_same_states(found, expected.states | {"unet": expected.average})


def test_ema_does_not_drop_the_average(folder):
    left = {move.source for move in convert.read_original(folder / "t5.pth", ema=True).dropped}
    assert not any(key.startswith("model_ema.diffusion_model") for key in left)


@pytest.mark.parametrize("kept", [False, True], ids=["none", "all but one"])
def test_rejects_missing_average(kept):
    table = dict(originals.make("t5").table) if kept else table_of("t5")
    table.pop("model_ema.diffusion_modelout2bias", None)
    message = table_error(table, ema=True)
    assert "no running average of its UNet" in message and "convert it without --ema" in message
    assert_same_states(convert_table(table), originals.make("t5").states)


def test_rejects_average_of_another_shape():
    table = originals.make("t5").table | {"model_ema.diffusion_modelout2bias": torch.ones(4)}
    message = table_error(table, ema=True)
    assert "of the wrong shape 'conv_out.bias is (4,) and should be (3,)'" in message


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_equal_copies_are_not_reported(read, kind):
    assert convert.differing_copies(read(kind)) == []


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
def test_differing_copies_are_reported(kind, network, key):
    table = table_of(kind)
    checkpoint = read_table(table | {key: table[key] + 0.5})
    (message,) = convert.differing_copies(checkpoint)
    taken = {"CLAP": "clap.model", "T5": "cond_stage_models.1.model"}[network]
    assert f"two copies of {network} that differ, at '{taken}' (taken)" in message
    assert "1 of " in message or re.search(r"'[\w.]+' of \d+ tensors", message)
    if not key.startswith("clap."):  # the first is taken, whatever the other holds
        assert_same_states(states_of(checkpoint), originals.make(kind).states)


def test_copy_without_a_tensor_is_reported():
    key = "cond_stage_models.0.model.text_branch.pooler.dense.bias"
    checkpoint = read_table(table_of("48k", **{key: ...}))
    assert [message for message in convert.differing_copies(checkpoint) if "CLAP" in message]


def test_heads_are_32_wide_or_8_at_every_level(folder, read):
    assert read("base").configs["unet"].heads == (1, 2)
    file = folder / "base.pth"
    assert audioldm2.load(file, device="cpu", heads="config").networks.configs["unet"].heads == (8, 8)


def test_config_overrides_what_no_tensor_tells(folder):
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
    assert storage.clap_mel_of(checkpoint, "here").f_max == 12000
    assert config["schedule"] == {"beta_end": 0.02}, "the caller's config was changed"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"unit": {}}, "has an entry 'unit'; "),
        ({"unet": {"head": [2, 4]}}, "'unet' of the config file and this version differ in head"),
        ({"unet": {"heads": "two"}}, "heads of 'unet' of the config file is 'two'; it has to be a list"),
        ({"unet": {"heads": [2]}}, "has 2 and 1 and 2 entries; it has to have one entry for each level"),
        (
            {"unet": {"heads": [3, 3]}},
            "channels[1] of 'unet' of the config file is 64; it has to be a multiple of heads[1] (3)",
        ),
        ({"unet": {"channels": [32, 96]}}, "of the wrong shape"),
        ({"unet": [1]}, "'unet' of the config file is [1]; it has to be an object"),
        ({"schedule": {"beta_end": 2}}, "schedule"),
        ({"schedule": {"speed": 2}}, "differ in speed"),
        ({"clap_mel": {"f_max": 90000}}, "f_max of 'clap_mel' in"),
        ({"gpt2": {"heads": 3}}, "gpt2"),  # the file has none, so the entry would be ignored
    ],
)
def test_rejects_impossible_config(config, words):
    with pytest.raises(WeightsError) as caught:
        convert_table(table_of("t5"), config=config)
    assert words in str(caught.value)


def unknown_vocoder() -> dict[str, Tensor]:
    """Return a table whose vocoder has a kernel that upstream never used."""
    kernel = torch.randn(32, 16, 10)
    return table_of("t5", **{"first_stage_model.vocoder.ups.0.weight": kernel})


def test_vocoder_of_unknown_rates_asks_for_them():
    message = table_error(unknown_vocoder())
    assert "kernels (10, 16, 8, 4, 4), which no published one has" in message
    assert '{"hifigan": {"upsample_rates": [...], "sample_rate": ...}}' in message


def test_vocoder_rates_may_come_from_config():
    rates = {"hifigan": {"upsample_rates": [5, 4, 2, 2, 2], "sample_rate": 24000}}
    with originals.in_memory(unknown_vocoder()):
        vocoder = convert.read_original(Path("a.pth"), config=rates).configs["hifigan"]
        convert_file(Path("a.pth"), config=rates)
    assert (vocoder.hop, vocoder.sample_rate, vocoder.upsample_kernels) == (160, 24000, (10, 16, 8, 4, 4))
