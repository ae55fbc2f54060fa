"""Settings that fit into some memory: what a rehearsal counts, what is tried first, what is refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training import memory_plan, rehearsal
from audioldm2.training.data import CACHE_BYTES, decoded_bytes
from audioldm2.training.ldm import LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.lora import LoRARecipe, LoRAStage
from audioldm2.training.memory_plan import Clips, fit, peak
from audioldm2.training.mixing import Mixed
from audioldm2.training.rehearsal import Growth, Ledger, Rehearsal, rehearse
from audioldm2.training.sources import ClipSettings, open_data
from tests.support.training import stage_of, write_sounds

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MB, GB = 10**6, 10**9
CLIPS = Clips("a dog barks", 10, 100, 50 * MB)
ENDLESS = replace(CLIPS, count=None)
# Of a model in which every setting that saves memory matters.
MEASURED = Rehearsal(
    trainable=("unet",),
    weights={"unet": 1000 * MB, "vae": 200 * MB, "clap_text": 500 * MB, "t5": 1300 * MB, "gpt2": 300 * MB},
    learning=12 * MB, averages=0, latent=MB, text=MB, encoding=100 * MB,
    step=Growth(0, 2000 * MB), validation=100 * MB,
)  # fmt: skip


def measured_as(kind: object, checkpoint: object, recipe: LDMRecipe, caption: str) -> Rehearsal:
    """What a rehearsal of that model would find."""
    each = 2000 * MB // (4 if recipe.recompute else 1) // (2 if recipe.bf16 else 1)
    weights = {name: size // (2 if recipe.frozen_bf16 else 1) for name, size in MEASURED.weights.items()}
    return replace(MEASURED, weights=weights, step=Growth(0, each))


def chosen(limit: float, monkeypatch: pytest.MonkeyPatch, clips: Clips = CLIPS, **values: object) -> dict:
    """The fields that `fit` changes in a recipe, for a GPU."""
    monkeypatch.setattr(memory_plan, "rehearse", measured_as)
    before = LoRARecipe(batch=8, **values)
    found = fit(LoRAStage, None, before, limit, CUDA, clips)  # type: ignore[arg-type]
    assert found.peak.bytes <= limit
    return {name: value for name, value in vars(found.recipe).items() if value != getattr(before, name)}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cheapest_settings_that_fit_are_chosen(monkeypatch):
    cache = {"cache_gb": 0.2}  # 100 clips and 11 texts of 1 MB each, and some to spare, in tenths
    assert chosen(30 * GB, monkeypatch) == {}
    assert chosen(21 * GB, monkeypatch) == cache
    assert chosen(12 * GB, monkeypatch) == cache | {"accumulate": 2}
    assert chosen(8 * GB, monkeypatch) == cache | {"accumulate": 4}
    assert chosen(5 * GB, monkeypatch) == cache | {"accumulate": 8}
    assert chosen(4.3 * GB, monkeypatch) == cache | {"accumulate": 8, "recompute": True}
    half = {"recompute": True, "bf16": True, "frozen_bf16": True}
    assert chosen(2.6 * GB, monkeypatch) == cache | half | {"accumulate": 8}


def test_endless_clips_have_no_cache(monkeypatch):
    assert chosen(12 * GB, monkeypatch, ENDLESS) == {"accumulate": 4}


def test_what_the_recipe_wants_stays(monkeypatch):
    assert chosen(30 * GB, monkeypatch, recompute=True, bf16=True, accumulate=2, cache_gb=7.0) == {}
    assert "bf16" not in chosen(2.6 * GB, monkeypatch, bf16=True)


def test_float16_where_a_gpu_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    extras = list(memory_plan._extras(LoRARecipe(), CUDA))
    assert extras[-1] == {"recompute": True, "fp16": True, "frozen_bf16": True}
    assert list(memory_plan._extras(LoRARecipe(), CPU))[-1]["bf16"]


def test_too_little_memory_is_refused_with_what_helps(monkeypatch):
    with pytest.raises(
        ArgumentError, match=r"fit is '1GB'; it has to be at least 2\.\dGB for .*'lora'.*--seconds"
    ):
        chosen(1 * GB, monkeypatch)


def test_reasons_name_every_setting(monkeypatch):
    monkeypatch.setattr(memory_plan, "rehearse", measured_as)
    found = fit(LoRAStage, None, LoRARecipe(batch=8), 4.2 * GB, CPU, ENDLESS)  # type: ignore[arg-type]
    said = "\n".join(found.reasons)
    assert [line.split(":")[0] for line in found.reasons] == [
        "accumulate 4", "recompute on", "bf16 on", "frozen_bf16 on", "no cache",
    ]  # fmt: skip
    assert "--crops" in said and "GB in a step" in str(found.peak)


def test_peak_of_processes_that_share_a_batch():
    recipe = LoRARecipe(batch=8)
    one, four = (peak(MEASURED, LoRAStage, recipe, CUDA, CLIPS, share) for share in (1, 4))
    assert one.steps["activations"] == 4 * four.steps["activations"]


def test_peak_counts_states_and_sounds():
    recipe = LDMRecipe(batch=8)
    found = peak(replace(MEASURED, learning=400 * MB), LDMStage, recipe, CPU, CLIPS)
    assert found.steps["gradients"] == 400 * MB and found.steps["optimizer"] == 800 * MB
    assert found.steps["sounds"] == 50 * MB and found.start["files"] == 1300 * MB
    muon = peak(replace(MEASURED, learning=400 * MB), LDMStage, replace(recipe, optimizer="muon"), CPU, CLIPS)
    assert muon.steps["optimizer"] == 400 * MB


def test_cache_frees_what_does_not_learn():
    recipe = LDMRecipe(batch=8, cache_gb=1.0)
    trained = replace(MEASURED, trainable=("unet", "t5"))
    freed, kept = (peak(each, LDMStage, recipe, CUDA, CLIPS).steps["weights"] for each in (MEASURED, trained))
    assert (freed, kept) == (1300 * MB, 2600 * MB)
    assert peak(MEASURED, LDMStage, recipe, CUDA, CLIPS).steps["encoding"] == 0


def test_decoded_sounds_of_mixed_folders_count(tmp_path: Path):
    folders = [write_sounds(tmp_path / name) for name in ("new", "old")]
    new, old = (open_data(folder, ClipSettings(0.32, 16000)) for folder in folders)
    assert 0 < decoded_bytes(new) < CACHE_BYTES
    assert decoded_bytes(Mixed(new, old, 0.5)) == decoded_bytes(new) + decoded_bytes(old)
    assert decoded_bytes(object()) == 0  # type: ignore[arg-type]


# The rehearsal ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LoRAStage, LDMStage])
def test_rehearsal_counts_what_a_real_step_holds(kind: type[LDMStage], initial: Checkpoint):
    stage = stage_of(kind.name, initial, seconds=0.32, ema=0.0)
    latents = stage.encode_clips(torch.zeros(1, 5120))
    with Ledger() as ledger:
        learn = partial(rehearsal._learn, stage, latents, "a dog barks")
        learn(1)  # the first step also makes gradients, which the plan counts apart
        real = [ledger.peak_of(partial(learn, clips)) for clips in (1, 2)]
    found = rehearse(kind, initial, stage.recipe, "a dog barks")
    assert [found.step.of(clips) for clips in (1, 2)] == pytest.approx(real, rel=0.05)
    parameters = sum(each.numel() for network in stage.trained.values() for each in network.parameters())
    assert found.learning == 4 * parameters and found.latent == latents.nbytes
    unet = sum(each.nbytes for each in stage.network("unet").parameters())
    assert found.weights["unet"] == unet and set(found.weights) == {*stage.trainable(), *stage.frozen()}


@pytest.mark.slow
def test_rehearsal_sees_what_saves_memory(initial: Checkpoint):
    recipe = replace(LDMStage.recipes["finetune"], seconds=0.32)
    plain = rehearse(LDMStage, initial, recipe, "a dog barks")
    saving = rehearse(
        LDMStage, initial, replace(recipe, recompute=True, bf16=True, frozen_bf16=True), "a dog barks"
    )
    assert saving.step.each < 0.7 * plain.step.each
    assert saving.weights["t5"] == plain.weights["t5"] / 2 and saving.weights["unet"] == plain.weights["unet"]
    assert (
        plain.averages
        == plain.learning
        == sum(plain.weights[name] for name in ("unet", "gpt2", "projection"))
    )
