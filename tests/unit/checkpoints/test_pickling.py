"""A loaded model can be pickled, saved by `torch.save`, deep-copied and sent to a spawned process."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import audioldm2
from tests.support import originals

REQUEST = dict(audio_length_in_s=0.32, num_inference_steps=2, num_waveforms_per_prompt=2)


@pytest.fixture(scope="module")
def sources(pristine, tmp_path_factory) -> dict[str, str | Path]:
    """One checkpoint of each kind, all in folders that no other test changes."""
    folder, _ = pristine
    original = tmp_path_factory.mktemp("original")
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (original / name).symlink_to(folder / "converted" / name)
    originals.save(original / "base.pth", originals.make("base").table)
    return {
        "converted": folder / "converted",
        "diffusers": folder / "diffusers",
        "original": original / "base.pth",
        "demo": "demo",
    }


def generate(model: audioldm2.AudioLDM2) -> Tensor:
    return model.generate("a dog", **REQUEST).audio


def by_pickle(model: audioldm2.AudioLDM2) -> audioldm2.AudioLDM2:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: audioldm2.AudioLDM2) -> audioldm2.AudioLDM2:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "transport"),
    [("diffusers", by_pickle), ("demo", by_pickle), ("converted", by_torch), ("original", copy.deepcopy)],
)
def test_copy_generates_the_same_sound(
    sources, kind: str, transport: Callable[[audioldm2.AudioLDM2], audioldm2.AudioLDM2]
):
    model = audioldm2.load(sources[kind], device="cpu")
    assert torch.equal(generate(transport(model)), generate(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "residence"),
    [("diffusers", "low_memory"), ("original", "offload")],
)
def test_copy_with_offloaded_weights_generates_the_same_sound(sources, kind: str, residence: str):
    model = audioldm2.load(sources[kind], device="cpu", **{residence: True})
    assert torch.equal(generate(by_pickle(model)), generate(model))


@pytest.mark.parametrize("kind", ["diffusers", "original"])
def test_source_file_is_not_pickled(sources, kind: str):
    """Only the weights are; the file also holds second copies, an average and more."""
    model = audioldm2.load(sources[kind], device="cpu")
    weights = sum(
        tensor.nbytes
        for network in model.networks._loaded.values()
        for tensor in network.state_dict().values()
    )
    assert len(pickle.dumps(model)) < 1.5 * weights + 1e6


def send_back(model: audioldm2.AudioLDM2, queue: multiprocessing.Queue) -> None:
    """Runs in the spawned process."""
    queue.put(generate(model).numpy())


@pytest.mark.slow
def test_spawned_process_generates_the_same_sound(sources):
    model = audioldm2.load(sources["original"], device="cpu")
    expected = generate(model)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=send_back, args=(model, queue))
    process.start()
    try:
        found = queue.get(timeout=120)
    finally:
        process.join(timeout=30)
    assert process.exitcode == 0
    assert torch.equal(torch.from_numpy(found), expected)
    assert torch.equal(generate(model), expected)
