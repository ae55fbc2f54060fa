"""The dtype of each network: as asked, or as "auto" chooses by measuring."""

import json

import pytest
import torch

import audioldm2
from audioldm2.errors import ArgumentError
from audioldm2.models import NETWORKS, OPTIONAL
from audioldm2.ops import trial_file
from audioldm2.runtime import dtypes
from audioldm2.runtime.dtypes import Comparison

CPU = torch.device("cpu")
PUBLISHED = {name: config() for name, (_, config) in NETWORKS.items() if name not in OPTIONAL}
FASTER, SLOWER = Comparison(float32=3.0, bfloat16=2.0), Comparison(float32=2.0, bfloat16=3.0)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        (1.16, 1.0, torch.bfloat16),
        (1.14, 1.0, torch.float32),
        (1.0, 1.0, torch.float32),
        (1.0, 9.0, torch.float32),
    ],
)
def test_bfloat16_is_chosen_only_where_it_is_faster_by_15_percent(float32: float, bfloat16: float, chosen):
    assert Comparison(float32, bfloat16).chosen == chosen


def test_auto_keeps_networks_float32_whose_rounding_stays_in_the_sound(monkeypatch):
    monkeypatch.setattr(dtypes, "compare_on_cpu", lambda threads: FASTER)
    found, comparison = dtypes.choose("auto", CPU, PUBLISHED)
    exact = {name for name, dtype in found.items() if dtype == torch.float32}
    assert exact == {"vae", "hifigan", "clap_audio"} and comparison == FASTER
    assert {found[name] for name in ("unet", "t5", "gpt2", "projection", "clap_text")} == {torch.bfloat16}
    assert found.keys() == PUBLISHED.keys()


def test_auto_is_float32_where_bfloat16_gains_nothing(monkeypatch, tiny_folder):
    monkeypatch.setattr(dtypes, "compare_on_cpu", lambda threads: SLOWER)
    found, comparison = dtypes.choose("auto", CPU, PUBLISHED)
    assert set(found.values()) == {torch.float32} and comparison == SLOWER
    monkeypatch.setattr(
        dtypes, "compare_on_cpu", lambda threads: pytest.fail("a small model is not measured for")
    )
    assert set(audioldm2.load(tiny_folder, device="cpu").networks.dtypes.values()) == {torch.float32}


def test_auto_is_float16_on_cuda():
    assert set(dtypes.choose("auto", torch.device("cuda"), PUBLISHED)[0].values()) == {torch.float16}


def test_comparison_is_a_measurement_of_this_processor():
    found = dtypes.compare_on_cpu(torch.get_num_threads())
    assert 0 < found.float32 < 1000 and 0 < found.bfloat16 < 1000
    assert dtypes.compare_on_cpu(torch.get_num_threads()) is found, "measured once a process"


@pytest.mark.parametrize("damage", [None, "slow", [1.0], [1.0, 0.0], [1, "2"]])
def test_later_processes_use_the_figures_of_the_first(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("AUDIOLDM2_CACHE", str(tmp_path))
    monkeypatch.setattr(dtypes, "_milliseconds", lambda: [3.0, 2.0])
    dtypes.compare_on_cpu.cache_clear()
    assert dtypes.compare_on_cpu(2) == FASTER
    monkeypatch.setattr(dtypes, "_milliseconds", lambda: [2.0, 3.0])
    dtypes.compare_on_cpu.cache_clear()
    assert dtypes.compare_on_cpu(2) == FASTER, "read from the file"
    file = trial_file.path()
    [(machine, found)] = json.loads(file.read_text()).items()
    file.write_text(json.dumps({machine: dict.fromkeys(found, damage)}))
    dtypes.compare_on_cpu.cache_clear()
    assert dtypes.compare_on_cpu(2) == SLOWER, "a damaged entry is measured anew"
    dtypes.compare_on_cpu.cache_clear()


@pytest.mark.parametrize("asked", ["float32", "bfloat16", torch.float16])
def test_dtype_that_is_asked_for_is_that_of_all_networks(asked):
    wanted = getattr(torch, str(asked).removeprefix("torch."))
    found, comparison = dtypes.choose(dtypes.require_dtype(asked), CPU, PUBLISHED)
    assert set(found.values()) == {wanted} and comparison is None


@pytest.mark.parametrize("asked", ["float64", "half", None, 16, torch.int8])
def test_rejects_other_dtypes(asked):
    with pytest.raises(ArgumentError, match="it has to be one of auto, float32, float16, bfloat16"):
        dtypes.require_dtype(asked)


@pytest.mark.slow
def test_model_of_two_dtypes_generates_and_its_record_says_why(monkeypatch, tiny_folder):
    exact = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    monkeypatch.setattr(dtypes, "compare_on_cpu", lambda threads: FASTER)
    monkeypatch.setattr(dtypes, "WORTH_HALVING", 0)
    mixed = audioldm2.load(tiny_folder, device="cpu")
    assert mixed.describe()["dtype"] == "bfloat16, float32 for vae, hifigan, clap_audio"
    request = dict(audio_length_in_s=0.64, num_inference_steps=3, num_waveforms_per_prompt=2)
    ours, theirs = (model.generate("a dog barks", **request) for model in (mixed, exact))
    assert "1.50 times as fast as float32" in ours.record()["dtype_chosen_because"]
    assert theirs.record()["dtype_chosen_because"] is None
    assert ours.audio.dtype == ours.scores.dtype == torch.float32
    assert ours.seeds == theirs.seeds  # in the same order
    assert 0 < (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 0.2


def test_description_names_the_networks_of_another_dtype():
    chosen = {"unet": torch.bfloat16, "t5": torch.bfloat16, "vae": torch.float32, "hifigan": torch.float32}
    assert dtypes.describe(chosen) == "bfloat16, float32 for vae, hifigan"
    assert dtypes.describe(dict.fromkeys(chosen, torch.float32)) == "float32"
