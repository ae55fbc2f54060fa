"""In which dtype each network computes: what is asked for, and what "auto" makes of it."""

from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.models import NETWORKS
from audioldm2.runtime import dtypes

CPU = torch.device("cpu")
PUBLISHED = {name: config() for name, (_, config) in NETWORKS.items() if name != "phonemes"}


def processor(tmp_path: Path, flags: str) -> Path:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Some Processor\n{flags}\n\nprocessor\t: 1\n{flags}\n")
    return file


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw", False),  # it can, by way of float32, and is slower
        ("", False),
    ],
)
def test_a_processor_tells_whether_it_multiplies_in_bfloat16(tmp_path: Path, flags: str, native: bool):
    assert dtypes.multiplies_in_bfloat16(processor(tmp_path, flags)) is native


def test_a_system_that_does_not_tell_has_no_bfloat16(tmp_path: Path):
    assert dtypes.multiplies_in_bfloat16(tmp_path / "absent") is False


def test_auto_halves_what_is_not_heard(monkeypatch):
    monkeypatch.setattr(dtypes, "multiplies_in_bfloat16", lambda: True)
    found = dtypes.of_networks("auto", CPU, PUBLISHED)
    exact = {name for name, dtype in found.items() if dtype == torch.float32}
    assert exact == {"vae", "hifigan", "clap_audio"}  # what is heard as it is rounded
    assert {found[name] for name in ("unet", "t5", "gpt2", "projection", "clap_text")} == {torch.bfloat16}
    assert found.keys() == PUBLISHED.keys()


def test_auto_is_float32_where_the_processor_or_the_model_gains_nothing(monkeypatch, tiny_folder):
    monkeypatch.setattr(dtypes, "multiplies_in_bfloat16", lambda: False)
    assert set(dtypes.of_networks("auto", CPU, PUBLISHED).values()) == {torch.float32}
    monkeypatch.setattr(dtypes, "multiplies_in_bfloat16", lambda: True)
    assert set(audioldm2.load(tiny_folder, device="cpu").networks.dtypes.values()) == {torch.float32}


def test_auto_is_float16_on_cuda():
    assert set(dtypes.of_networks("auto", torch.device("cuda"), PUBLISHED).values()) == {torch.float16}


@pytest.mark.parametrize("asked", ["float32", "bfloat16", torch.float16])
def test_a_dtype_that_is_asked_for_is_that_of_all(asked):
    wanted = getattr(torch, str(asked).removeprefix("torch."))
    assert set(dtypes.of_networks(dtypes.name_of(asked), CPU, PUBLISHED).values()) == {wanted}


@pytest.mark.parametrize("asked", ["float64", "half", None, 16, torch.int8])
def test_another_is_refused(asked):
    with pytest.raises(ValueError, match="not supported; choose 'auto' or one of float32, float16, bfloat16"):
        dtypes.name_of(asked)


def test_a_model_of_two_dtypes_makes_a_sound(monkeypatch, tiny_folder):
    """As "auto" does with a large one: the sound is near that of float32, and the record tells both."""
    exact = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    monkeypatch.setattr(dtypes, "multiplies_in_bfloat16", lambda: True)
    monkeypatch.setattr(dtypes, "WORTH_HALVING", 0)
    mixed = audioldm2.load(tiny_folder, device="cpu")
    assert mixed.describe()["dtype"] == "bfloat16, float32 for vae, hifigan, clap_audio"
    request = dict(audio_length_in_s=0.64, num_inference_steps=3, num_waveforms_per_prompt=2)
    ours, theirs = (model.generate("a dog barks", **request) for model in (mixed, exact))
    assert ours.audio.dtype == ours.scores.dtype == torch.float32
    assert ours.seeds == theirs.seeds  # in the same order
    assert 0 < (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 0.2


def test_it_is_told_in_words():
    chosen = {"unet": torch.bfloat16, "t5": torch.bfloat16, "vae": torch.float32, "hifigan": torch.float32}
    assert dtypes.describe(chosen) == "bfloat16, float32 for vae, hifigan"
    assert dtypes.describe(dict.fromkeys(chosen, torch.float32)) == "float32"
