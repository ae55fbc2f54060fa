"""Both layouts load, in every form that the diffusers layout comes in."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import audioldm2
from audioldm2.convert import hifigan
from tests.support import checkpoints
from tests.support.checkpoints import (
    assert_same_states,
    change_state,
    loaded_states,
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


def test_layouts_have_equal_weights(diffusers: Path, converted: Path, states):
    assert_same_states(loaded_states(diffusers), states)
    assert_same_states(loaded_states(converted), states)


@pytest.mark.slow
def test_layouts_generate_equal_sounds(diffusers: Path, converted: Path):
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


def test_networks_are_frozen_and_in_evaluation_mode(converted: Path):
    networks = audioldm2.load(converted, device="cpu").networks._loaded.values()
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
@pytest.mark.parametrize("layout", ["diffusers", "converted"])
def test_every_tensor_is_memory_mapped_once(layout: str, request):
    folder = request.getfixturevalue(layout)
    found = loaded_states(folder)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            mapped.append([int(end, 16) for end in line.split()[0].split("-")])
    places = [tensor.data_ptr() for state in found.values() for tensor in state.values()]
    assert all(any(low <= place < high for low, high in mapped) for place in places)
    assert len(set(places)) == len(places)


def test_float16_keeps_overflowing_weights_in_float32(converted: Path):
    found = loaded_states(converted, dtype="float16")
    kept = {
        f"{name}.{key}"
        for name, state in found.items()
        for key, tensor in state.items()
        if tensor.dtype == torch.float32
    }
    assert kept == {"t5.blocks.0.ff.out.weight", "t5.blocks.1.ff.out.weight"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_bin_files_load(diffusers: Path, states, zipped: bool):
    for folder in FOLDERS:
        to_bin(weights_file(diffusers / folder), zipped)
    assert_same_states(loaded_states(diffusers), states)


def test_safetensors_are_preferred_to_bin(diffusers: Path, states):
    (diffusers / "text_encoder" / "pytorch_model.bin").write_bytes(b"not read")
    assert_same_states(loaded_states(diffusers), states)


def test_fp16_variant_loads_where_it_is_alone(diffusers: Path, states):
    for folder in FOLDERS:
        path = weights_file(diffusers / folder)
        save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors"))
        path.unlink()
    expected = {name: {k: v.half().float() for k, v in state.items()} for name, state in states.items()}
    assert_same_states(loaded_states(diffusers, dtype="float32"), expected)


def test_fp16_variant_is_chosen_only_for_float16(diffusers: Path):
    """The variant holds zeros, so its choice shows in the values."""
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
def test_shards_load(diffusers: Path, states, names: tuple[str, str]):
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
    assert_same_states(loaded_states(diffusers), states)


def test_gpt2_with_language_head_loads(diffusers: Path, states):
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
    assert_same_states(loaded_states(diffusers), states)


def test_t5_with_both_embedding_names_loads(diffusers: Path, states):
    path = weights_file(diffusers / "text_encoder_2")
    state = load_file(path)
    state["encoder.embed_tokens.weight"] = state["shared.weight"]  # one tensor, two names
    torch.save(state, path.with_name("pytorch_model.bin"))
    path.unlink()
    assert_same_states(loaded_states(diffusers), states)


@pytest.mark.parametrize("convolutions", [True, False])
def test_old_names_of_vae_attention_load(diffusers: Path, states, convolutions: bool):
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
    assert_same_states(loaded_states(diffusers), states)


def test_linear_unet_projections_load(diffusers: Path, states):
    def flatten(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            k: v.flatten(1) if "proj_in.weight" in k or "proj_out.weight" in k else v
            for k, v in state.items()
        }

    change_state(weights_file(diffusers / "unet"), flatten)
    assert_same_states(loaded_states(diffusers), states)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm_folds_exactly_as_torch_computes_it(diffusers: Path, weight_norm):
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


@pytest.mark.parametrize(
    ("folder", "wrapper"),
    [("unet", "_orig_mod."), ("language_model", "module."), ("vocoder", "module._orig_mod.")],
)
def test_names_of_module_wrappers_are_removed(diffusers: Path, states, folder: str, wrapper: str):
    """As `save_pretrained` of a compiled or distributed model leaves them."""
    change_state(
        weights_file(diffusers / folder),
        lambda state: {f"{wrapper}{key}": tensor for key, tensor in state.items()},
    )
    assert_same_states(loaded_states(diffusers), states)


def test_float64_scalars_of_clap_are_written_as_float32(diffusers: Path, states, tmp_path: Path):
    """The published file has its two logit scales so, and therefore calls itself float64."""
    change_state(
        weights_file(diffusers / "text_encoder"),
        lambda state: {k: v.double() if k.startswith("logit_scale") else v for k, v in state.items()},
    )
    assert_same_states(loaded_states(diffusers), states)
    checkpoints.write_converted(tmp_path / "out", diffusers)
    for name in ("clap_text", "clap_audio"):
        state = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_constant_buffers_are_ignored(diffusers: Path, states):
    block = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
    buffers = {
        "text_model.embeddings.position_ids": torch.arange(514)[None],
        "text_model.embeddings.token_type_ids": torch.zeros(1, 514, dtype=torch.int64),
        "audio_model.audio_encoder.batch_norm.num_batches_tracked": torch.tensor(7),
        block: torch.zeros(16, 16, dtype=torch.int64),
    }
    change_state(weights_file(diffusers / "text_encoder"), lambda state: state | buffers)
    assert_same_states(loaded_states(diffusers), states)


def test_heads_follow_config_or_training(diffusers: Path):
    heads = audioldm2.load(diffusers, device="cpu").networks.configs["unet"].heads
    assert heads == (2, 2)
    checkpoints.change_json(diffusers / "unet" / "config.json", attention_head_dim=[2, 3])
    assert audioldm2.load(diffusers, device="cpu").networks.configs["unet"].heads == (2, 3)
    with pytest.raises(
        ValueError, match=r"32 wide, but this model's levels are \(8, 12\) wide; it has to be 'config'\."
    ):
        audioldm2.load(diffusers, device="cpu", heads="trained")  # 32 wide, of 8 channels
    with pytest.raises(ValueError, match=r"heads is 'both'; it has to be one of config, trained\."):
        audioldm2.load(diffusers, heads="both")


def test_heads_of_converted_folder_cannot_change(converted: Path):
    with pytest.raises(
        ValueError, match=r"converted already, with \(2, 2\) heads\. Convert its source again"
    ):
        audioldm2.load(converted, device="cpu", heads="trained")


def test_model_without_clap_audio_generates_but_cannot_rank(converted: Path):
    path = converted / "config.json"
    networks = json.loads(path.read_text())["networks"]
    del networks["clap_audio"]
    checkpoints.change_json(path, networks=networks)
    model = audioldm2.load(converted)
    assert model.generate("dog", audio_length_in_s=0.32, num_inference_steps=1).audio.isfinite().all()
    with pytest.raises(ValueError, match=r"it has no clap_audio\. Ask for one waveform a prompt"):
        model.generate("dog", audio_length_in_s=0.32, num_waveforms_per_prompt=2)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_formats_load(converted: Path, states, version: int):
    path = converted / "config.json"
    content = json.loads(path.read_text()) | {"audioldm2_format": version}
    del content["unconditional"], content["normalized"]
    if version < 3:
        del content["seconds"]
    if version == 1:
        del content["symbols"], content["networks"]["unet"]["film_dim"]
        del content["networks"]["projection"]["positions"]
    checkpoints.write_json(path, content)
    assert_same_states(loaded_states(converted), states)
    model = audioldm2.load(converted, device="cpu")
    assert model.unconditional == "reference"
    assert version == 3 or model.sound.default_seconds == 10.0


def test_default_length_comes_from_checkpoint(converted: Path):
    checkpoints.change_json(converted / "config.json", seconds=0.5)
    model = audioldm2.load(converted, device="cpu")
    assert model.generate("dog", num_inference_steps=1).audio.shape[-1] == model.sample_rate // 2
    longer = model.generate("dog", audio_length_in_s=0.8, num_inference_steps=1)
    assert longer.audio.shape[-1] == 0.8 * model.sample_rate
