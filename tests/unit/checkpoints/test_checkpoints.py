"""Checkpoints: the forms that load, the faults and their sentences, folders written whole or not at all."""

import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import audioldm2
from audioldm2 import clap_score, convert, files
from audioldm2.audio import CLAP_MEL
from audioldm2.checkpoints import storage, validate
from audioldm2.convert import hifigan
from audioldm2.errors import WeightsError
from audioldm2.models import NETWORKS, build_on_meta
from audioldm2.runtime import placement
from tests.support import checkpoints

FOLDERS = tuple(checkpoints.CONFIGS)
SCHEDULER = "scheduler/scheduler_config.json"
HEARING = "feature_extractor/preprocessor_config.json"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    states = checkpoints.write_diffusers(folder / "diffusers")
    checkpoints.write_converted(folder / "converted", folder / "diffusers")
    return folder, states


@pytest.fixture(scope="module")
def states(made) -> dict[str, dict[str, Tensor]]:
    """Our tensors of each network."""
    return made[1]


@pytest.fixture
def diffusers(made, tmp_path: Path) -> Path:
    """A whole checkpoint in the diffusers layout, to be changed at will."""
    return Path(shutil.copytree(made[0] / "diffusers", tmp_path / "diffusers"))


@pytest.fixture
def converted(made, tmp_path: Path) -> Path:
    """A whole converted checkpoint, to be changed at will."""
    return Path(shutil.copytree(made[0] / "converted", tmp_path / "converted"))


def weights_file(folder: Path) -> Path:
    return folder / checkpoints.weights_name(folder.name)


def change_state(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    state = change(load_file(path))
    path.unlink()  # the tensors are mapped from it: they stay, and a new file takes the name
    save_file(state, path)


def loaded_states(folder: Path, **arguments) -> dict[str, dict[str, Tensor]]:
    model = audioldm2.load(folder, device="cpu", **arguments)
    return {name: network.state_dict() for name, network in model.networks._loaded.items()}


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].keys() == expected[name].keys()
        for key, tensor in expected[name].items():
            assert torch.equal(found[name][key], tensor), f"{name}: {key}"


def message(folder: str | Path, **arguments) -> str:
    """The sentence of the WeightsError that loading raises."""
    with pytest.raises(WeightsError) as caught:
        audioldm2.load(folder, device="cpu", **arguments)
    return str(caught.value)


def to_bin(path: Path, zipped: bool = True) -> Path:
    """The weights of one folder as .bin, as parameters that have gradients; returns the file."""
    pickled = path.with_name("pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin")
    state = {key: nn.Parameter(tensor) for key, tensor in load_file(path).items()}
    torch.save(state, pickled, _use_new_zipfile_serialization=zipped)
    path.unlink()
    return pickled


# ---- what loads


def test_both_layouts_hold_the_same_weights(diffusers: Path, converted: Path, states):
    assert_same(loaded_states(diffusers), states)
    assert_same(loaded_states(converted), states)


def test_both_layouts_make_the_same_sound(diffusers: Path, converted: Path):
    one, other = (
        audioldm2.load(folder, device="cpu").generate(
            ["a dog", "rain"], num_inference_steps=2, audio_length_in_s=0.5, num_waveforms_per_prompt=2
        )
        for folder in (diffusers, converted)
    )
    torch.testing.assert_close(
        one.audio, other.audio, rtol=0, atol=1e-5
    )  # GPT-2's are transposed views there
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
    assert one.audio.shape == (2, 2, 8000) and one.audio.isfinite().all() and one.audio.std() > 1e-3


def test_no_network_has_a_gradient_or_trains(converted: Path):
    networks = audioldm2.load(converted, device="cpu").networks._loaded.values()
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_every_tensor_is_in_a_mapped_file_and_nothing_is_held_twice(layout: str, request):
    folder = request.getfixturevalue(layout)
    found = loaded_states(folder)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            mapped.append([int(end, 16) for end in line.split()[0].split("-")])
    places = [tensor.data_ptr() for state in found.values() for tensor in state.values()]
    assert all(any(low <= place < high for low, high in mapped) for place in places)
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("residence", [{}, {"offload": True}, {"low_memory": True}])
def test_a_damaged_network_is_told_at_once_wherever_weights_wait(converted: Path, residence: dict):
    cut(converted / "clap_audio.safetensors", -1)
    assert "clap_audio.safetensors is truncated or damaged" in message(converted, **residence)


def test_half_precision_keeps_what_overflows_in_float32(converted: Path):
    found = loaded_states(converted, dtype="float16")
    kept = {
        f"{name}.{key}"
        for name, state in found.items()
        for key, tensor in state.items()
        if tensor.dtype == torch.float32
    }
    assert kept == {"t5.blocks.0.ff.out.weight", "t5.blocks.1.ff.out.weight"}


# ---- the forms in which the diffusers layout comes


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_bin_files(diffusers: Path, states, zipped: bool):
    for folder in FOLDERS:
        to_bin(weights_file(diffusers / folder), zipped)
    assert_same(loaded_states(diffusers), states)


def test_safetensors_come_before_bin(diffusers: Path, states):
    (diffusers / "text_encoder" / "pytorch_model.bin").write_bytes(b"not read")
    assert_same(loaded_states(diffusers), states)


def test_an_fp16_variant_alone_is_taken(diffusers: Path, states):
    for folder in FOLDERS:
        path = weights_file(diffusers / folder)
        save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors"))
        path.unlink()
    expected = {name: {k: v.half().float() for k, v in state.items()} for name, state in states.items()}
    assert_same(loaded_states(diffusers, dtype="float32"), expected)


def test_an_fp16_variant_is_chosen_for_float16_alone(diffusers: Path):
    """Told apart by content: the variant holds zeros."""
    path = weights_file(diffusers / "projection_model")
    zeros = {key: torch.zeros_like(tensor).half() for key, tensor in load_file(path).items()}
    save_file(zeros, path.with_suffix(".fp16.safetensors"))
    for dtype, is_variant in (("float16", True), ("float32", False), ("bfloat16", False)):
        vector = loaded_states(diffusers, dtype=dtype)["projection"]["clap_sos"]
        assert (vector == 0).all().item() == is_variant


@pytest.mark.parametrize(
    "names",
    [
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
        ("model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"),
    ],
)
def test_shards(diffusers: Path, states, names: tuple[str, str]):
    path = weights_file(diffusers / "text_encoder_2")
    state = load_file(path)
    keys = sorted(state)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        save_file({key: state[key] for key in half}, path.with_name(name))
    where = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    checkpoints.write_json(
        path.with_name(f"{names[0].partition('-')[0]}.safetensors.index.json"), {"weight_map": where}
    )
    path.unlink()
    assert_same(loaded_states(diffusers), states)


