"""An edit of a network's source shows in what the model computes: on every kernel, in both dtypes, at any
length.

Nothing may stand in for a layer. Each class that computes is edited in turn, as a reader would edit its file,
and the model that is loaded then has to compute what the edited source says.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import torch
from torch import Tensor, nn

import audioldm2
from audioldm2 import clap_score, ops
from audioldm2.models import NETWORKS
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.ops import dispatch
from audioldm2.runtime import tiling
from tests.support.edits import FILES, FOLDER, computing_classes, edited, rebuilt, scale_results

ROOT = Path(audioldm2.__file__).resolve().parents[1]
DTYPES = pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
CLASSES = [(file, name) for file in FILES for name in computing_classes(file)]
# In bfloat16 every class of the networks that take the time, and of the others the last, which runs them all.
IN_BFLOAT16 = [
    (file, name)
    for file, name in CLASSES
    if file in ("unet", "vae", "hifigan") or name == computing_classes(file)[-1]
]


@pytest.fixture(autouse=True)
def every_kernel_runs(monkeypatch):
    """Whatever the clock says, a kernel that agrees with the reference is taken."""
    seconds = lambda runs, args: {name: 1.0 if name == "reference" else 0.1 for name in runs}  # noqa: E731
    monkeypatch.setattr(dispatch, "_time", seconds)
    for operation in ops.OPERATIONS:
        monkeypatch.setattr(operation, "choices", {})


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def of_clap_text(model: audioldm2.AudioLDM2) -> Tensor:
    return clap_score.embed_texts(model.networks, model.clap_tokenizer, ["a dog barks", "rain"])


def of_text(model: audioldm2.AudioLDM2) -> Tensor:
    cond = model.encode_prompt("a dog barks", guided=False)
    return torch.cat([cond.gpt2_context.float().flatten(), cond.text_context.float().flatten()])


def of_vae(model: audioldm2.AudioLDM2) -> Tensor:
    """A short sound, a long one in windows, and the encoder."""
    short, mel = model.decode(randn(*model.sound.latents(1, 9))), randn(1, 1, 32, model.sound.mels)
    with model.networks.running("vae") as vae, torch.no_grad():
        dtype = model.networks.dtypes["vae"]
        z = randn(*model.sound.latents(1, 60)).to(dtype)
        long = tiling.decode(vae, z, whole_up_to=100, frames=80)
        return torch.cat([each.float().flatten() for each in (short, long, *vae.encode(mel.to(dtype)))])


def of_phonemes(model: audioldm2.AudioLDM2) -> Tensor:
    """The tiny model has no phonemes, so their encoder is run alone."""
    config = PhonemesConfig(vocabulary=30, dim=12, depth=2, heads=2, ff_dim=16)
    torch.manual_seed(0)
    network = NETWORKS["phonemes"][0](config).to(model.networks.dtypes["t5"]).eval()
    ids = torch.arange(1, 11)[None]
    with torch.no_grad(), ops.using(model.networks.ops):
        return network(ids, torch.ones(1, 10, dtype=torch.bool)).float()


def of_audiomae(model: audioldm2.AudioLDM2) -> Tensor:
    """The tiny model has none, so its network is run alone."""
    config = AudioMAEConfig(dim=16, depth=3, heads=2, patch=4, frames=64, mels=32, averaged=2)
    torch.manual_seed(0)
    network = NETWORKS["audiomae"][0](config).to(model.networks.dtypes["unet"]).eval()
    with torch.no_grad(), ops.using(model.networks.ops):
        return network(randn(1, 64, 32).to(model.networks.dtypes["unet"])).float()


RUN: dict[str, Callable[[audioldm2.AudioLDM2], Tensor]] = {
    "unet": lambda model: model.denoise(
        model.encode_prompt("a dog barks"), randn(*model.sound.latents(1, 300)), num_inference_steps=1
    ),
    "vae": of_vae,
    "hifigan": lambda model: model.vocode(randn(1, 30, model.sound.mels)).float(),
    "gpt2": of_text,
    "t5": of_text,
    "projection": of_text,
    "clap_text": of_clap_text,
    "clap_audio": lambda model: model.score("a dog barks", 0.1 * randn(1, 16000)),
    "phonemes": of_phonemes,
    "audiomae": of_audiomae,
}


@pytest.fixture(scope="module")
def models(tiny_folder) -> dict[str, audioldm2.AudioLDM2]:
    """The unedited model in each dtype."""
    return {
        dtype: audioldm2.load(tiny_folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
    }


@pytest.fixture(scope="module")
def as_written(models) -> Callable[[str, str], Tensor]:
    """What the unedited networks compute, by file and dtype."""
    found: dict[tuple[str, str], Tensor] = {}

    def compute(file: str, dtype: str) -> Tensor:
        if (file, dtype) not in found:
            found[file, dtype] = RUN[file](models[dtype])
        return found[file, dtype]

    return compute


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def computed(file: str, model: audioldm2.AudioLDM2, mode: str) -> Tensor:
    """What the networks of a file compute with all kernels, or with those of the reference."""
    model.networks.ops = mode
    return RUN[file](model)


def assert_edit_acts(file: str, dtype: str, model: audioldm2.AudioLDM2, before: Tensor) -> None:
    """The result of an edited model has changed, and kernels compute it as the reference does."""
    found, plain = (computed(file, model, mode) for mode in ("auto", "reference"))
    assert distance(found, before) > 2e-3, "the edit has no effect"
    assert distance(found, plain) < (1e-4 if dtype == "float32" else 0.1)
    assert distance(found, plain) < 0.5 * distance(found, before)


def networks_of(file: str) -> list[str]:
    """The networks of a file that the tiny model has."""
    return [] if file in ("phonemes", "audiomae") else [FILES[file]]


@pytest.mark.parametrize(
    ("file", "name", "dtype"),
    [
        *((*each, "float32") for each in CLASSES),
        *(pytest.param(*each, "bfloat16", marks=pytest.mark.slow) for each in IN_BFLOAT16),
    ],
)
def test_edit_of_a_class_acts(file: str, name: str, dtype: str, models, as_written):
    source = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
    elsewhere = {("vae", "VAE"): "decode", ("vae", "Statistics"): "of", ("gpt2", "Past"): "extend"}
    method = elsewhere.get((file, name), "forward")
    before = as_written(file, dtype)
    with edited({file: scale_results(source, name, method)}):
        assert_edit_acts(file, dtype, rebuilt(models[dtype], *networks_of(file)), before)


LAYERS = [
    ("Linear", "forward", "unet"),
    ("Conv1d", "_conv_forward", "hifigan"),
    ("Conv2d", "_conv_forward", "unet"),
    ("UpsamplingConv", "forward", "vae"),
]


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize(("name", "method", "file"), LAYERS)
def test_edit_of_a_shared_layer_acts(name: str, method: str, file: str, dtype: str, models, as_written):
    assert {each[0] for each in LAYERS} == set(computing_classes("layers"))
    source = (FOLDER / "layers.py").read_text(encoding="utf-8")
    before = as_written(file, dtype)
    with edited({"layers": scale_results(source, name, method)}):
        assert_edit_acts(file, dtype, rebuilt(models[dtype], *models[dtype].networks.configs), before)


BY_HAND = [
    ("unet", "value * F.gelu(gate)", "value * F.relu(gate)"),
    ("unet", "self.out = Linear(4 * dim, dim)", "self.out = Linear(4 * dim, dim, bias=False)"),
    ("unet", "heads, mask=mask)", "heads, mask=None)"),
    ("unet", "x = x + self.self_attn(self.self_norm(x))", "x = x + 1.3 * self.self_attn(self.self_norm(x))"),
    ("unet", "timestep_embedding(t.reshape(-1)", "timestep_embedding(0.5 * t.reshape(-1)"),
    ("vae", "hidden = self.conv_in(hidden)", "hidden = F.relu(self.conv_in(hidden))"),
    ("vae", "torch.rsqrt(variance + self.eps)", "torch.rsqrt(variance + 1.0)"),
    ("vae", "z / self.config.scaling_factor", "z"),
    ("hifigan", "F.leaky_relu(x, self.slope)", "F.relu(x)"),
    ("gpt2", 'F.gelu(self.ff_in(self.ff_norm(x)), approximate="tanh")', "self.ff_in(self.ff_norm(x))"),
    ("t5", "scale=1.0", "scale=None"),
    ("clap_text", "F.gelu(self.ff_in(x))", "F.relu(self.ff_in(x))"),
    ("audiomae", "F.max_pool2d(x, config.pool)", "F.avg_pool2d(x, config.pool)"),
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize(
    ("file", "old", "new"), BY_HAND, ids=[f"{file}: {new[:40]}" for file, _, new in BY_HAND]
)
def test_edit_by_hand_acts(file: str, old: str, new: str, dtype: str, tiny_folder, models, as_written):
    source = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
    assert old in source
    prompts = ["a dog barks", "a dog barks, again and again, on a wooden roof"]
    if "mask=None" in new:  # a mask matters where prompts of different lengths share a batch
        with edited({file: source.replace(old, new)}):
            changed = rebuilt(models[dtype], file)
        plain, z = models[dtype], randn(*changed.sound.latents(2, 9))
        each = [
            model.denoise(model.encode_prompt(prompts), z, num_inference_steps=1)
            for model in (changed, plain)
        ]
        assert distance(*each) > 1e-4
        return
    before = as_written(file, dtype)
    with edited({file: source.replace(old, new)}):
        if "bias=False" in new:
            with pytest.raises((audioldm2.WeightsError, RuntimeError), match=r"ff\.out\.bias"):
                audioldm2.load(tiny_folder, device="cpu", dtype=dtype)
            return
        model = rebuilt(models[dtype], *networks_of(file))
        assert distance(RUN[file](model), before) > 1e-3


# Layers changed while Python runs
# -----------------------------------------------------------------------------


class LowRank(nn.Module):
    """LoRA by replacement, as PEFT wraps a layer."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, 2, bias=False).to(base.weight),
            nn.Linear(2, base.out_features, bias=False).to(base.weight),
        )
        nn.init.normal_(self.up.weight, std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Shifted(nn.Module):
    """A parametrisation of a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


def linear_layers(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    found = []
    for parent in network.modules():
        found += [
            (parent, name, child) for name, child in parent.named_children() if isinstance(child, nn.Linear)
        ]
    return found


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, given, result: 1.2 * result)


def patch_forward(layer: nn.Module) -> None:
    layer.forward = lambda x: 1.2 * type(layer).forward(layer, x)


@pytest.fixture(scope="module")
def denoised(models) -> Callable[[str], tuple[audioldm2.Conditioning, Tensor, Tensor]]:
    """A prompt, noise and what the unchanged model computes from them, by dtype."""

    @cache  # a test calls it, so that every kernel runs
    def compute(dtype: str) -> tuple[audioldm2.Conditioning, Tensor, Tensor]:
        model = models[dtype]
        cond, z = model.encode_prompt("a dog barks"), randn(*model.sound.latents(1, 9))
        return cond, z, model.denoise(cond, z, num_inference_steps=2)

    return compute


CHANGES = ("hook", "patched forward", "replaced", "parametrised", "weight written")
ROLES = ("query", "key", "value", "out", "value_and_gate", "proj_in", "time_proj")


@pytest.mark.parametrize(
    ("change", "role", "dtype"),
    [
        # Each role with a change of its call and one of its weight, and each change with some role.
        *((change, role, "float32") for change in ("hook", "parametrised") for role in ROLES),
        *zip(("patched forward", "replaced", "weight written") * 3, ROLES, 7 * ["float32"], strict=False),
        *(
            pytest.param(CHANGES[place % len(CHANGES)], role, "bfloat16", marks=pytest.mark.slow)
            for place, role in enumerate(ROLES)
        ),
    ],
)
def test_change_of_a_loaded_layer_acts(change: str, role: str, dtype: str, models, denoised):
    model, (cond, z, before) = rebuilt(models[dtype], "unet"), denoised(dtype)
    with model.networks.running("unet") as unet, torch.no_grad():
        for parent, name, layer in linear_layers(unet):
            if name != role:
                continue
            if change == "hook":
                hook(layer)
            elif change == "patched forward":
                patch_forward(layer)
            elif change == "replaced":
                setattr(parent, name, LowRank(layer).requires_grad_(False))
            elif change == "parametrised":
                nn.utils.parametrize.register_parametrization(layer, "weight", Shifted())
            else:
                layer.weight.mul_(1.3)
    after = model.denoise(cond, z, num_inference_steps=2)
    assert distance(after, before) > 1e-3
    with ops.using("reference"):
        assert distance(model.denoise(cond, z, num_inference_steps=2), after) < (
            1e-4 if dtype == "float32" else 0.2
        )


@DTYPES
def test_subclass_in_place_of_a_layer_acts(dtype: str, models, denoised):
    model, (cond, z, before) = rebuilt(models[dtype], "unet"), denoised(dtype)
    with model.networks.running("unet") as unet:
        attention = type(unet.middle.layer.gpt2_attn.blocks[0].context_attn)

        class Silent(attention):
            def forward(self, x, context=None, mask=None):
                return torch.zeros_like(x)

        for module in unet.modules():
            if type(module) is attention:
                module.__class__ = Silent
    assert distance(model.denoise(cond, z, num_inference_steps=2), before) > 1e-3


@pytest.mark.slow
def test_edit_of_a_copied_package_acts_from_the_command_line(tmp_path: Path):
    """The whole way once: the package copied, a line edited, a sound generated by the copy."""
    copytree(ROOT / "audioldm2", tmp_path / "audioldm2", ignore=lambda *_: {"__pycache__"})
    unet = tmp_path / "audioldm2" / "models" / "unet.py"
    source = unet.read_text(encoding="utf-8")
    unet.write_text(source.replace("F.gelu(gate)", "F.relu(gate)"), encoding="utf-8")
    request = dict(prompt="a high beep", num_inference_steps=2, audio_length_in_s=0.64)
    program = (
        "import sys; sys.path.insert(0, '.'); import audioldm2, torch;"
        "assert audioldm2.__path__ == [sys.argv[1]];"
        f"torch.save(audioldm2.load('demo', device='cpu').generate(**{request}).latents, 'after.pt')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "audioldm2")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before = audioldm2.load("demo", device="cpu").generate(**request).latents
    assert distance(torch.load(tmp_path / "after.pt"), before) > 0.02
