"""Files of adapters: PEFT's layout written and read, diffusers' and kohya's read, what is wrong with one."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from audioldm2 import AudioLDM2
from audioldm2.adapters import lora, reading, writing
from audioldm2.adapters.adapter import Adapter
from audioldm2.adapters.lora import LowRank
from audioldm2.adapters.names import places
from audioldm2.errors import WeightsError
from tests.support.adapters import random_adapter

WEIGHTS, CONFIG = reading.WEIGHTS, reading.CONFIG
PEFT = "base_model.model."


@pytest.fixture(scope="module")
def configs(tiny_model: AudioLDM2) -> dict[str, Any]:
    return tiny_model.networks.configs


@pytest.fixture(scope="module")
def original(configs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "written"
    writing.write(random_adapter(configs), folder, configs)
    return folder


@pytest.fixture
def written(original: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    return Path(shutil.copytree(original, tmp_path / "written"))


def require_same(found: Adapter, expected: Adapter, tolerance: float = 0.0) -> None:
    assert {name: set(layers) for name, layers in found.layers.items()} == {
        name: set(layers) for name, layers in expected.layers.items()
    }
    for name, layers in expected.layers.items():
        for path, low in layers.items():
            other = found.layers[name][path]
            torch.testing.assert_close(other.A.float(), low.A, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(other.B.float(), low.B, atol=tolerance, rtol=tolerance)
            assert other.scale == pytest.approx(low.scale, rel=1e-12)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object], **settings: object) -> Path:
    """Edit the tensors and the settings of an adapter's folder."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refusal(source: Path, configs: dict[str, Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        reading.read(source, configs)
    return str(caught.value)


# ---- PEFT's layout


@pytest.mark.parametrize("which", lora.LAYER_SETS)
def test_what_is_written_is_read(which: str, configs, tmp_path: Path):
    adapter = random_adapter(configs, which, networks=lora.NETWORKS, scale=3.0)
    writing.write(adapter, tmp_path / "oud", configs)
    found = reading.read(tmp_path / "oud", configs)
    require_same(found, adapter)
    assert found.name == "oud" and found.source == str(tmp_path / "oud") and len(found.sha256) == 64
    assert found.metadata["license"] == "MIT" and found.metadata["base_model"] == "tiny"
    assert {path.name for path in (tmp_path / "oud").iterdir()} == {
        WEIGHTS, CONFIG, "language_model", "projection_model",
    }  # fmt: skip


def test_keys_and_settings_are_those_of_peft(configs, written: Path):
    with safe_open(written / WEIGHTS, "pt") as file:
        keys, metadata = sorted(file.keys()), file.metadata()
    assert keys[0] == f"{PEFT}down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight"
    assert all(
        re.fullmatch(r"base_model\.model\.\S+\.to_(q|k|v|out\.0)\.lora_[AB]\.weight", key) for key in keys
    )
    assert metadata == {"format": "pt", "base_model": "tiny", "license": "MIT"}
    config = json.loads((written / CONFIG).read_text())
    assert config["r"] == 3 and config["lora_alpha"] == 1.5 and config["peft_type"] == "LORA"
    assert config["target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_layers_of_other_ranks_and_scales_have_patterns(configs, tmp_path: Path):
    adapter = random_adapter(configs)
    layers = dict(adapter.layers["unet"])
    path, low = next(iter(layers.items()))
    layers[path] = LowRank(low.A[:1].clone(), low.B[:, :1].clone(), 7.0)
    adapter = replace(adapter, layers={"unet": layers})
    writing.write(adapter, tmp_path / "x", configs)
    config = json.loads((tmp_path / "x" / CONFIG).read_text())
    assert list(config["rank_pattern"].values()) == [1] and list(config["alpha_pattern"].values()) == [7.0]
    require_same(reading.read(tmp_path / "x", configs), adapter)


def test_part_of_the_layers_is_named_whole(configs, tmp_path: Path):
    adapter = random_adapter(configs)
    path = next(iter(adapter.layers["unet"]))
    adapter = replace(adapter, layers={"unet": {path: adapter.layers["unet"][path]}})
    writing.write(adapter, tmp_path / "x", configs)
    (target,) = json.loads((tmp_path / "x" / CONFIG).read_text())["target_modules"]
    assert target.startswith("down_blocks.") and target.endswith(".attn1.to_q")
    require_same(reading.read(tmp_path / "x", configs), adapter)


def test_rank_stabilised_scale(configs, written: Path):
    change(written, lambda tensors: None, use_rslora=True, lora_alpha=4.0)
    found = reading.read(written, configs).layers["unet"]
    assert {low.scale for low in found.values()} == {4 / math.sqrt(3)}


def test_patterns_are_ends_of_names_as_in_peft(configs, written: Path):
    change(written, lambda tensors: None, alpha_pattern={r"attn1\.to_q": 9.0, "to_k": 6.0})
    found = reading.read(written, configs).layers["unet"]
    scales = {".".join(path.split(".")[-2:]): low.scale for path, low in found.items()}
    assert scales["self_attn.query"] == 3.0 and scales["self_attn.key"] == scales["context_attn.key"] == 2.0
    assert scales["context_attn.query"] == scales["self_attn.value"] == 0.5


def test_half_precision_takes_half_the_space(configs, tmp_path: Path):
    adapter, sizes = random_adapter(configs, rank=8), {}
    for dtype in (torch.float32, torch.float16):
        folder = tmp_path / str(dtype)
        writing.write(adapter, folder, configs, dtype=dtype)
        sizes[dtype] = sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())
        require_same(reading.read(folder, configs), adapter, 1e-3 if dtype == torch.float16 else 0.0)
    assert sizes[torch.float32] == 2 * sizes[torch.float16] == 4 * adapter.parameters