def test_gpt2_with_a_language_head(diffusers: Path, states):
    """`GPT2LMHeadModel`: a prefix, token vectors, the head, and the masks that old versions stored."""
    change_state(
        weights_file(diffusers / "language_model"),
        lambda state: (
            {f"transformer.{key}": tensor for key, tensor in state.items()}
            | {
                "transformer.wte.weight": torch.ones(5, 12),
                "lm_head.weight": torch.ones(5, 12),
                "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
                "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            }
        ),
    )
    assert_same(loaded_states(diffusers), states)


def test_t5_with_both_names_of_its_embedding(diffusers: Path, states):
    path = weights_file(diffusers / "text_encoder_2")
    state = load_file(path)
    state["encoder.embed_tokens.weight"] = state["shared.weight"]  # one tensor, two names
    torch.save(state, path.with_name("pytorch_model.bin"))
    path.unlink()
    assert_same(loaded_states(diffusers), states)


@pytest.mark.parametrize("convolutions", [True, False])
def test_vae_attention_under_its_old_names(diffusers: Path, states, convolutions: bool):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for key, tensor in state.items():
            for new, name in old.items():
                if f".attentions.0.{new}." in key:
                    key = key.replace(new, name)
                    tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor
                    tensor = tensor[:, :, None, None] if convolutions and tensor.ndim == 2 else tensor
            renamed[key] = tensor.contiguous()
        return renamed

    change_state(weights_file(diffusers / "vae"), rename)
    assert any(".query." in key for key in load_file(weights_file(diffusers / "vae")))
    assert_same(loaded_states(diffusers), states)


def test_unet_projections_are_linear_or_convolutions(diffusers: Path, states):
    def flatten(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            k: v.flatten(1) if "proj_in.weight" in k or "proj_out.weight" in k else v
            for k, v in state.items()
        }

    change_state(weights_file(diffusers / "unet"), flatten)
    assert_same(loaded_states(diffusers), states)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm_is_folded_exactly_as_torch_computes_it(diffusers: Path, weight_norm):
    """On every convolution of the vocoder but the first and the last."""
    path = weights_file(diffusers / "vocoder")
    stored, effective = {}, {}
    for key, tensor in load_file(path).items():
        module, _, name = key.rpartition(".")
        if name != "weight" or not module.startswith(("upsampler", "resblocks")):
            stored[key] = effective[key] = tensor
            continue
        kind = nn.ConvTranspose1d if module.startswith("upsampler") else nn.Conv1d
        sizes = tensor.shape[:2] if kind is nn.ConvTranspose1d else tensor.shape[1::-1]
        layer = kind(*sizes, tensor.shape[2], bias=False)
        layer.weight.data = tensor
        layer = weight_norm(layer)
        for parameter in layer.parameters():  # lengths that are not those of the directions
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        layer(torch.zeros(1, sizes[0], 99))
        stored |= {f"{module}.{key}": tensor.detach() for key, tensor in layer.state_dict().items()}
        effective[key] = layer.weight.detach().clone()
    assert stored.keys() & {"upsampler.0.weight_g", "upsampler.0.parametrizations.weight.original0"}
    path.unlink()  # see change_state
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, path)
    found = hifigan.fold_weight_norm(load_file(path))
    assert found.keys() == effective.keys()
    assert all(torch.equal(found[key], effective[key]) for key in effective)
    loaded = loaded_states(diffusers)["hifigan"]["stages.0.upsample.weight"]
    assert torch.equal(loaded, effective["upsampler.0.weight"])


def test_scalars_of_clap_in_float64(diffusers: Path, states, tmp_path: Path):
    """The published file has its two logit scales so, and therefore calls itself float64."""
    change_state(
        weights_file(diffusers / "text_encoder"),
        lambda state: {k: v.double() if k.startswith("logit_scale") else v for k, v in state.items()},
    )
    assert_same(loaded_states(diffusers), states)
    checkpoints.write_converted(tmp_path / "out", diffusers)
    for name in ("clap_text", "clap_audio"):
        state = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_buffers_that_some_versions_store(diffusers: Path, states):
    block = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
    buffers = {
        "text_model.embeddings.position_ids": torch.arange(514)[None],
        "text_model.embeddings.token_type_ids": torch.zeros(1, 514, dtype=torch.int64),
        "audio_model.audio_encoder.batch_norm.num_batches_tracked": torch.tensor(7),
        block: torch.zeros(16, 16, dtype=torch.int64),
    }
    change_state(weights_file(diffusers / "text_encoder"), lambda state: state | buffers)
    assert_same(loaded_states(diffusers), states)


def test_heads_as_the_config_says_or_as_trained(diffusers: Path):
    heads = audioldm2.load(diffusers, device="cpu").networks.configs["unet"].heads
    assert heads == (2, 2)
    checkpoints.change_json(diffusers / "unet" / "config.json", attention_head_dim=[2, 3])
    assert audioldm2.load(diffusers, device="cpu").networks.configs["unet"].heads == (2, 3)
    with pytest.raises(
        ValueError, match=r"32 wide, but this model's levels are \(8, 12\) wide; use 'config'"
    ):
        audioldm2.load(diffusers, device="cpu", heads="trained")  # 32 wide, of 8 channels
    with pytest.raises(ValueError, match=r"heads is 'both'; it has to be 'config' or 'trained'\."):
        audioldm2.load(diffusers, heads="both")


def test_heads_of_a_converted_folder_are_settled(converted: Path):
    with pytest.raises(
        ValueError, match=r"converted already, with \(2, 2\) heads\. Convert its source again"
    ):
        audioldm2.load(converted, device="cpu", heads="trained")


# ---- what does not load: the folder


def test_a_folder_that_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    for folder in (tmp_path, str(tmp_path)):
        assert message(folder) == (
            f"{tmp_path} is not a checkpoint: it has neither a model_index.json (diffusers layout) "
            "nor a config.json of a converted model, nor a single original .pth file. "
            "Give the folder that holds 'unet', 'vae' and the others, or a hub id."
        )


def test_an_empty_folder(tmp_path: Path):
    assert "is not a checkpoint" in message(tmp_path)


def test_a_folder_of_one_network(diffusers: Path):
    assert "is not a checkpoint" in message(diffusers / "unet")


