"""A loaded model with adapters: before, after and between requests, wherever its weights wait."""

import copy
import pickle
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2
from audioldm2.adapters import lora, writing
from audioldm2.adapters.model import BaseWarning
from audioldm2.errors import WeightsError
from tests.support.adapters import random_adapter

SETTINGS: dict[str, Any] = dict(seed=3, num_inference_steps=1, audio_length_in_s=0.32)
FRAMES = 8  # of latents, as SETTINGS asks for
RESIDENCES = [{}, {"offload": True}, {"low_memory": True}]


@pytest.fixture(scope="module")
def files(tiny_model: AudioLDM2, tmp_path_factory) -> dict[str, Path]:
    """Two adapters: of attention in the UNet, and of all layers in three networks."""
    folder, configs = tmp_path_factory.mktemp("adapters"), tiny_model.networks.configs
    writing.write(random_adapter(configs), folder / "oud", configs)
    whole = random_adapter(configs, "all", networks=lora.NETWORKS, seed=1)
    writing.write(whole, folder / "rain", configs)
    return {name: folder / name for name in ("oud", "rain")}


@pytest.fixture
def model(tiny_folder: Path) -> AudioLDM2:
    return audioldm2.load(tiny_folder, device="cpu", dtype="float32", ops="reference")


def latents(model: AudioLDM2) -> Tensor:
    """What `generate` makes with SETTINGS, before it is decoded."""
    conditioning = model.encode_prompt("a dog barks", "")
    noise = torch.randn(model.sound.latents(1, FRAMES), generator=torch.Generator().manual_seed(3))
    return model.denoise(conditioning, noise, num_inference_steps=1)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("residence", RESIDENCES, ids=["device", "offload", "disk"])
def test_adapters_come_and_go_between_requests(residence: dict, tiny_folder: Path, files):
    model = audioldm2.load(tiny_folder, device="cpu", **residence)
    before = latents(model)
    assert model.load_lora(files["oud"]) == "oud"
    with_oud = latents(model)
    model.load_lora(files["rain"], 0.5)
    with_both = latents(model)
    assert distance(with_oud, before) > 0.02 and distance(with_both, with_oud) > 0.02
    model.unload_lora("rain")
    assert torch.equal(latents(model), with_oud)
    model.unload_lora()
    assert torch.equal(latents(model), before)

    other = audioldm2.load(tiny_folder, device="cpu")  # before the first request, in this residence's place
    other.load_lora(files["oud"])
    other.load_lora(files["rain"], 0.5)
    assert torch.equal(latents(other), with_both)


def test_weight(model: AudioLDM2, files):
    before = latents(model)
    model.load_lora(files["oud"], weight=0)
    assert torch.equal(latents(model), before)
    model.set_lora_weight("oud", 1.5)
    strong = latents(model)
    model.unload_lora()
    model.load_lora(files["oud"], weight=1.5)
    assert torch.equal(latents(model), strong) and distance(strong, before) > 0.02


def test_weights_are_shared_with_the_model_without_adapters(model: AudioLDM2, files):
    with model.networks.running("unet") as plain:
        model.load_lora(files["oud"])
        with model.networks.running("unet") as adapted:
            weight = adapted.get_parameter("middle.layer.self_attn.blocks.0.self_attn.query.base.weight")
            original = plain.get_parameter("middle.layer.self_attn.blocks.0.self_attn.query.weight")
            assert weight.data_ptr() == original.data_ptr()
            assert adapted.conv_in.weight.data_ptr() == plain.conv_in.weight.data_ptr()


@pytest.mark.exhaustive
@pytest.mark.parametrize("residence", RESIDENCES, ids=["device", "offload", "disk"])
def test_running_request_keeps_its_adapters(residence: dict, tiny_folder: Path, files):
    model = audioldm2.load(tiny_folder, device="cpu", **residence)
    before = latents(model)
    stages: list[str] = []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        if stage == "encoding the prompt":
            model.load_lora(files["rain"])  # as another thread might

    result = model.generate("a dog barks", on_stage=on_stage, **SETTINGS)
    assert torch.equal(result.latents, before) and result.record()["adapters"] == []
    after = model.generate("a dog barks", **SETTINGS)
    assert distance(after.latents, before) > 0.02 and after.record()["adapters"][0]["name"] == "rain"


@pytest.mark.slow
def test_threads_get_the_sounds_of_the_adapters_they_began_with(model: AudioLDM2, files):
    expected = {(): latents(model)}
    model.load_lora(files["oud"])
    expected["oud",] = latents(model)
    results: list[audioldm2.Result] = []

    def generate() -> None:
        results.extend(model.generate("a dog barks", **SETTINGS) for _ in range(3))

    threads = [threading.Thread(target=generate) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        model.unload_lora()
        model.load_lora(files["oud"])
    for result in results:
        names = tuple(each["name"] for each in result.record()["adapters"])
        assert torch.equal(result.latents, expected[names])
    assert len(results) == 6


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["converted", "diffusers"])
def test_merged_model_computes_the_same(layout: str, model: AudioLDM2, files, tmp_path: Path):
    model.load_lora(files["oud"], 0.7)
    model.load_lora(files["rain"], 0.3)
    unmerged = latents(model)
    model.merge_lora()
    assert distance(latents(model), unmerged) < 1e-5
    model.save(tmp_path / "merged", layout=layout)
    written = audioldm2.load(tmp_path / "merged", device="cpu", dtype="float32", ops="reference")
    assert distance(latents(written), unmerged) < 1e-5
    assert not written.adapters and not model.adapters
    assert [(each["name"], each["merged"], each["weight"]) for each in model.describe()["adapters"]] == [
        ("oud", True, 0.7), ("rain", True, 0.3),
    ]  # fmt: skip
    assert written.describe()["adapters"] == model.describe()["adapters"]
    model.load_lora(files["oud"])  # on top of the merged weights
    assert distance(latents(model), unmerged) > 0.02
    model.unload_lora()
    assert distance(latents(model), unmerged) < 1e-5