def test_nothing_is_replaced_unasked(configs, written: Path):
    before = (written / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError):
        writing.write(random_adapter(configs, seed=1), written, configs)
    assert (written / WEIGHTS).read_bytes() == before
    writing.write(random_adapter(configs, seed=1), written, configs, force=True)
    assert (written / WEIGHTS).read_bytes() != before


def test_numbers_beyond_the_dtype_leave_no_folder(configs, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"lora_B\.weight is not finite in torch\.float16"):
        adapter = random_adapter(configs, strength=1e6)
        writing.write(adapter, tmp_path / "x", configs, dtype=torch.float16)
    assert not any(tmp_path.iterdir())


# ---- other layouts


def spelled(adapter: Adapter, configs, style: str) -> dict[str, Tensor]:
    """The tensors of a UNet's adapter as other programs name them."""
    tensors = {}
    for place in places(configs)["unet"]:
        low = adapter.layers["unet"].get(place.path)
        if low is None:
            continue
        A, B = (place.theirs(matrix).contiguous() for matrix in (low.A, low.B))
        alpha = torch.tensor(low.scale * low.rank)
        flat = place.module.replace(".", "_")
        tensors |= {
            "diffusers": {f"unet.{place.module}.lora_A.weight": A, f"unet.{place.module}.lora_B.weight": B,
                          f"unet.{place.module}.alpha": alpha},
            "old diffusers": {f"unet.{place.module}.lora.down.weight": A,
                              f"unet.{place.module}.lora.up.weight": B, f"unet.{place.module}.alpha": alpha},
            "kohya": {f"lora_unet_{flat}.lora_down.weight": A, f"lora_unet_{flat}.lora_up.weight": B,
                      f"lora_unet_{flat}.alpha": alpha},
            "peft in memory": {f"{PEFT}{place.module}.lora_A.default.weight": A,
                               f"{PEFT}{place.module}.lora_B.default.weight": B,
                               f"{PEFT}{place.module}.alpha": alpha},
        }[style]  # fmt: skip
    return tensors


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "style, which",
    [
        *(("diffusers", "all"), ("old diffusers", "attention+ff")),
        *(("kohya", "all"), ("peft in memory", "attention")),
    ],
)
def test_files_of_other_programs(style: str, which: str, configs, tmp_path: Path):
    adapter = random_adapter(configs, which, scale=2.5)
    save_file(spelled(adapter, configs, style), tmp_path / "theirs.safetensors")
    require_same(reading.read(tmp_path / "theirs.safetensors", configs), adapter)
    assert (
        reading.read(tmp_path, configs).sha256
        == reading.read(tmp_path / "theirs.safetensors", configs).sha256
    )


def test_alpha_is_the_rank_where_nothing_says_it(configs, tmp_path: Path):
    tensors = spelled(random_adapter(configs), configs, "kohya")
    save_file({key: each for key, each in tensors.items() if "alpha" not in key}, tmp_path / "a.safetensors")
    found = reading.read(tmp_path / "a.safetensors", configs)
    assert {low.scale for low in found.layers["unet"].values()} == {1.0}


def test_settings_in_the_metadata(configs, tmp_path: Path):
    tensors = spelled(random_adapter(configs), configs, "diffusers")
    tensors = {key: each for key, each in tensors.items() if "alpha" not in key}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 12})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    found = reading.read(tmp_path / "a.safetensors", configs)
    assert {low.scale for low in found.layers["unet"].values()} == {4.0}


def test_linear_layers_stored_as_convolutions_and_the_reverse(configs, tmp_path: Path):
    """A shortcut is a 1x1 convolution, a projection before a transformer a linear layer here."""
    adapter = random_adapter(configs, "all")
    tensors = {
        key: each.flatten(1) if each.ndim == 4 and each.shape[2:] == (1, 1) else each
        for key, each in spelled(adapter, configs, "diffusers").items()
    }
    save_file(tensors, tmp_path / "a.safetensors")
    require_same(reading.read(tmp_path / "a.safetensors", configs), adapter)