def test_a_file_instead_of_a_folder(converted: Path):
    path = converted / "unet.safetensors"
    assert message(path).startswith(f"{path} is not an original AudioLDM 2 checkpoint: it has no 'unet', ")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_network_is_missing(diffusers: Path, folder: str):
    shutil.rmtree(diffusers / folder)
    assert message(diffusers) == (
        f"{diffusers / folder} is missing: the checkpoint has no '{folder}'. "
        "Download it again; a whole checkpoint has every folder that its model_index.json names."
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_network_has_no_weights(diffusers: Path, folder: str):
    weights_file(diffusers / folder).rename(diffusers / folder / "weights.ckpt")
    assert message(diffusers) == (
        f"{diffusers / folder} has no weights; expected a file such as 'model.safetensors' or "
        "'diffusion_pytorch_model.safetensors' (or the same as .bin). Download the checkpoint again."
    )


@pytest.mark.parametrize("name", checkpoints.networks())
def test_a_converted_folder_misses_a_file(converted: Path, name: str):
    (converted / f"{name}.safetensors").unlink()
    assert message(converted) == f"{converted / name}.safetensors is missing; the checkpoint is not complete."


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
@pytest.mark.parametrize("which", ["clap", "t5"])
def test_tokenizers_are_missing(layout: str, which: str, request):
    folder = request.getfixturevalue(layout)
    names = {"diffusers": {"clap": "tokenizer", "t5": "tokenizer_2"}}.get(layout, {})
    tokenizer = folder / names.get(which, f"{which}_tokenizer")
    shutil.rmtree(tokenizer)
    assert message(folder).startswith(f"{tokenizer} must hold tokenizer.json, or ")
    if layout == "diffusers":
        with pytest.raises(WeightsError, match=r"must hold tokenizer\.json"):
            storage.write(convert.read_diffusers(folder), folder.parent / "out")
        assert not (folder.parent / "out").exists()


def test_tokenizers_of_another_checkpoint(converted: Path):
    config = json.loads((converted / "config.json").read_text())
    config["networks"]["t5"]["vocabulary"] = 130
    checkpoints.write_json(converted / "config.json", config)
    assert "vocabulary of 't5'" in message(converted)
    assert "is 130, and the tokenizers beside it need 141. Do the tokenizers' files belong" in message(
        converted
    )


# ---- what does not load: the weights


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [0, 4, 8, 30, -5000, -1])
@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_truncated_safetensors(layout: str, size: int, request):
    folder = request.getfixturevalue(layout)
    path = folder / "vae.safetensors" if layout == "converted" else weights_file(folder / "vae")
    cut(path, size)
    said = message(folder)
    assert said.startswith(f"{path} is truncated or damaged (")
    assert said.endswith("Copy, download or convert it again.")


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 50, b"<html>404</html>" * 9])
def test_garbage_in_place_of_safetensors(converted: Path, content: bytes):
    (converted / "unet.safetensors").write_bytes(content)
    assert f"{converted / 'unet.safetensors'} is truncated or damaged" in message(converted)


def test_a_folder_in_place_of_safetensors(converted: Path):
    (converted / "unet.safetensors").unlink()
    (converted / "unet.safetensors").mkdir()
    assert f"{converted / 'unet.safetensors'} is truncated or damaged" in message(converted)


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_a_key_too_many(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: state | {"class_embedding.weight": torch.ones(2)})
    said = message(folder)
    assert str(path if layout == "converted" else path.parent) in said
    assert "'class_embedding.weight'" in said
    assert ("not expected" if layout == "converted" else "not part of this architecture") in said


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_a_key_too_few(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: {k: v for k, v in state.items() if k != "conv_out.bias"})
    said = message(folder)
    assert said == (
        f"{path if layout == 'converted' else path.parent} does not fit its configuration: "
        "missing 'conv_out.bias'. "
        "Copy or download it again, or convert the source again with 'audioldm2 convert'."
    )


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_a_wrong_shape(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: state | {"conv_out.bias": torch.ones(4)})
    assert "of the wrong shape 'conv_out.bias is (4,) and should be (3,)'" in message(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_a_dtype_that_is_no_weight(converted: Path, dtype: torch.dtype):
    path = converted / "unet.safetensors"
    change_state(path, lambda state: state | {"conv_out.bias": torch.ones(3).to(dtype)})
    assert f"of a dtype that is no weight's 'conv_out.bias is {dtype}'" in message(converted)


def test_weights_of_the_wrong_rank(diffusers: Path):
    """A transposed or pointwise row passes it on, and the shapes tell."""
    path = weights_file(diffusers / "language_model")
    change_state(path, lambda state: state | {"h.0.attn.c_attn.weight": torch.ones(2, 3, 4)})
    assert "blocks.0.attn.qkv.weight is (2, 3, 4) and should be (36, 12)" in message(diffusers)


def test_half_of_a_weight_norm(diffusers: Path):
    path = weights_file(diffusers / "vocoder")
    for extra in ({}, {"conv_pre.weight_g": torch.ones(3, 1, 1)}):
        change_state(path, lambda s, extra=extra: s | {"conv_pre.weight_v": torch.ones(16, 16, 7), **extra})
        said = message(diffusers)
        assert said.startswith(f"{diffusers / 'vocoder'}: 'conv_pre.weight_v' has no 'weight_g' of its shape")


def test_weight_norm_beside_the_weight_itself(diffusers: Path):
    lengths = {"conv_pre.weight_v": torch.ones(16, 16, 7), "conv_pre.weight_g": torch.ones(16, 1, 1)}
    change_state(weights_file(diffusers / "vocoder"), lambda state: state | lengths)
    assert "'conv_pre.weight' and 'conv_pre.weight_v' are two values of one weight" in message(diffusers)


def test_a_missing_shard(diffusers: Path):
    path = weights_file(diffusers / "text_encoder_2")
    path.rename(path.with_name("model-00002-of-00003.safetensors"))
    assert message(diffusers) == (
        f"{path.parent} has 1 of 3 shards ('model-00002-of-00003.safetensors'). Download the missing ones."
    )


def test_a_tensor_in_two_shards(diffusers: Path):
    path = weights_file(diffusers / "text_encoder_2")
    for part in (1, 2):
        shutil.copy(path, path.with_name(f"model-0000{part}-of-00002.safetensors"))
    path.unlink()
    assert "model-00002-of-00002.safetensors repeats '" in message(diffusers)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code was run"))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(diffusers: Path, tmp_path: Path, how: str):
    path, marker = to_bin(weights_file(diffusers / "unet")), tmp_path / "marker"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"conv_in.weight": Trap(marker)}))
    else:
        torch.save({"conv_in.weight": Trap(marker)}, path)
    said = message(diffusers)
    assert said.startswith(
        f"{path} is not a plain file of tensors: it is damaged, or holds objects that would run"
    )
    assert said.endswith("Use a safetensors file.")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("size", [0, 1, 100, 3000, -3000, -100, -1])
