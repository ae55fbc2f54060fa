"""Missing, misplaced and damaged files of a checkpoint, and what their errors say."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from tests.support import checkpoints
from tests.support.checkpoints import (
    change_state,
    load_error,
    weights_file,
)

FOLDERS = tuple(checkpoints.CONFIGS)


def to_bin(path: Path, zipped: bool = True) -> Path:
    """The weights of one folder as .bin, as parameters that have gradients; returns the file."""
    pickled = path.with_name("pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin")
    state = {key: nn.Parameter(tensor) for key, tensor in load_file(path).items()}
    torch.save(state, pickled, _use_new_zipfile_serialization=zipped)
    path.unlink()
    return pickled


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("residence", [{}, {"offload": True}, {"low_memory": True}])
def test_damage_is_reported_at_loading_in_every_residence(converted: Path, residence: dict):
    cut(converted / "clap_audio.safetensors", -1)
    assert "clap_audio.safetensors is truncated or damaged" in load_error(converted, **residence)


def test_rejects_folder_without_checkpoint(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    for folder in (tmp_path, str(tmp_path)):
        assert load_error(folder) == (
            f"{tmp_path} is not a checkpoint: it has neither a model_index.json (diffusers layout) "
            "nor a config.json of a converted model, nor a single original .pth file. "
            "Give the folder that holds 'unet', 'vae' and the others, or a hub id."
        )


def test_rejects_empty_folder(tmp_path: Path):
    assert "is not a checkpoint" in load_error(tmp_path)


def test_rejects_folder_of_one_network(diffusers: Path):
    assert "is not a checkpoint" in load_error(diffusers / "unet")


def test_rejects_one_network_file(converted: Path):
    path = converted / "unet.safetensors"
    assert load_error(path).startswith(f"{path} is not an original AudioLDM 2 checkpoint: it has no 'unet', ")


@pytest.mark.parametrize("folder", FOLDERS)
def test_rejects_missing_network_folder(diffusers: Path, folder: str):
    shutil.rmtree(diffusers / folder)
    assert load_error(diffusers) == (
        f"{diffusers / folder} is missing: the checkpoint has no '{folder}'. "
        "Download it again; a whole checkpoint has every folder that its model_index.json names."
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_rejects_network_folder_without_weights(diffusers: Path, folder: str):
    weights_file(diffusers / folder).rename(diffusers / folder / "weights.ckpt")
    assert load_error(diffusers) == (
        f"{diffusers / folder} has no weights; expected a file such as 'model.safetensors' or "
        "'diffusion_pytorch_model.safetensors' (or the same as .bin). Download the checkpoint again."
    )


@pytest.mark.parametrize("name", checkpoints.networks())
def test_rejects_missing_network_file(converted: Path, name: str):
    (converted / f"{name}.safetensors").unlink()
    assert (
        load_error(converted) == f"{converted / name}.safetensors is missing; the checkpoint is not complete."
    )


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
@pytest.mark.parametrize("which", ["clap", "t5"])
def test_rejects_missing_tokenizer(layout: str, which: str, request):
    folder = request.getfixturevalue(layout)
    names = {"diffusers": {"clap": "tokenizer", "t5": "tokenizer_2"}}.get(layout, {})
    tokenizer = folder / names.get(which, f"{which}_tokenizer")
    shutil.rmtree(tokenizer)
    assert load_error(folder).startswith(f"{tokenizer} must hold tokenizer.json, or ")
    if layout == "diffusers":
        with pytest.raises(WeightsError, match=r"must hold tokenizer\.json"):
            storage.write(convert.read_diffusers(folder), folder.parent / "out")
        assert not (folder.parent / "out").exists()


def test_rejects_tokenizer_with_larger_vocabulary(converted: Path):
    config = json.loads((converted / "config.json").read_text())
    config["networks"]["t5"]["vocabulary"] = 130
    checkpoints.write_json(converted / "config.json", config)
    assert "vocabulary of 't5'" in load_error(converted)
    assert "is 130, and the tokenizers beside it need 141. Do the tokenizers' files belong" in load_error(
        converted
    )


@pytest.mark.parametrize("size", [0, 4, 8, 30, -5000, -1])
@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_rejects_truncated_safetensors(layout: str, size: int, request):
    folder = request.getfixturevalue(layout)
    path = folder / "vae.safetensors" if layout == "converted" else weights_file(folder / "vae")
    cut(path, size)
    message = load_error(folder)
    assert message.startswith(f"{path} is truncated or damaged (")
    assert message.endswith("Copy, download or convert it again.")


@pytest.mark.parametrize("content", [b"", bytes(3), bytes(range(256)) * 50])
def test_rejects_garbage_as_safetensors(converted: Path, content: bytes):
    (converted / "unet.safetensors").write_bytes(content)
    assert f"{converted / 'unet.safetensors'} is truncated or damaged" in load_error(converted)


def test_rejects_folder_as_safetensors(converted: Path):
    (converted / "unet.safetensors").unlink()
    (converted / "unet.safetensors").mkdir()
    assert f"{converted / 'unet.safetensors'} is truncated or damaged" in load_error(converted)


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_rejects_extra_key(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: state | {"class_embedding.weight": torch.ones(2)})
    message = load_error(folder)
    assert str(path if layout == "converted" else path.parent) in message
    assert "'class_embedding.weight'" in message
    assert ("not expected" if layout == "converted" else "not part of this architecture") in message


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_rejects_missing_key(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: {k: v for k, v in state.items() if k != "conv_out.bias"})
    message = load_error(folder)
    assert message == (
        f"{path if layout == 'converted' else path.parent} does not fit its configuration: "
        "missing 'conv_out.bias'. "
        "Copy or download it again, or convert the source again with 'audioldm2 convert'."
    )


@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_rejects_wrong_shape(layout: str, request):
    folder = request.getfixturevalue(layout)
    path = folder / "unet.safetensors" if layout == "converted" else weights_file(folder / "unet")
    change_state(path, lambda state: state | {"conv_out.bias": torch.ones(4)})
    assert "of the wrong shape 'conv_out.bias is (4,) and should be (3,)'" in load_error(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_rejects_integer_weights(converted: Path, dtype: torch.dtype):
    path = converted / "unet.safetensors"
    change_state(path, lambda state: state | {"conv_out.bias": torch.ones(3).to(dtype)})
    assert f"not floating-point 'conv_out.bias is {dtype}'" in load_error(converted)


def test_rejects_wrong_rank(diffusers: Path):
    """The transform of the row passes it on, and the comparison of shapes reports it."""
    path = weights_file(diffusers / "language_model")
    change_state(path, lambda state: state | {"h.0.attn.c_attn.weight": torch.ones(2, 3, 4)})
    assert "blocks.0.attn.qkv.weight is (2, 3, 4) and should be (36, 12)" in load_error(diffusers)


def test_rejects_direction_without_length(diffusers: Path):
    path = weights_file(diffusers / "vocoder")
    for extra in ({}, {"conv_pre.weight_g": torch.ones(3, 1, 1)}):
        change_state(path, lambda s, extra=extra: s | {"conv_pre.weight_v": torch.ones(16, 16, 7), **extra})
        message = load_error(diffusers)
        assert message.startswith(
            f"{diffusers / 'vocoder'}: 'conv_pre.weight_v' has no 'weight_g' of its shape"
        )


def test_rejects_weight_norm_beside_weight(diffusers: Path):
    lengths = {"conv_pre.weight_v": torch.ones(16, 16, 7), "conv_pre.weight_g": torch.ones(16, 1, 1)}
    change_state(weights_file(diffusers / "vocoder"), lambda state: state | lengths)
    assert "'conv_pre.weight' and 'conv_pre.weight_v' are two values of one weight" in load_error(diffusers)


def test_rejects_missing_shard(diffusers: Path):
    path = weights_file(diffusers / "text_encoder_2")
    path.rename(path.with_name("model-00002-of-00003.safetensors"))
    assert load_error(diffusers) == (
        f"{path.parent} has 1 of 3 shards ('model-00002-of-00003.safetensors'). Download the missing ones."
    )


def test_rejects_tensor_in_two_shards(diffusers: Path):
    path = weights_file(diffusers / "text_encoder_2")
    for part in (1, 2):
        shutil.copy(path, path.with_name(f"model-0000{part}-of-00002.safetensors"))
    path.unlink()
    assert "model-00002-of-00002.safetensors repeats '" in load_error(diffusers)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code was run"))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_rejects_pickle_with_code_without_running_it(diffusers: Path, tmp_path: Path, how: str):
    path, marker = to_bin(weights_file(diffusers / "unet")), tmp_path / "marker"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"conv_in.weight": Trap(marker)}))
    else:
        torch.save({"conv_in.weight": Trap(marker)}, path)
    message = load_error(diffusers)
    assert message.startswith(f"{path} holds objects beside its tensors, of ")
    assert "'pathlib." in message and "they would run code when read, which is refused" in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("size", [0, 1, 100, 3000, -3000, -100, -1])
def test_rejects_truncated_bin(diffusers: Path, size: int):
    path = to_bin(weights_file(diffusers / "unet"))
    cut(path, size)
    assert str(path) in load_error(diffusers)


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
def test_rejects_bin_without_table(diffusers: Path, content: object):
    path = to_bin(weights_file(diffusers / "unet"))
    torch.save(content, path)
    message = load_error(diffusers)
    assert message.startswith(f"{path} does not hold a plain table of tensors; it is another kind of file.")


def test_rejects_gpt2_tensor_with_and_without_prefix(diffusers: Path):
    def twice(state: dict[str, Tensor]) -> dict[str, Tensor]:
        bare = {key.removeprefix("transformer."): each for key, each in state.items()}
        other = {f"transformer.{key}": each + 1 for key, each in bare.items() if key.startswith("ln_f")}
        return bare | other

    change_state(weights_file(diffusers / "language_model"), twice)
    assert (
        "'ln_f.bias', 'ln_f.weight' are stored both with and without the prefix 'transformer.'"
        in load_error(diffusers)
    )


def test_rejects_t5_with_two_embeddings(diffusers: Path):
    file, key = weights_file(diffusers / "text_encoder_2"), "encoder.embed_tokens.weight"
    change_state(file, lambda state: state | {key: state["shared.weight"].clone()})
    audioldm2.load(diffusers, device="cpu")
    change_state(file, lambda state: state | {key: state[key] + 1})
    assert "'shared.weight' and 'encoder.embed_tokens.weight' differ" in load_error(diffusers)
