"""Random damage to any file ends in a model that generates, or in a WeightsError; never in another error."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from audioldm2.runtime import placement
from tests.support import checkpoints
from tests.support.checkpoints import (
    weights_file,
)
from tests.support.sizes import full_or

SCHEDULER = "scheduler/scheduler_config.json"
HEARING = "feature_extractor/preprocessor_config.json"
CPU = torch.device("cpu")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to three bytes changed, or its end cut off."""
    data = bytearray(content)
    if rng.random() < 0.1:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data))
        data[place] = rng.choice((data[place] ^ (1 << rng.randrange(8)), *b'0123456789"{}[],:-.e nft'))
    return bytes(data)


def attempt(folder: Path, waveforms: int = 2) -> bool:
    """Return whether a folder loads and generates; any error but a WeightsError fails the test."""
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


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("layout", "file", "times"),
    [
        ("converted", "config.json", full_or(60, 30)),
        ("diffusers", "model_index.json", full_or(25, 8)),
        ("diffusers", "unet/config.json", full_or(20, 10)),
        ("diffusers", "text_encoder/config.json", full_or(20, 10)),
        ("diffusers", "vocoder/config.json", full_or(20, 10)),
        ("diffusers", SCHEDULER, full_or(25, 10)),
        ("diffusers", HEARING, full_or(25, 8)),
    ],
)
def test_damaged_config_loads_or_raises_weights_error(layout: str, file: str, times: int, request):
    folder, rng = request.getfixturevalue(layout), random.Random(file)
    content = (folder / file).read_bytes()
    outcomes = set()
    for _ in range(times):
        (folder / file).write_bytes(mutated(content, rng))
        outcomes.add(attempt(folder))
    assert False in outcomes


@pytest.mark.parametrize("name", ["projection", "gpt2"])
def test_damaged_safetensors_header_loads_or_raises_weights_error(converted: Path, name: str):
    path, rng = converted / f"{name}.safetensors", random.Random(name)
    checkpoint, content = storage.read(converted), path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(full_or(300, 100)):
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(mutated(content[:header], rng) + content[header:])
        try:
            placement.materialise(checkpoint, name, device=CPU, dtype=torch.float32)
        except WeightsError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bin_loads_or_raises_weights_error(diffusers: Path, zipped: bool):
    path, rng = weights_file(diffusers / "projection_model"), random.Random(1)
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_suffix(".bin"), _use_new_zipfile_serialization=zipped)
    content = path.with_suffix(".bin").read_bytes()
    checkpoint = convert.read_diffusers(diffusers)
    for _ in range(full_or(200, 80)):
        path.with_suffix(".bin").unlink()
        path.with_suffix(".bin").write_bytes(mutated(content, rng))
        try:
            placement.materialise(checkpoint, "projection", device=CPU, dtype=torch.float32)
        except WeightsError as error:
            assert str(diffusers / "projection_model") in str(error)


ODD = [None, True, "x", -1, 0, 3, 0.5, 1e308, 10**30, [], [1], [0, -3], [[1]], {"a": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("name", checkpoints.networks())
def test_odd_values_of_config_fields_load_or_raise_weights_error(converted: Path, name: str):
    path = converted / "config.json"
    config = json.loads(path.read_text())
    for turn, (field, before) in enumerate(config["networks"][name].items()):
        for value in ODD[turn % full_or(1, 2) :: full_or(1, 2)]:
            config["networks"][name][field] = value
            checkpoints.write_json(path, config)
            attempt(converted, waveforms=2 if name == "clap_audio" else 1)
        config["networks"][name][field] = before