def test_a_truncated_bin(diffusers: Path, size: int):
    path = to_bin(weights_file(diffusers / "unet"))
    cut(path, size)
    assert str(path) in message(diffusers)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"step": 3},
        {1: torch.ones(1)},
        {"state_dict": {"conv_in.weight": torch.ones(1)}},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
    ],
    ids=["list", "numbers", "keys", "nested", "sparse", "meta"],
)
def test_a_bin_of_something_else(diffusers: Path, content: object):
    path = to_bin(weights_file(diffusers / "unet"))
    torch.save(content, path)
    said = message(diffusers)
    assert said.startswith(f"{path} does not hold a plain table of tensors; it is another kind of file.")


# ---- what does not load: the configurations


@pytest.mark.parametrize("folder", ["unet", "text_encoder", "vocoder"])
def test_config_json_is_missing(diffusers: Path, folder: str):
    (diffusers / folder / "config.json").unlink()
    assert message(diffusers) == (
        f"{diffusers / folder / 'config.json'} is missing; the checkpoint is not complete."
    )


NO_JSON = ["", "{", "nan", "\x00", '{"a": 1,}', "[" * 100_000]


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize(
    "file",
    ["model_index.json", "vae/config.json", SCHEDULER, HEARING],
)
def test_a_file_that_is_no_json(diffusers: Path, file: str, content: str):
    (diffusers / file).write_text(content)
    assert message(diffusers).startswith(f"{diffusers / file} cannot be read as JSON (")


@pytest.mark.parametrize(
    ("content", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('""', "str")]
)
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "config.json"])
def test_a_file_that_is_no_object(diffusers: Path, converted: Path, file: str, content: str, kind: str):
    folder = converted if file == "config.json" else diffusers
    (folder / file).write_text(content)
    assert message(folder) == f"{folder / file} holds a {kind}, not an object. Copy or download it again."


OTHER_ARCHITECTURES = [
    ("model_index.json", "_class_name", "StableDiffusionPipeline"),
    ("unet/config.json", "_class_name", "UNet2DConditionModel"),
    ("unet/config.json", "resnet_time_scale_shift", "scale_shift"),
    ("unet/config.json", "class_embed_type", "timestep"),
    ("unet/config.json", "out_channels", 6),
    ("text_encoder_2/config.json", "feed_forward_proj", "relu"),
    ("text_encoder_2/config.json", "model_type", "bert"),
    ("language_model/config.json", "activation_function", "gelu"),
    ("language_model/config.json", "n_inner", 7),
    ("projection_model/config.json", "use_learned_position_embedding", False),
    ("vae/config.json", "_class_name", "AutoencoderTiny"),
    ("vae/config.json", "use_quant_conv", False),
    ("vocoder/config.json", "model_type", "univnet"),
    ("text_encoder/config.json", "projection_hidden_act", "gelu"),
    (SCHEDULER, "prediction_type", "v_prediction"),
    (SCHEDULER, "beta_schedule", "squaredcos_cap_v2"),
    (HEARING, "feature_extractor_type", "ASTFeatureExtractor"),
]


@pytest.mark.parametrize(("file", "field", "value"), OTHER_ARCHITECTURES)
def test_another_architecture(diffusers: Path, file: str, field: str, value: object):
    checkpoints.change_json(diffusers / file, **{field: value})
    said = message(diffusers)
    assert said.startswith(f"{diffusers / file}: the ")
    assert f"says {field} = {value!r}; only " in said
    assert said.endswith("This is another architecture than AudioLDM 2's.")


def test_a_clap_with_fusion(diffusers: Path):
    audio = checkpoints.CONFIGS["text_encoder"]["audio_config"] | {"enable_fusion": True}
    checkpoints.change_json(diffusers / "text_encoder" / "config.json", audio_config=audio)
    assert "says enable_fusion = True; only False is supported" in message(diffusers)


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        (
            "unet",
            "block_out_channels",
            ...,
            "has no 'block_out_channels'; is it the config.json of this network?",
        ),
        ("unet", "block_out_channels", 8, "is 8; it has to be a list, each entry a whole number."),
        ("unet", "block_out_channels", [], "has 2 entries for 0 levels"),
        ("unet", "block_out_channels", [8, 13], "channels (8, 13) have to be multiples of norm_groups (4)"),
        ("unet", "norm_num_groups", 0, "norm_groups of 'unet'"),
        (
            "unet",
            "attention_head_dim",
            5,
            "with transformers have to be multiples of heads (5, 5)",
        ),
        ("unet", "attention_head_dim", [2], "need one entry a level each"),
        (
            "unet",
            "attention_head_dim",
            "8",
            "is '8'; it has to be a whole number or a list, each entry a whole",
        ),
        ("unet", "cross_attention_dim", [[None, 12, 14]], "has 1 entries for 2 levels"),
        ("unet", "cross_attention_dim", [[None, 12, 14, 14]] * 2, "is not an AudioLDM 2 layer"),
        (
            "unet",
            "cross_attention_dim",
            [[None, 13, 14]] * 2,
            "dim of 'gpt2' is 12 and gpt2_dim of 'unet' is 13",
        ),
        ("unet", "cross_attention_dim", {"a": 1}, "it has to be a whole number or "),
        (
            "unet",
            "down_block_types",
            ["DownBlock2D", "Swirl2D"],
            "names a block 'Swirl2D'; known are DownBlock2D",
        ),
        ("unet", "layers_per_block", [1, 2], "differs between levels ((1, 2)), which is not supported"),
        ("unet", "in_channels", 4, "only 4 is supported"),
        ("vae", "latent_channels", 5, "latent_channels of 'unet' is 3 and latent_channels of 'vae' is 5"),
        ("vae", "scaling_factor", None, "is None; it has to be a finite number."),
        ("vae", "scaling_factor", 0, "is 0; it has to be above 0"),
        ("vae", "in_channels", True, "is True; it has to be a whole number."),
        ("text_encoder_2", "d_model", "14", "is '14'; it has to be a whole number."),
        ("text_encoder_2", "d_model", 1.5, "is 1.5; it has to be a whole number."),
        ("text_encoder_2", "num_layers", -1, "is -1; it has to be above 0, and 100 at most"),
        ("text_encoder_2", "num_layers", 10**9, "is 1000000000; it has to be above 0, and 100 at most"),
        ("text_encoder_2", "relative_attention_num_buckets", 2, "buckets is 2; it has to be at least 4"),
        ("language_model", "n_head", 5, "dim (12) has to be a multiple of heads (5)"),
        (
            "projection_model",
            "text_encoder_dim",
            9,
            "projection_dim of 'clap_text' is 10 and clap_dim of 'pro",
        ),
        (
            "vocoder",
            "upsample_rates",
            [5, 4],
            "upsample_rates and upsample_kernels need one entry a stage each",
        ),
        ("vocoder", "upsample_rates", [20, 4, 4, 2], "must not be below rates (20, 4, 4, 2)"),
        ("vocoder", "upsample_initial_channel", 8, "channels (8) cannot be halved 4 times"),
        ("vocoder", "resblock_kernel_sizes", [3, 4], "branch_kernels (3, 4) have to be odd"),
        ("vocoder", "resblock_dilation_sizes", [3, 1], "each entry a list, each entry a whole number"),
        ("vocoder", "model_in_dim", 17, "mels of 'hifigan' is 17, no multiple of the VAE's 4"),
        ("text_encoder", "text_config", [1], "is [1]; it has to be an object or null."),
    ],
)
def test_a_config_that_cannot_work(diffusers: Path, file: str, field: str, value: object, words: str):
    checkpoints.change_json(diffusers / file / "config.json", **{field: value})
    said = message(diffusers)
    assert words in said
    assert str(diffusers) in said


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        (SCHEDULER, "beta_start", ..., "has no 'beta_start'"),
        (SCHEDULER, "beta_start", "low", "is 'low'; it has to be a finite number."),
        (SCHEDULER, "beta_start", 0.5, "satisfy 0 < beta_start <= beta_end < 1"),
        (SCHEDULER, "num_train_timesteps", 10**12, "steps of 'schedule'"),
        (HEARING, "sampling_rate", 0, "sample_rate of 'clap_mel'"),
        (HEARING, "frequency_max", 30000, "f_max (30000) <= half the"),
    ],
)
def test_a_schedule_or_a_front_end_that_cannot_work(
    diffusers: Path, file: str, field: str, value: object, words: str
):
    checkpoints.change_json(diffusers / file, **{field: value})
    said = message(diffusers)
    assert words in said
    assert str(diffusers) in said


