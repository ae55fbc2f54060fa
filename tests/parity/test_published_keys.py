"""The published models, name by name: every tensor is mapped, and every size is the published one.

The keys come from the reference's own classes, built without memory in the published sizes; and, where the
lists that were read off the published files lie beside the repository, from those too.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import NoiseSchedule, convert
from audioldm2.audio import CLAP_MEL
from audioldm2.convert import PARTS, convert_state
from audioldm2.models import NETWORKS, OPTIONAL, build_on_meta
from scripts import make_random_checkpoint, make_reference_checkpoint
from tests.support import reference

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LISTED = {  # folder of the published layout -> its list of keys
    "text_encoder": "text_encoder.clap",
    "text_encoder_2": "text_encoder_2.t5",
    "projection_model": "projection_model.base",
    "language_model": "language_model.gpt2",
    "unet": "unet.base",
    "vae": "vae",
    "vocoder": "vocoder",
}
BUILDERS = {
    "text_encoder": "clap",
    "text_encoder_2": "t5",
    "projection_model": "projection",
    "language_model": "gpt2",
    "unet": "unet",
    "vae": "vae",
    "vocoder": "hifigan",
}
PARAMETERS = {
    "text_encoder": 193_913_882,
    "text_encoder_2": 341_231_104,
    "projection_model": 1_184_256,
    "language_model": 124_439_808,
    "unet": 346_943_496,
    "vae": 55_376_873,
    "vocoder": 55_264_897,
}
LARGE_UNET = 718_012_296
TOTALS = {"base": 1_118_354_316, "music": 1_118_354_316, "large": 1_489_423_116}
TOKEN_EMBEDDING = 50_257 * 768  # of GPT-2, which AudioLDM 2 never feeds tokens; not among our weights
UNET_KEYS = {"base": 1520, "music": 1520, "large": 3216}
HUB_NAMES = {"base": "cvssp_audioldm2", "music": "cvssp_audioldm2-music", "large": "cvssp_audioldm2-large"}

Source = Mapping[str, tuple[dict, dict[str, Tensor]]]  # folder -> its config.json and its tensors, on meta


@cache
def built(size: str) -> Source:
    """Return what the reference's classes would save; the language model has no head, as published."""
    found = {}
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(reference, "randomise", lambda model, seed: model.eval())
        for folder, name in BUILDERS.items():
            more = {"language_head": False} if name == "gpt2" else {}
            model = getattr(reference, name)(**make_reference_checkpoint.SIZES[size][name], **more)
            found[folder] = json.loads(written(model)), model.state_dict()
    return found


def written(model: nn.Module) -> str:
    """Return the config.json of a model of either library."""
    return (
        model.config.to_json_string() if hasattr(model.config, "to_json_string") else model.to_json_string()
    )


@cache
def published(size: str) -> Source:
    """Return the contents of the published files."""
    found = {}
    for folder, listed in LISTED.items():
        listed = "unet.large" if (folder, size) == ("unet", "large") else listed
        config = json.loads((DATA / "configs" / HUB_NAMES[size] / folder / "config.json").read_text())
        found[folder] = config, listed_state(listed)
    return found


def listed_state(listed: str) -> dict[str, Tensor]:
    entries = json.loads((DATA / "keys" / "hf" / f"{listed}.json").read_text())
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in entries.items()
    }


ORIGINS = [(built, "base"), (built, "large")]  # the music model has the sizes of base
if DATA.is_dir():
    ORIGINS += [(published, size) for size in TOTALS]


SOUND_NETWORKS = [name for name in NETWORKS if name not in OPTIONAL]


@pytest.fixture(scope="module", params=ORIGINS, ids=lambda origin: f"{origin[0].__name__}-{origin[1]}")
def model(request) -> tuple[str, Source]:
    origin, size = request.param
    return size, origin(size)


@cache
def on_meta(name: str, config: Any) -> nn.Module:
    """Return one of our networks, without memory."""
    return build_on_meta(name, config)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def networks_of(folder: str) -> list[str]:
    return [name for name in SOUND_NETWORKS if PARTS[name].folder == folder]