def test_model_with_loaded_adapters_is_not_saved(model: AudioLDM2, files, tmp_path: Path):
    model.load_lora(files["oud"])
    with pytest.raises(ValueError, match=r"adapters are \['oud'\]; it has to be merged before"):
        model.save(tmp_path / "merged")
    assert not any(tmp_path.iterdir())


def pickled(model: AudioLDM2) -> AudioLDM2:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "duplicate, residence",
    zip((copy.deepcopy, pickled, pickled), RESIDENCES, strict=True),
    ids=["copy-device", "pickle-offload", "pickle-disk"],
)
def test_copies_have_the_adapters(duplicate, residence: dict, tiny_folder: Path, files):
    model = audioldm2.load(tiny_folder, device="cpu", **residence)
    before = latents(model)
    model.load_lora(files["oud"])
    twin = duplicate(model)
    assert torch.equal(latents(twin), latents(model))
    twin.unload_lora()
    assert torch.equal(latents(twin), before)
    assert [each.name for each in model.adapters] == ["oud"]


def test_bfloat16_model(tiny_folder: Path, files):
    model = audioldm2.load(tiny_folder, device="cpu", dtype="bfloat16")
    before = latents(model)
    model.load_lora(files["oud"])
    with model.networks.running("unet") as unet:
        assert {each.dtype for each in unet.parameters()} == {torch.bfloat16}
    assert distance(latents(model), before) > 0.02
    model.unload_lora()
    assert torch.equal(latents(model), before)


def test_record_says_which_adapters(model: AudioLDM2, files):
    model.load_lora(files["oud"], 0.25, name="strings")
    (found,) = model.generate("a dog barks", **SETTINGS).record()["adapters"]
    assert found.pop("sha256") == model.adapters[0].sha256
    assert found == {
        "name": "strings", "weight": 0.25, "file": str(files["oud"]), "base_model": "tiny", "license": "MIT",
        "merged": False,
    }  # fmt: skip


def test_mistakes_change_nothing(model: AudioLDM2, files, tmp_path: Path):
    model.load_lora(files["oud"])
    before = latents(model)
    for wrong, words in [
        (lambda: model.load_lora(files["oud"]), "name is 'oud'; it has to differ from the adapters"),
        (lambda: model.load_lora(files["rain"], weight=float("nan")), "weight is nan; it has to be a number"),
        (lambda: model.load_lora(files["rain"], name=""), "name is ''; it has to be a text"),
        (lambda: model.load_lora(5), "source is 5; it has to be the folder"),
        (lambda: model.unload_lora("rain"), "name is 'rain'; it has to be one of oud"),
        (lambda: model.set_lora_weight("rain", 1), "name is 'rain'; it has to be one of oud"),
        (lambda: model.save(tmp_path / "x", layout="onnx"), "layout is 'onnx'; it has to be one of"),
    ]:
        with pytest.raises(ValueError) as caught:
            wrong()
        assert words in str(caught.value)
    with pytest.raises(WeightsError, match="there is no adapter 'nowhere'"):
        model.load_lora("nowhere")
    assert torch.equal(latents(model), before)
    model.unload_lora()
    with pytest.raises(ValueError, match="name is 'rain'; it has to be that of a loaded adapter"):
        model.unload_lora("rain")


def test_run_gives_its_name_to_its_adapter(model: AudioLDM2, files, tmp_path: Path):
    (tmp_path / "run").mkdir()
    shutil.copytree(files["oud"], tmp_path / "run" / "adapter")
    assert model.load_lora(tmp_path / "run" / "adapter") == "run"


@pytest.mark.parametrize("expected", ["own", "other", "none"])
def test_adapter_of_other_weights_warns(expected: str, model: AudioLDM2, tmp_path: Path):
    configs, states = model.networks.configs, model.networks.checkpoint.states
    hashes = {"own": writing.hash_of(states, ["unet"]), "other": "0" * 64, "none": ""}
    metadata = {"base_model": "./another", "base_sha256": hashes[expected]}
    adapter = replace(random_adapter(configs), metadata=metadata)
    writing.write(adapter, tmp_path / "oud", configs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_lora(tmp_path / "oud")
    found = [str(each.message) for each in caught if each.category is BaseWarning]
    assert len(found) == (expected == "other")
    assert all("oud was trained on other weights than this model has, those of ./another" in x for x in found)