def test_a_scheduler_that_samples_otherwise_is_told(diffusers: Path):
    checkpoints.change_json(diffusers / SCHEDULER, timestep_spacing="trailing", clip_sample=True)
    with pytest.warns(UserWarning, match="'trailing'.*sounds are sampled as with the published"):
        audioldm2.load(diffusers, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("feature_size", 32, "makes 1001 frames of 32 mel bands"),
        ("hop_length", 100, "makes 4801 frames of 64 mel bands"),
    ],
)
def test_a_front_end_that_does_not_fit_forbids_scoring_but_not_sounds(
    diffusers: Path, field: str, value: int, words: str
):
    checkpoints.change_json(diffusers / HEARING, **{field: value})
    model = audioldm2.load(diffusers, device="cpu")
    for ask in (
        lambda: model.score("rain", torch.zeros(16000)),
        lambda: model.generate("rain", num_waveforms_per_prompt=2),
    ):
        with pytest.raises(WeightsError, match="sounds cannot be scored") as caught:
            ask()
        assert words in str(caught.value)


def test_a_front_end_that_ranks_otherwise_is_told(diffusers: Path):
    checkpoints.change_json(diffusers / "feature_extractor" / "preprocessor_config.json", truncation="fusion")
    with pytest.warns(
        UserWarning, match="says {'truncation': 'fusion'}; candidates are ranked as with the published"
    ):
        audioldm2.load(diffusers, device="cpu")


def test_what_a_scheduler_leaves_out_is_as_the_reference_takes_it(diffusers: Path):
    checkpoints.change_json(diffusers / SCHEDULER, steps_offset=..., clip_sample=..., set_alpha_to_one=...)
    with pytest.warns(UserWarning, match="'clip_sample': True.*as with the published"):
        assert audioldm2.load(diffusers, device="cpu").schedule.steps_offset == 0


def test_what_a_front_end_leaves_out_is_as_the_reference_takes_it(diffusers: Path):
    checkpoints.change_json(diffusers / HEARING, frequency_min=..., frequency_max=..., truncation=...)
    with pytest.warns(UserWarning, match="says {'truncation': 'fusion'}"):
        hearing = audioldm2.load(diffusers, device="cpu").hearing
    assert hearing == replace(CLAP_MEL, f_min=0.0)


def test_one_tensor_of_gpt2_that_stands_twice_is_refused(diffusers: Path):
    def twice(state: dict[str, Tensor]) -> dict[str, Tensor]:
        bare = {key.removeprefix("transformer."): each for key, each in state.items()}
        other = {f"transformer.{key}": each + 1 for key, each in bare.items() if key.startswith("ln_f")}
        return bare | other

    change_state(weights_file(diffusers / "language_model"), twice)
    assert "'ln_f.bias', 'ln_f.weight' stand here with and without 'transformer.'" in message(diffusers)


def test_an_encoder_with_an_embedding_of_its_own_is_refused(diffusers: Path):
    file, key = weights_file(diffusers / "text_encoder_2"), "encoder.embed_tokens.weight"
    change_state(file, lambda state: state | {key: state["shared.weight"].clone()})
    audioldm2.load(diffusers, device="cpu")
    change_state(file, lambda state: state | {key: state[key] + 1})
    assert "'shared.weight' and 'encoder.embed_tokens.weight' differ" in message(diffusers)


@pytest.mark.parametrize(("folder", "most"), [("tokenizer", 512), ("tokenizer_2", 128)])
def test_a_tokenizer_reads_as_many_tokens_as_its_file_says_and_no_more_than_published(
    diffusers: Path, folder: str, most: int
):
    file = diffusers / folder / "tokenizer_config.json"
    for said, read in ((40, 40), (10**30, most), (most + 1, most), (..., most)):
        settings = json.loads(file.read_text()) if file.is_file() else {}
        settings.pop("model_max_length", None)
        file.write_text(json.dumps(settings if said is ... else settings | {"model_max_length": said}))
        model = audioldm2.load(diffusers, device="cpu")
        tokenizers = {"tokenizer": model.clap_tokenizer, "tokenizer_2": model.t5_tokenizer}
        assert tokenizers[folder].max_length == read


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("padding_side", "left", "padding_side = 'left'; only 'right' is supported"),
        ("truncation_side", "left", "truncation_side = 'left'; only 'right' is supported"),
        ("model_max_length", 0, "model_max_length = 0; it has to be a number from"),
        ("model_max_length", "many", "model_max_length = 'many'; it has to be a number from"),
    ],
)
def test_a_tokenizer_that_cuts_or_pads_otherwise_is_refused(diffusers, folder, field, value, words):
    file = diffusers / folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | {field: value}))
    said = message(diffusers)
    assert words in said and str(file) in said