@pytest.mark.parametrize("name", SOUND_NETWORKS)
def test_published_tensors_are_mapped_to_our_networks(model, name):
    _, source = model
    theirs, state = source[PARTS[name].folder]
    config = PARTS[name].config_from(theirs)
    converted = convert_state(name, config, state, "the published file")
    found = {key: tensor.shape for key, tensor in converted.items()}
    assert found == {key: tensor.shape for key, tensor in on_meta(name, config).state_dict().items()}


@pytest.mark.parametrize("name", SOUND_NETWORKS)
def test_config_defaults_are_the_published_values(model, name):
    size, source = model
    theirs, _ = source[PARTS[name].folder]
    expected = make_random_checkpoint.SIZES[size][name]
    if size != "large" or name != "unet":
        assert expected == NETWORKS[name][1]()
    more = {"heads": "trained"} if name == "unet" else {}
    assert PARTS[name].config_from(theirs, **more) == expected


def test_parameter_counts_are_the_published_ones(model):
    size, source = model
    found = {}
    for folder, (theirs, _) in source.items():
        networks = [on_meta(name, PARTS[name].config_from(theirs)) for name in networks_of(folder)]
        found[folder] = sum(map(parameters, networks))
    found["language_model"] += TOKEN_EMBEDDING
    assert found == PARAMETERS | ({"unet": LARGE_UNET} if size == "large" else {})
    assert sum(found.values()) == TOTALS[size]
    assert len(source["unet"][1]) == UNET_KEYS[size]


def test_heads_follow_config_or_training(model):
    """The published config says 8 where the weights were trained with heads 32 wide (`UNetConfig.heads`)."""
    _, source = model
    theirs, state = source["unet"]
    config_from = PARTS["unet"].config_from
    assert config_from(theirs).heads == config_from(theirs, "config").heads == (8, 8, 8, 8)
    trained = config_from(theirs, "trained")
    assert trained.heads == tuple(channels // 32 for channels in trained.channels) == (4, 8, 12, 20)
    assert replace(trained, heads=(8, 8, 8, 8)) == config_from(theirs)
    convert_state("unet", trained, state, "the published file")  # the tensors are the same


def test_language_model_with_head_is_mapped():
    """The published checkpoints have none, but the reference pipeline needs one."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(reference, "randomise", lambda model, seed: model.eval())
        model = reference.gpt2(**make_reference_checkpoint.SIZES["base"]["gpt2"], language_head=True)
    config = PARTS["gpt2"].config_from(json.loads(written(model)))
    assert any(key.startswith("transformer.") for key in model.state_dict())
    convert_state("gpt2", config, model.state_dict(), "a file with a head")


if DATA.is_dir():

    @pytest.mark.parametrize("size", TOTALS)
    def test_current_reference_saves_the_published_keys(size):
        """Except for constant buffers, which older versions saved too."""
        for folder, (_, state) in built(size).items():
            _, listed = published(size)[folder]
            assert {key: x.shape for key, x in state.items()}.items() <= {
                k: x.shape for k, x in listed.items()
            }.items()
            more = {key.split(".")[-1] for key in listed.keys() - state.keys()}
            assert more <= {
                "position_ids",
                "token_type_ids",
                "relative_position_index",
                "num_batches_tracked",
            }

    @pytest.mark.parametrize(
        "path", sorted((DATA / "keys" / "hf").glob("text_encoder.clap.*.json")), ids=lambda path: path.stem
    )
    def test_clap_of_other_versions_is_mapped(path):
        theirs, _ = published("base")["text_encoder"]
        for name in networks_of("text_encoder"):
            convert_state(name, PARTS[name].config_from(theirs), listed_state(path.stem), str(path))

    @pytest.mark.parametrize("size", TOTALS)
    def test_configs_of_a_published_checkpoint_are_read(size):
        checkpoint = convert.read_diffusers(DATA / "configs" / HUB_NAMES[size])
        assert [*checkpoint.configs] == SOUND_NETWORKS
        assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()
        assert replace(CLAP_MEL, **checkpoint.clap_mel) == CLAP_MEL