# ---- what is wrong with a file


def first(tensors: dict[str, Tensor], end: str = "lora_A.weight") -> str:
    return next(key for key in sorted(tensors) if key.endswith(end))


def test_adapter_of_another_width_names_key_and_shapes(configs, written: Path):
    config = replace(configs["unet"], channels=tuple(2 * width for width in configs["unet"].channels))
    text = refusal(written, dict(configs) | {"unet": config})
    found = re.search(r"attn1\.to_\w\.lora_A\.weight is \(3, (\d+)\) and should be \(3, (\d+)\)", text)
    assert found and int(found[2]) == 2 * int(found[1])


def test_matrix_of_another_rank_than_its_partner(configs, written: Path):
    def cut(tensors: dict[str, Tensor]) -> None:
        key = first(tensors, "lora_B.weight")
        tensors[key] = tensors[key][:, :2].contiguous()

    assert "lora_B.weight is" in refusal(change(written, cut), configs)


@pytest.mark.parametrize("name", ["text_model.q", "down_blocks.7.to_q"])
def test_unknown_keys_are_named(name: str, configs, written: Path):
    change(written, lambda tensors: tensors.update({f"{PEFT}{name}.lora_A.weight": torch.zeros(3, 4)}))
    assert f"holds '{PEFT}{name}.lora_A.weight', which fit no layer of this model" in refusal(
        written, configs
    )


def test_other_kinds_of_adapter_are_named(configs, written: Path):
    def dora(tensors: dict[str, Tensor]) -> None:
        tensors[first(tensors).replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(4)

    assert "lora_magnitude_vector', which fit no layer" in refusal(change(written, dora), configs)


def test_lone_matrix_is_named(configs, written: Path):
    lost: list[str] = []
    change(written, lambda tensors: tensors.pop(lost.append(first(tensors, "lora_B.weight")) or lost[0]))
    assert f"holds '{lost[0].replace('lora_B', 'lora_A')}' without its B" in refusal(written, configs)


def test_layer_given_twice(configs, written: Path):
    def twice(tensors: dict[str, Tensor]) -> None:
        key = first(tensors)
        tensors["unet." + key.removeprefix(PEFT)] = tensors[key].clone()

    assert "has two tensors for one layer" in refusal(change(written, twice), configs)


def test_numbers_that_are_not_finite(configs, written: Path):
    change(written, lambda tensors: tensors[first(tensors)].fill_(math.nan))
    assert "is not finite floating-point numbers" in refusal(written, configs)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"use_dora": True}, "says use_dora = True; only plain LoRA"),
        ({"peft_type": "LOHA"}, "says peft_type = 'LOHA'"),
        ({"bias": "all"}, "says bias = 'all'"),
        ({"modules_to_save": ["conv_in"]}, "says modules_to_save"),
        ({"r": 5}, "has rank 3, and its settings say 5"),
        ({"rank_pattern": {"to_q": 2}}, "has rank 3, and its settings say 2"),
        ({"r": "8"}, "is '8'; it has to be a whole number"),
        ({"alpha_pattern": {"to_q": "x"}}, "it has to be a finite number"),
    ],
)
def test_settings_that_cannot_be_followed(settings: dict, words: str, configs, written: Path):
    assert words in refusal(change(written, lambda tensors: None, **settings), configs)


def test_folder_that_is_no_adapter(configs, written: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "it has no adapter_model.safetensors" in refusal(tmp_path / "empty", configs)
    (written / CONFIG).unlink()
    assert f"{CONFIG} is missing" in refusal(written, configs)
    (written / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in refusal(written, configs)
    assert "there is no adapter 'nowhere'" in refusal(Path("./nowhere"), configs)
    (tmp_path / "x.ckpt").write_bytes(b"")
    assert "is not a .safetensors file" in refusal(tmp_path / "x.ckpt", configs)


@pytest.mark.parametrize("file", ["song.wav", "adapter/adapter_model.safetensors"])
def test_folder_of_anything_else_is_not_replaced(file: str, configs, tmp_path: Path):
    (tmp_path / "mine" / file).parent.mkdir(parents=True)
    (tmp_path / "mine" / file).write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds no adapter_model\.safetensors, and a folder"):
        writing.write(random_adapter(configs), tmp_path / "mine", configs, force=True)
    assert (tmp_path / "mine" / file).read_text() == "mine"


def test_adapter_of_other_networks_alone_is_replaced(configs, tmp_path: Path):
    for seed in (0, 1):
        adapter = random_adapter(configs, "all", networks=("gpt2",), seed=seed)
        writing.write(adapter, tmp_path / "mine", configs, force=True)
    assert not (tmp_path / "mine" / "adapter_model.safetensors").exists()