@pytest.mark.parametrize("version", [0, 4, "1", None, [1], 1.5])
def test_another_format_version(converted: Path, version: object):
    checkpoints.change_json(converted / "config.json", audioldm2_format=version)
    assert message(converted) == (
        f"{converted / 'config.json'} has format {version!r}; this version reads format 3. "
        "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
    )


@pytest.mark.parametrize(
    "field", ["source", "revision", "schedule", "clap_mel", "seconds", "symbols", "networks"]
)
def test_a_converted_config_lacks_a_field(converted: Path, field: str):
    checkpoints.change_json(converted / "config.json", **{field: ...})
    assert message(converted) == (
        f"{converted / 'config.json'} lacks, or should not have, '{field}'. "
        "Convert the source again with 'audioldm2 convert'."
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", 3),
        ("revision", []),
        ("schedule", []),
        ("clap_mel", "x"),
        ("networks", 5),
        ("networks", [[]]),
    ],
)
def test_a_converted_config_has_a_field_of_another_type(converted: Path, field: str, value: object):
    checkpoints.change_json(converted / "config.json", **{field: value})
    assert f"'{field}' in {converted / 'config.json'} is {value!r}; it has to be " in message(converted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"speed": 3},
            "the config of 'gpt2' in {} and this version differ in speed. Convert the source again",
        ),
        (
            {"heads": ...},
            "the config of 'gpt2' in {} and this version differ in heads. Convert the source again",
        ),
        ({"heads": "x"}, "heads of the config of 'gpt2' in {} is 'x'; it has to be a whole number."),
        ({"depth": -1}, "depth of 'gpt2' in {} is -1; it has to be above 0, and 100 at most."),
        ({"heads": 5}, "the config of 'gpt2' in {} cannot work: dim (12) has to be a multiple of heads (5)."),
        ({"depth": 3}, "does not fit its configuration: missing 'blocks.2.attn_norm.weight'"),
        ({"max_positions": 10**6}, "position_embedding.weight is (150, 12) and should be (1000000, 12)"),
    ],
)
def test_a_network_of_a_converted_config_that_cannot_work(converted: Path, changes: dict, words: str):
    path = converted / "config.json"
    config = json.loads(path.read_text())
    config["networks"]["gpt2"] |= changes
    config["networks"]["gpt2"] = {k: v for k, v in config["networks"]["gpt2"].items() if v is not ...}
    checkpoints.write_json(path, config)
    assert words.format(path) in message(converted)


def test_a_converted_config_with_an_unknown_network(converted: Path):
    checkpoints.change_json(converted / "config.json", networks={"gpt3": {}})
    assert "describes the networks ['gpt3']; this version knows ['clap_audio'," in message(converted)


@pytest.mark.parametrize("name", ["unet", "vae", "hifigan", "t5", "clap_text", "projection", "gpt2"])
def test_a_converted_config_without_a_network_that_is_needed(converted: Path, name: str):
    path = converted / "config.json"
    networks = json.loads(path.read_text())["networks"]
    del networks[name]
    checkpoints.change_json(path, networks=networks)
    assert message(converted).startswith(f"{path} lacks the networks '{name}', without which there is no")


