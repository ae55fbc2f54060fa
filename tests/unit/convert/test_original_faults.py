"""Original files with a fault in their table, and files of another kind: each ends in a WeightsError."""

import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioldm2 import NoiseSchedule, convert
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from tests.support import checkpoints, originals
from tests.support.originals import conversion_error, convert_table, table_error, table_of
from tests.support.sizes import full_or

UNET = "model.diffusion_model"


FIRST_OF = {  # network -> a tensor that the architecture is not read from
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
def test_rejects_extra_key(key):
    message = table_error(table_of("base", **{key: torch.ones(2)}))
    assert f"holds '{key}', not part of this architecture" in message


@pytest.mark.parametrize("network", FIRST_OF)
def test_rejects_missing_key(network):
    message = table_error(table_of("base", **{FIRST_OF[network]: ...}))
    assert " lacks '" in message or "does not fit its configuration: missing" in message


@pytest.mark.parametrize("network", FIRST_OF)
def test_rejects_wrong_shape(network):
    message = table_error(table_of("base", **{FIRST_OF[network]: torch.ones(5)}))
    assert "of the wrong shape" in message and "is (5,) and should be (" in message


@pytest.mark.parametrize("network", FIRST_OF)
def test_rejects_renamed_key(network):
    key = FIRST_OF[network]
    renamed = key.replace("bias", "shift").replace("layer_norm.weight", "layer_norm.gain")
    message = table_error(table_of("base", **{key: ..., renamed: table_of("base")[key]}))
    assert "shift" in message or "gain" in message


@pytest.mark.parametrize(
    ("network", "value"), [("unet", float("inf")), ("clap_text", float("nan")), ("hifigan", float("nan"))]
)
def test_nan_and_infinity_are_never_written(tmp_path, network, value):
    tensor = table_of("base")[FIRST_OF[network]].clone()
    tensor[-1] = value
    checkpoint = convert.read_original(
        originals.save(tmp_path / "file.pth", table_of("base", **{FIRST_OF[network]: tensor}))
    )
    checkpoint.tokenizers = {}
    with pytest.raises(WeightsError, match=rf"'{network}' in .*file\.pth holds NaN or infinity"):
        storage.write(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_rejects_unsupported_dtype(tmp_path, dtype):
    message = conversion_error(
        originals.save(
            tmp_path / "file.pth", table_of("t5", **{f"{UNET}.out.2.bias": torch.ones(3).to(dtype)})
        )
    )
    assert f"not floating-point 'conv_out.bias is {dtype}'" in message


@pytest.mark.parametrize("what", ["sparse", "meta"])
@pytest.mark.parametrize("key", [f"{UNET}.out.2.bias", "scale_factor", "betas"])
def test_rejects_sparse_and_meta_tensors(tmp_path, what, key):
    tensor = table_of("t5")[key]
    tensor = tensor.reshape(-1).to_sparse() if what == "sparse" else tensor.to("meta")
    conversion_error(originals.save(tmp_path / "file.pth", table_of("t5", **{key: tensor})))


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
def test_rejects_impossible_scaling_factor(factor):
    message = table_error(table_of("t5", scale_factor=FACTORS[factor]))
    assert "scale_factor" in message or "scaling_factor" in message


@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize(
    "betas",
    [torch.ones(0), torch.zeros(9), -torch.ones(9), torch.full((9,), 5.0), torch.full((9,), float("nan"))],
    ids=["none", "zeros", "negative", "above 1", "nan"],
)
def test_impossible_betas_are_rejected_or_replaced(betas):
    with originals.in_memory(table_of("t5", betas=betas)):
        try:
            checkpoint = convert.read_original(Path("file.pth"))
        except WeightsError as error:
            assert "betas" in str(error)
        else:
            assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()


def sorts_of(table: dict[str, Tensor]) -> dict[str, str]:
    """The first key of each sort: the end of its name, without numbers."""
    sorts: dict[str, str] = {}
    for key in table:
        sorts.setdefault(".".join(re.sub(r"\d+", "N", key).split(".")[-3:]), key)
    return sorts


SHAPES = [(), (0,), (3,), (2, 2), (1, 1, 1, 1, 1), (0, 0, 0)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize("kind", ["t5", "speech"])
def test_odd_shapes_convert_or_raise_weights_error(kind):
    """One tensor of each sort, by the end of its name, in one of the odd shapes; of speech, its own sorts."""
    table = table_of(kind)
    sorts = sorts_of(table)
    if kind == "speech":
        sorts = {sort: key for sort, key in sorts.items() if sort not in sorts_of(table_of("t5"))}
    wrong, outcomes = [], set()
    for turn, key in enumerate(sorted(sorts.values())[:: full_or(1, 3)]):
        try:
            convert_table(table | {key: torch.ones(SHAPES[turn % len(SHAPES)])})
            outcomes.add("model")
        except WeightsError as error:
            assert "file.pth" in str(error)
            outcomes.add("sentence")
        except Exception as error:
            wrong.append(f"{key} {SHAPES[turn % len(SHAPES)]}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(sorts)}", *wrong])
    assert outcomes == {"model", "sentence"}


@pytest.mark.parametrize("kind", ["t5", "48k"])
def test_rejects_any_missing_tensor(kind):
    made = originals.make(kind)
    used = sorted(made.table.keys() - made.unused)
    for key in random.Random(kind).sample(used, full_or(15, 8)):
        table_error({name: tensor for name, tensor in made.table.items() if name != key})


def resnet() -> dict[str, Tensor]:
    return {
        "conv1.weight": torch.ones(4, 3, 7, 7),
        "bn1.running_mean": torch.ones(4),
        "fc.bias": torch.ones(5),
    }


def stable_diffusion() -> dict[str, Tensor]:
    """Return a table whose UNet and autoencoder have our names, without a vocoder and with CLIP."""
    table = {key: tensor for key, tensor in table_of("t5").items() if ".vocoder." not in key}
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
def test_rejects_other_architecture(tmp_path, kind, wrapped):
    table, words = OTHER_KINDS[kind]
    torch.save({"state_dict": table()} if wrapped else table(), tmp_path / "file.pth")
    assert words in conversion_error(tmp_path / "file.pth")


NO_TABLES = {
    "a list": [torch.ones(1)],
    "a tensor": torch.ones(3),
    "a number": 3,
    "numbers": {"state_dict": {"betas": 0.1}},
    "a list in a table": {"state_dict": [torch.ones(1)]},
    "nothing in a table": {"state_dict": None},
    "a table in a table": {"state_dict": {"model": {"betas": torch.ones(1)}}},
    "numbers for keys": {"state_dict": {1: torch.ones(1)}},
    "numbers among the keys": lambda: {"state_dict": {**table_of("t5"), 7: torch.ones(1)}},
    "meta tensors": lambda: {"state_dict": {key: each.to("meta") for key, each in table_of("t5").items()}},
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_rejects_file_without_table(tmp_path, kind):
    content = NO_TABLES[kind]
    torch.save(content() if callable(content) else content, tmp_path / "file.pth")
    assert re.search("table of tensors|is not an original", conversion_error(tmp_path / "file.pth"))


def test_rejects_second_unet():
    """Two UNets: nothing says which to take."""
    second = {
        key.replace("model.", "model_2.", 1): each
        for key, each in table_of("t5").items()
        if key.startswith(UNET)
    }
    assert "not part of this architecture" in table_error(table_of("t5") | second)


@pytest.fixture(scope="module")
def speech(folder, tmp_path_factory) -> Path:
    """The converted folder of a speech model."""
    checkpoint = convert.read_original(folder / "speech.pth")
    checkpoint.tokenizers = {}
    out = tmp_path_factory.mktemp("speech") / "out"
    storage.write(checkpoint, out)
    return out


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        (None, "has 0 phoneme symbols, but its encoder has a vocabulary of 183"),
        (["a"], "has 1 phoneme symbols, but its encoder has a vocabulary of 183"),
        ("a" * 183, "'symbols' in"),
        ([1] * 183, "'symbols' in"),
    ],
    ids=["none", "one", "a text", "numbers"],
)
def test_rejects_wrong_phoneme_symbols(speech, tmp_path, symbols, words):
    for file in speech.iterdir():
        (tmp_path / file.name).symlink_to(file)
    content = storage.read_json(speech / "config.json") | {"symbols": symbols}
    (tmp_path / "config.json").unlink()
    checkpoints.write_json(tmp_path / "config.json", content)
    with pytest.raises(WeightsError) as caught:
        storage.read(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("network", ["clap_text", "unet", "vae", "hifigan"])
def test_rejects_converted_folder_without_required_network(speech, tmp_path, network):
    config = storage.read_json(speech / "config.json")
    del config["networks"][network]
    checkpoints.write_json(tmp_path / "config.json", config)
    with pytest.raises(WeightsError, match=f"lacks the networks '{network}'"):
        storage.read(tmp_path)
