"""A right copy passes in every layout, and each kind of wrong one is found and named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.errors import WeightsError
from audioldm2.verification import Unopened, subject
from tests.support import checkpoints, originals
from tests.support.verification import (
    BLOCK,
    LAYOUTS,
    change_converted,
    change_unet,
    facts_from,
    failures,
    findings,
    norm_keys,
    swap,
    table,
    unet_file,
)

layouts = pytest.mark.parametrize("layout", LAYOUTS)
FILES_ONLY = ("files", "identity", "contents", "norms", "tensors", "settings", "tokenizers")


def rewrite(folder: Path, dtype: torch.dtype | None = None, **opening: str) -> Path:
    """Convert the original file again, in another way."""
    checkpoint = open_checkpoint(folder / "original.pth", **opening)
    storage.write(checkpoint, folder / "again", dtype=dtype)
    return folder / "again"


def other_weights(folder: Path) -> Path:
    """A converted folder of the same architecture whose weights are all others."""
    torch.manual_seed(17)
    changed = {key: tensor + 0.1 * torch.randn(tensor.shape) for key, tensor in table().items()
               if tensor.is_floating_point() and tensor.ndim}  # fmt: skip
    schedule = {key: table()[key] for key in originals.schedule_buffers()}
    file = originals.save(folder / "other.pth", table() | changed | schedule)
    storage.write(open_checkpoint(file), folder / "other")
    return folder / "other"


# Right ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_right_copy_passes_every_check(right, facts):
    found = findings(right / "converted", facts)
    assert failures(found) == []
    passed = [name for name, finding in found.items() if finding.status == "passed"]
    assert passed == [name for name in found if name != "heads"]
    assert found["heads"].status == "not applicable"
    assert found["slices"].figures["distance"]["trained"]["lms 3"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "sounds"), [("diffusers", ()), ("original.pth", ("slices",))])
def test_right_copy_in_another_layout_has_the_same_tensors_and_sounds(right, facts, layout, sounds):
    checks = (*FILES_ONLY, *sounds)
    found = findings(right / layout, facts, *checks)
    assert {name: each.status for name, each in found.items() if each.status != "skipped"} == dict.fromkeys(
        checks, "passed"
    )
    assert sum(each["rounded"] for each in found["tensors"].figures.values()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_copy_is_recognised(copy, facts, dtype):
    found = findings(rewrite(copy, dtype), facts, "tensors", "contents")
    assert found["tensors"].status == "passed", found["tensors"].problems
    assert sum(each["rounded"] for each in found["tensors"].figures.values()) > 700
    assert str(dtype).removeprefix("torch.") in found["contents"].summary


# Wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@layouts
def test_swapped_norms_are_named_with_both_places(copy, facts, layout):
    change_unet(copy, layout, swap(*norm_keys(layout)))
    found = findings(copy / layout, facts, *FILES_ONLY)
    assert failures(found) == ["tensors"]
    assert set(found["tensors"].problems) == {
        f"'unet.{BLOCK}.ff_norm.weight' holds what 'unet.{BLOCK}.self_norm.weight' has to hold.",
        f"'unet.{BLOCK}.self_norm.weight' holds what 'unet.{BLOCK}.ff_norm.weight' has to hold.",
    }


@pytest.mark.slow
def test_swapped_norms_are_found_by_the_recorded_sounds_alone(copy, facts):
    """As in a published checkpoint, of which no fingerprints are known."""
    change_converted(copy, "unet", swap(*norm_keys("converted")))
    found = findings(copy / "converted", replace(facts, tensors={}), *FILES_ONLY, "slices")
    assert failures(found) == ["slices"]
    assert "swapped norms" in found["slices"].meaning


def test_weight_and_bias_of_a_norm_are_found_swapped_without_facts(copy):
    pair = (f"{BLOCK}.ff_norm.weight", f"{BLOCK}.ff_norm.bias")
    change_converted(
        copy, "unet", lambda state: {pair[0]: 0.05 * state[pair[1]], pair[1]: 1 + 0.05 * state[pair[0]]}
    )
    found = findings(copy / "converted", None, *FILES_ONLY)
    assert failures(found) == ["norms"]
    assert f"'unet.{BLOCK}.ff_norm'" in found["norms"].problems[0]


@pytest.mark.slow
def test_wrong_heads_are_named_with_the_right_ones(copy, facts):
    found = findings(rewrite(copy, heads="config"), facts, "tensors", "settings", "slices")
    assert failures(found) == ["settings", "slices"]
    assert "read with [8, 8] heads" in found["settings"].problems[0]
    assert "[1, 2]" in found["settings"].problems[0]
    assert (
        "'trained' (heads 32 wide, as upstream trained) gives the recorded sounds" in found["slices"].summary
    )


@pytest.mark.slow
def test_network_of_another_model_is_named(copy, facts):
    shutil.copy(other_weights(copy) / "unet.safetensors", copy / "converted")
    found = findings(copy / "converted", facts, *FILES_ONLY)
    assert failures(found) == ["tensors"]
    (problem,) = found["tensors"].problems
    assert problem.startswith("'unet' is of another model or another revision")


@pytest.mark.slow
def test_another_revision_is_called_one(copy, facts):
    found = findings(other_weights(copy), facts, *FILES_ONLY)
    assert failures(found) == ["tensors"]
    (problem,) = found["tensors"].problems
    assert "another revision" in problem and "9 of 9 networks" in problem


def test_one_tensor_tuned_a_little_is_named(copy, facts):
    key = "middle.layer.resnet.conv_in.weight"
    change_converted(copy, "unet", lambda state: {key: state[key] * 1.001})
    assert findings(copy / "converted", facts, "tensors")["tensors"].problems == (
        f"'unet' differs in '{key}'.",
    )


@pytest.mark.slow
def test_network_of_another_size_is_named_with_its_sizes(copy, facts):
    torch.manual_seed(0)
    storage.write(open_checkpoint(originals.save(copy / "large.pth", table("large"))), copy / "large")
    found = findings(copy / "large", facts, "identity", "tensors", "slices")
    assert {"identity", "tensors", "slices"} <= set(failures(found))
    assert found["identity"].problems[0].startswith("'unet': channels is (32, 32), expected (32, 64)")
    shutil.copy(copy / "large" / "unet.safetensors", copy / "converted")
    found = findings(copy / "converted", facts, "files", "contents", "slices")
    assert failures(found) == ["files"]
    assert "unet.safetensors does not fit its configuration" in found["files"].problems[0]
    assert found["slices"].summary == "Cannot be checked: 'unet' cannot be opened (see files)."


@layouts
def test_truncated_file_is_named(copy, facts, layout):
    file = unet_file(copy, layout)
    file.write_bytes(file.read_bytes()[:-1000])
    if layout == "original.pth":
        with pytest.raises(Unopened, match=file.name):
            findings(copy / layout, facts)
        return
    found = findings(copy / layout, facts, *FILES_ONLY, "slices")
    assert failures(found) == ["files"]
    assert str(file) in found["files"].problems[0] and "truncated" in found["files"].problems[0]


@layouts
def test_nan_is_named(copy, layout):
    key, _ = norm_keys(layout)
    change_unet(copy, layout, lambda state: {key: state[key] * torch.nan})
    found = findings(copy / layout, None, "contents")
    assert found["contents"].problems == (f"'unet' holds NaN or infinity in '{BLOCK}.self_norm.weight'.",)


@pytest.mark.slow
def test_nan_fails_what_runs_networks_too(copy, facts):
    key = "conv_in.weight"
    change_converted(copy, "unet", lambda state: {key: state[key] * torch.nan})
    checkpoints.change_json(copy / "converted" / "config.json", seconds=0.64)
    found = findings(copy / "converted", facts, "half", "slices")
    assert failures(found) == ["half", "slices"]
    assert "'unet' is not finite in float32 either." in found["half"].problems
    found = findings(copy / "converted", None, "heads", effort=subject.Effort(prompts=1, seeds=1, steps=2))
    assert found["heads"].status == "failed" and "no CLAP score" in found["heads"].summary


def test_matrix_that_was_never_filled_is_named(copy):
    key = "middle.layer.resnet.conv_in.weight"
    change_converted(copy, "unet", lambda state: {key: torch.zeros_like(state[key])})
    assert (
        f"matrices of one value in '{key}'"
        in findings(copy / "converted", None, "contents")["contents"].problems[0]
    )


@pytest.mark.slow
def test_overflow_in_half_precision_names_network_and_dtype(copy):
    key = "decoder.conv_in.weight"
    change_converted(copy, "vae", lambda state: {key: 1e6 * state[key]})
    finding = findings(copy / "converted", None, "half")["half"]
    assert finding.status == "failed"
    assert "'vae' overflows in float16" in finding.problems[0]
    assert finding.figures["vae"]["bfloat16"] > 10 and finding.figures["unet"]["float16"] > 30


def test_vocoder_that_is_wrong_fails_the_round_trip(copy, facts):
    change_converted(copy, "hifigan", lambda state: {"conv_out.weight": 3 * state["conv_out.weight"]})
    found = findings(copy / "converted", facts, "round_trip")
    assert failures(found) == ["round_trip"]


def test_settings_that_no_tensor_tells_are_named(copy, facts):
    config = copy / "converted" / "config.json"
    content = storage.read_json(config)
    content["schedule"]["beta_end"] = 0.02
    content["networks"]["vae"]["scaling_factor"] = 0.18
    content["unconditional"] = "trained"
    checkpoints.write_json(config, content)
    found = findings(copy / "converted", facts, *FILES_ONLY)
    assert failures(found) == ["settings"]
    assert "'vae' has scaling_factor 0.18" in found["settings"].problems[0]
    assert "beta_end=0.02" in found["settings"].problems[1]
    assert "encoded as 'trained'" in found["settings"].problems[2]


def test_vocabulary_of_another_model_is_found(copy, facts):
    folder = copy / "converted" / "clap_tokenizer"
    merges = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join(merges[:1] + merges[1:][::-1]))
    found = findings(copy / "converted", facts, "tokenizers")
    assert failures(found) == ["tokenizers"]
    assert found["tokenizers"].problems[0].startswith("clap_tokenizer reads 'Rain, wind & 3 dogs")


def test_missing_tokenizers_are_named_and_stop_what_needs_prompts(copy, facts, monkeypatch):
    monkeypatch.setattr("audioldm2.checkpoints.hub.published_tokenizers", dict)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(copy / name)
    found = findings(copy / "original.pth", facts, "tokenizers", "slices")
    assert "--tokenizers" in found["tokenizers"].problems[0]
    assert found["slices"].status == "not applicable" and "clap_tokenizer" in found["slices"].summary


# Not known --------------------------------------------------------------------------------------------------


def test_unknown_model_passes_with_what_can_be_checked(right):
    found = findings(right / "diffusers", None, *FILES_ONLY, "round_trip", "slices")
    assert failures(found) == []
    assert found["identity"].status == "measured" and "cvssp/audioldm2" in found["identity"].summary
    assert found["round_trip"].status == found["settings"].status == "measured"
    assert found["tensors"].status == found["slices"].status == "not applicable"


def test_nothing_there_and_no_checkpoint_there_are_errors(tmp_path):
    for source, words in ((tmp_path / "nowhere", "there is no folder"), (tmp_path, "is not a checkpoint")):
        with pytest.raises(WeightsError, match=words):
            findings(source, None)


def test_facts_of_a_wrong_checkpoint_are_refused(copy):
    change_converted(copy, "vae", lambda state: {"decoder.conv_in.bias": torch.full((64,), torch.nan)})
    with pytest.raises(WeightsError, match=r"is not right.*'vae' holds NaN"):
        facts_from(copy / "converted")


# Readings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def as_published(facts, monkeypatch):
    """The right checkpoint, registered as a published one: heads not settled, no fingerprints; and a twin."""
    known = replace(facts, name="published", aliases=("original",), heads=None, tensors={})
    twin = replace(known, name="twin", aliases=("its-name",), slices=())
    monkeypatch.setattr(subject, "PUBLISHED", (known, twin))


@pytest.mark.slow
def test_slices_of_a_published_checkpoint_say_which_reading_agrees(right, as_published):
    found = findings(right / "original.pth", None, "slices")["slices"]
    assert found.status == "passed" and found.problems == ()
    assert "of published come out with the reading 'trained'" in found.summary
    assert (
        found.figures["distance"]["trained"]["ddim 3"] < 1e-5 < found.figures["distance"]["config"]["ddim 3"]
    )


@pytest.mark.slow
def test_slices_that_agree_with_the_reading_that_does_not_load_pass_and_say_so(copy, as_published):
    found = findings(rewrite(copy, heads="config"), None, "slices")["slices"]
    assert found.status == "passed"
    assert found.problems == ("What loads without heads= is 'config'; 'trained' is what the reference ran.",)


@pytest.mark.slow
def test_slices_that_fail_name_the_twin_that_has_none(copy, as_published):
    change_converted(copy, "unet", swap(*norm_keys("converted")))
    (copy / "converted").rename(copy / "mine")
    config = copy / "mine" / "config.json"
    checkpoints.change_json(config, source="somewhere/mine")
    found = findings(copy / "mine", None, "slices")["slices"]
    assert found.status == "failed"
    assert "If this is twin, of which no sound was recorded, say so with --as." in found.problems
    found = findings(copy / "mine", None, "slices", named="twin")["slices"]
    assert found.status == "not applicable" and "no sound of twin was recorded" in found.summary


@pytest.mark.slow
def test_heads_are_compared_by_scores_of_the_same_prompts_and_seeds(copy):
    effort = subject.Effort(prompts=2, seeds=2, steps=2)
    lines: list[str] = []
    checkpoints.change_json(copy / "converted" / "config.json", seconds=0.64)
    found = findings(copy / "converted", None, "heads", effort=effort, report=lines.append)["heads"]
    assert found.status == "measured"
    assert {name: (len(rows), len(rows[0])) for name, rows in found.figures["scores"].items()} == {
        "trained": (2, 2),
        "config": (2, 2),
    }
    ours, theirs = (torch.tensor(found.figures["scores"][name]) for name in ("trained", "config"))
    assert not torch.equal(ours, theirs)
    (difference,) = found.figures["differences"].values()
    assert difference["mean"] == pytest.approx((theirs - ours).mean().item(), abs=1e-6)
    low, high = difference["95 % interval"]
    assert low < difference["mean"] < high
    assert lines[1].startswith("heads: 8 sounds of 2 steps") and "left" in lines[2]