def test_without_clap_s_audio_branch_sounds_are_made_and_not_ranked(converted: Path):
    path = converted / "config.json"
    networks = json.loads(path.read_text())["networks"]
    del networks["clap_audio"]
    checkpoints.change_json(path, networks=networks)
    model = audioldm2.load(converted)
    assert model.generate("dog", audio_length_in_s=0.32, num_inference_steps=1).audio.isfinite().all()
    with pytest.raises(ValueError, match=r"it has no clap_audio\. Ask for one waveform a prompt"):
        model.generate("dog", audio_length_in_s=0.32, num_waveforms_per_prompt=2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_older_format_still_loads(converted: Path, states, version: int):
    path = converted / "config.json"
    content = json.loads(path.read_text()) | {"audioldm2_format": version}
    del content["seconds"]
    if version == 1:
        del content["symbols"], content["networks"]["unet"]["film_dim"]
        del content["networks"]["projection"]["positions"]
    checkpoints.write_json(path, content)
    assert_same(loaded_states(converted), states)
    assert audioldm2.load(converted, device="cpu").sound.default_seconds == 10.0


def test_a_checkpoint_says_how_long_its_sounds_are(converted: Path):
    checkpoints.change_json(converted / "config.json", seconds=0.5)
    model = audioldm2.load(converted, device="cpu")
    assert model.generate("dog", num_inference_steps=1).audio.shape[-1] == model.sample_rate // 2
    longer = model.generate("dog", audio_length_in_s=0.8, num_inference_steps=1)
    assert longer.audio.shape[-1] == 0.8 * model.sample_rate


@pytest.mark.parametrize("seconds", [0, -1, 1e6])
def test_a_checkpoint_says_a_length_that_cannot_be(converted: Path, seconds: float):
    checkpoints.change_json(converted / "config.json", seconds=seconds)
    assert "it has to be above 0, and at most 86400" in message(converted)


def test_every_network_has_rules():
    assert set(validate.RULES) == {*NETWORKS, "schedule", "clap_mel"}
    for name, (_, kind) in NETWORKS.items():
        validate.check(name, kind(), "the published model")
    published = {name: NETWORKS[name][1]() for name in checkpoints.networks()}
    validate.check_together(published, "the published model")
    clap_score.require_front_end(published["clap_audio"], CLAP_MEL, "the published model")


# ---- nothing but a model or a WeightsError


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed, or the end cut off."""
    data = bytearray(content)
    if rng.random() < 0.1:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data))
        data[place] = rng.choice((data[place] ^ (1 << rng.randrange(8)), *b'0123456789"{}[],:-.e nft'))
    return bytes(data)


def attempt(folder: Path, waveforms: int = 2) -> bool:
    """Whether a folder loads; anything but a model or a WeightsError that names a file in it fails."""
    try:
        model = audioldm2.load(folder, device="cpu")
    except WeightsError as error:
        assert str(folder) in str(error) and str(error).rstrip(" )").endswith((".", "?", "again")), str(error)
        return False
    model.generate(
        "a",
        num_inference_steps=1,
        audio_length_in_s=model.sound.seconds(2),
        num_waveforms_per_prompt=waveforms,
    )
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("layout", "file", "times"),
    [
        ("converted", "config.json", 120),
        ("diffusers", "model_index.json", 25),
        ("diffusers", "unet/config.json", 40),
        ("diffusers", "text_encoder/config.json", 40),
        ("diffusers", "vocoder/config.json", 40),
        ("diffusers", SCHEDULER, 25),
        ("diffusers", HEARING, 25),
    ],
)
def test_any_damage_to_a_configuration_gives_a_model_or_a_sentence(
    layout: str, file: str, times: int, request
):
    folder, rng = request.getfixturevalue(layout), random.Random(file)
    content = (folder / file).read_bytes()
    outcomes = set()
    for _ in range(times):
        (folder / file).write_bytes(mutated(content, rng))
        outcomes.add(attempt(folder))
    assert False in outcomes


@pytest.mark.parametrize("name", ["projection", "gpt2"])
def test_any_damage_to_a_header_gives_tensors_or_a_sentence(converted: Path, name: str):
    path, rng = converted / f"{name}.safetensors", random.Random(name)
    checkpoint, content = storage.read(converted), path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(300):
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(mutated(content[:header], rng) + content[header:])
        try:
            placement.materialise(checkpoint, name, device=CPU, dtype=torch.float32)
        except WeightsError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("zipped", [True, False])
def test_any_damage_to_a_bin_gives_tensors_or_a_sentence(diffusers: Path, zipped: bool):
    path, rng = weights_file(diffusers / "projection_model"), random.Random(1)
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_suffix(".bin"), _use_new_zipfile_serialization=zipped)
    content = path.with_suffix(".bin").read_bytes()
    checkpoint = convert.read_diffusers(diffusers)
    for _ in range(200):
        path.with_suffix(".bin").unlink()
        path.with_suffix(".bin").write_bytes(mutated(content, rng))
        try:
            placement.materialise(checkpoint, "projection", device=CPU, dtype=torch.float32)
        except WeightsError as error:
            assert str(diffusers / "projection_model") in str(error)


ODD = [None, True, "x", -1, 0, 3, 0.5, 1e308, 10**30, [], [1], [0, -3], [[1]], {"a": 1}]


@pytest.mark.parametrize("name", checkpoints.networks())
def test_any_value_of_any_field_gives_a_model_or_a_sentence(converted: Path, name: str):
    path = converted / "config.json"
    config = json.loads(path.read_text())
    for field, before in config["networks"][name].items():
        for value in ODD:
            config["networks"][name][field] = value
            checkpoints.write_json(path, config)
            attempt(converted, waveforms=2 if name == "clap_audio" else 1)
        config["networks"][name][field] = before


small = st.integers(1, 6)


def lists(entry: st.SearchStrategy, least: int = 1, most: int = 3) -> st.SearchStrategy:
    return st.lists(entry, min_size=least, max_size=most).map(tuple)


ROLES = st.lists(st.sampled_from(["self_attn", "gpt2_attn", "t5_attn", "last_self_attn"]), unique=True).map(
    tuple
)
CONFIGURATIONS = {
    "unet": dict(
        latent_channels=small, channels=lists(st.sampled_from([2, 4, 6, 8, 9])), heads=lists(small),
        transformers=lists(ROLES), depth=st.integers(1, 2), layers=st.integers(1, 2), gpt2_dim=small,
        t5_dim=small, film_dim=st.integers(0, 3), norm_groups=st.sampled_from([1, 2]), eps=st.just(1e-5),
    ),
    "phonemes": dict(
        vocabulary=small, dim=small, depth=st.integers(1, 2), heads=small, ff_dim=small,
        ff_kernel=st.integers(1, 5), window=st.integers(1, 4), eps=st.just(1e-5),
    ),
    "vae": dict(
        mel_channels=st.integers(1, 2), latent_channels=small, channels=lists(small),
        layers=st.integers(1, 2), norm_groups=st.sampled_from([1, 2, 3]),
        scaling_factor=st.sampled_from([0.1, 2]),
    ),
    "hifigan": dict(
        mels=small, sample_rate=st.just(16000), channels=st.integers(1, 9), upsample_rates=lists(small),
        upsample_kernels=lists(small), branch_kernels=lists(st.integers(1, 5)),
        branch_dilations=lists(lists(st.integers(1, 3), 0), 0), slope=st.sampled_from([0, 0.1]),
        normalize_before=st.booleans(),
    ),
    "t5": dict(
        vocabulary=st.integers(1, 9), dim=small, depth=st.integers(1, 2), heads=small, head_dim=small,
        ff_dim=small, buckets=st.integers(1, 9), max_distance=st.integers(1, 9), eps=st.just(0),
    ),
    "clap_audio": dict(
        mels=st.sampled_from([4, 8, 12]), spec_size=st.sampled_from([8, 16, 20]),
        in_channels=st.integers(1, 2), patch_size=small, patch_stride=small, dim=small,
        depths=lists(st.integers(1, 2)), heads=lists(small),
        window=small, ff_ratio=st.sampled_from([0.1, 1, 2.5]), dropout=st.sampled_from([0, 0.5, 1]),
        eps=st.just(1e-5), projection_dim=small,
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGURATIONS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_a_config_that_passes_the_rules_builds_and_runs(name: str, data: st.DataObject):
    config = NETWORKS[name][1](**data.draw(st.fixed_dictionaries(CONFIGURATIONS[name])))
    try:
        validate.check(name, config, "here")
    except WeightsError:
        return
    network = NETWORKS[name][0](config).eval()
    assert build_on_meta(name, config).state_dict().keys() == network.state_dict().keys()
    if name == "unet":
        gpt2, t5 = torch.randn(2, 3, config.gpt2_dim), torch.randn(2, 4, config.t5_dim)
        x = torch.randn(2, config.latent_channels, 5, 3)
        mask, film = torch.ones(2, 4, dtype=torch.bool), torch.randn(2, config.film_dim)
        assert network(x, torch.tensor(7.0), gpt2, t5, mask, film).shape == x.shape
    elif name == "vae":
        scale, z = config.downsampling, torch.randn(1, config.latent_channels, 3, 2)
        assert network.decode(z).shape == (1, 1, 3 * scale, 2 * scale)
        assert network.encode(torch.randn(1, 1, 3 * scale, 2 * scale))[0].shape == z.shape
    elif name == "hifigan":
        assert network(torch.randn(2, 3, config.mels)).shape[1] >= 3 * config.hop
    elif name in ("t5", "phonemes"):
        ids = torch.zeros(2, 12, dtype=torch.int64)
        assert network(ids, torch.ones(2, 12, dtype=torch.bool)).shape == (2, 12, config.dim)
    else:
        frames = config.spec_size * (config.spec_size // config.mels)
        for time in {1, frames - 1, frames}:
            assert network(torch.randn(2, time, config.mels)).shape == (2, config.projection_dim)


# ---- writing, whole or not at all


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_converted_folder_holds_what_it_needs_and_no_more(converted: Path):
    networks = [f"{name}.safetensors" for name in checkpoints.networks()]
    assert left(converted) == sorted(["config.json", "clap_tokenizer", "t5_tokenizer", *networks])
    modes = {path.stat().st_mode & 0o777 for path in converted.iterdir() if path.is_file()}
    assert len(modes) == 1  # one reader can read all


def test_a_converted_folder_converts_again(converted: Path, states, tmp_path: Path):
    storage.write(storage.read(converted), tmp_path / "again")
    assert_same(loaded_states(tmp_path / "again"), states)
    assert (tmp_path / "again" / "config.json").read_text() == (converted / "config.json").read_text()


def test_a_damaged_folder_is_not_converted(converted: Path, tmp_path: Path):
    change_state(converted / "vae.safetensors", lambda state: state | {"extra": torch.ones(1)})
    with pytest.raises(WeightsError, match="not expected 'extra'"):
        storage.write(storage.read(converted), tmp_path / "again")
    assert left(tmp_path) == ["converted"]


def test_an_existing_folder_is_refused_before_anything_is_read(converted: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    seen = []
    with pytest.raises(FileExistsError, match=r"out exists already"):
        storage.write(storage.read(converted), tmp_path / "out", on_network=lambda *_: seen.append(1))
    assert left(tmp_path) == ["converted", "out"] and not seen


def test_force_replaces_a_folder(converted: Path, states, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("")
    storage.write(storage.read(converted), tmp_path / "out", force=True)
    assert left(tmp_path) == ["converted", "out"]
    assert not (tmp_path / "out" / "old.txt").exists()
    assert_same(loaded_states(tmp_path / "out"), states)


def test_force_replaces_the_very_folder_that_is_read(converted: Path, states):
    storage.write(storage.read(converted), converted, force=True)
    assert_same(loaded_states(converted), states)


def test_force_follows_a_link_and_refuses_a_file(converted: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    storage.write(storage.read(converted), tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "config.json").is_file()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="file is not a folder, and cannot be replaced by one"):
        storage.write(storage.read(converted), tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError()]
)
def test_a_failure_in_the_middle_leaves_nothing(
    converted: Path, tmp_path: Path, monkeypatch, force: bool, error: BaseException
):
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old.txt").write_text("")
    written = []

    def save(state: dict, path: Path, metadata: dict) -> None:
        if len(written) == 3:
            raise error
        written.append(path)
        save_file(state, path, metadata)

    monkeypatch.setattr(storage, "save_file", save)
    with pytest.raises(type(error)):
        storage.write(storage.read(converted), tmp_path / "out", force=force)
    assert len(written) == 3
    assert left(tmp_path) == ["converted", "out"] if force else ["converted"]
    assert not force or left(tmp_path / "out") == ["old.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_refuses_is_an_os_error(converted: Path, tmp_path: Path):
    """What safetensors raises there is no OSError, and no user reads its traceback."""
    program = """
import resource, signal, sys
from pathlib import Path
from audioldm2.checkpoints import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    storage.write(storage.read(Path(sys.argv[1])), Path(sys.argv[2]))
except OSError as error:
    print(error)
"""
    out = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", program, converted, out], capture_output=True, text=True)
    assert run.stdout.startswith(f"{out} cannot be written: ") and "File too large" in run.stdout, run.stderr
    assert left(tmp_path) == ["converted"]


def test_the_old_folder_is_back_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("")

    def fail(folder: Path, path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_take_place", fail)
    with pytest.raises(PermissionError), files.atomic_folder(tmp_path / "out", force=True):
        pass
    assert left(tmp_path) == ["out"] and left(tmp_path / "out") == ["old.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_writer_leaves_nothing_under_the_name(converted: Path, tmp_path: Path):
    program = """
import sys, time
from pathlib import Path
from audioldm2.checkpoints import storage

def wait(name, *_):
    if name == "unet":
        print("half", flush=True)
        time.sleep(60)

storage.write(storage.read(Path(sys.argv[1])), Path(sys.argv[2]), on_network=wait)
"""
    out = tmp_path / "out"
    writer = subprocess.Popen([sys.executable, "-c", program, converted, out], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not out.exists()
    (draft,) = (name for name in left(tmp_path) if name != "converted")
    assert draft.startswith(".audioldm2-")
    assert "is not a checkpoint" in message(tmp_path / draft)  # what says so is written last


def test_of_two_writers_at_once_one_wins_with_a_whole_folder(converted: Path, states, tmp_path: Path):
    both_are_writing, outcomes = threading.Barrier(2), []

    def write() -> None:
        first = True

        def wait(*_) -> None:
            nonlocal first
            if first:
                both_are_writing.wait(timeout=20)
            first = False

        try:
            storage.write(storage.read(converted), tmp_path / "out", on_network=wait)
            outcomes.append("wrote")
        except FileExistsError as error:
            outcomes.append(str(error))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    expected = f"{tmp_path / 'out'} exists already: another process wrote it meanwhile"
    assert sorted(outcomes) == sorted(["wrote", expected])
    assert left(tmp_path) == ["converted", "out"]
    assert_same(loaded_states(tmp_path / "out"), states)


def test_a_folder_that_appears_at_the_last_moment_is_told_as_such(tmp_path: Path, monkeypatch):
    """Between the last look and the renaming: the system says ENOTEMPTY, ENOTDIR or EEXIST."""
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        target.mkdir()
        (target / "theirs.txt").write_text("")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with (
        pytest.raises(FileExistsError, match="another process wrote it meanwhile"),
        files.atomic_folder(tmp_path / "out"),
    ):
        pass
    assert left(tmp_path) == ["out"] and left(tmp_path / "out") == ["theirs.txt"]


def test_a_missing_parent_is_told_before_networks_are_read(converted: Path, tmp_path: Path):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError):
        storage.write(storage.read(converted), tmp_path / "no" / "out")
    assert time.perf_counter() - start < 5
