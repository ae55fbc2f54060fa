"""Adapters against PEFT on diffusers' UNet and transformers' GPT-2: ours there, theirs here.

In float64, because adapters as strong as these amplify the rounding of float32 to 2e-5. Diffusers' UNet has
no loader of its own.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from torch import Tensor, nn

from audioldm2 import convert
from audioldm2.adapters import lora, reading, writing
from audioldm2.adapters.adapter import Adapter, additions
from audioldm2.models import build_on_meta
from audioldm2.models.gpt2 import Past
from tests.support import reference
from tests.support.adapters import random_adapter

peft = pytest.importorskip("peft")

TOLERANCE = 1e-6  # relative distance of predictions; both embed the diffusion time in float32
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "attention+ff": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
    "all": "all-linear-and-convolutions",  # a list of names, below
}


@pytest.fixture(scope="module")
def unets() -> tuple[AudioLDM2UNet2DConditionModel, nn.Module, object]:
    """A random UNet of diffusers, the same as ours, and its config."""
    theirs = reference.unet(layers_per_block=1).double()
    config = convert.unet.config_from(dict(theirs.config))
    ours = build_on_meta("unet", config)
    ours.load_state_dict(convert.convert_state("unet", config, theirs.state_dict(), "here"), assign=True)
    return theirs, ours, config


def copy_of(theirs: AudioLDM2UNet2DConditionModel) -> AudioLDM2UNet2DConditionModel:
    copy = AudioLDM2UNet2DConditionModel.from_config(theirs.config)
    copy.double().load_state_dict(theirs.state_dict())
    return copy.eval()


def same_weights(ours: nn.Module, config: object) -> nn.Module:
    twin = build_on_meta("unet", config)
    twin.load_state_dict(ours.state_dict(), assign=True)
    return twin


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = (2, 3, 13, 8), (2, 5, 12), (2, 6, 20)
    x, gpt2, text = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, gpt2, text, torch.tensor(411)


@torch.no_grad()
def predicted_by_theirs(unet: nn.Module) -> Tensor:
    x, gpt2, text, t = inputs()
    return unet(x, t, encoder_hidden_states=gpt2, encoder_hidden_states_1=text).sample


@torch.no_grad()
def predicted_by_ours(unet: nn.Module) -> Tensor:
    x, gpt2, text, t = inputs()
    return unet(x, t, gpt2_context=gpt2, text_context=text)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("which", lora.LAYER_SETS)
def test_our_adapter_in_peft(which: str, unets, tmp_path: Path):
    theirs, ours, config = unets
    adapter = random_adapter({"unet": config}, which, rank=4)
    writing.write(adapter, tmp_path / "ours", {"unet": config})
    model = peft.PeftModel.from_pretrained(copy_of(theirs), tmp_path / "ours")
    loaded = {key: tensor for key, tensor in model.state_dict().items() if "lora_" in key}
    assert len(loaded) == 2 * len(adapter.layers["unet"])
    found = predicted_by_ours(additions([adapter])["unet"](same_weights(ours, config)))
    assert distance(found, predicted_by_theirs(model.base_model.model)) < TOLERANCE
    assert distance(found, predicted_by_theirs(theirs)) > 0.02


@pytest.mark.parametrize(
    "which, settings",
    [
        ("attention", {"lora_alpha": 16}),
        ("attention", {"use_rslora": True}),
        ("attention+ff", {"rank_pattern": {"to_q": 2, r"attn2\.to_k": 7}, "alpha_pattern": {"to_v": 1}}),
        ("all", {"lora_alpha": 3}),
    ],
)
def test_their_adapter_here(which: str, settings: dict, unets, tmp_path: Path):
    theirs, ours, config = unets
    targets = TARGETS[which]
    if which == "all":
        kinds = (nn.Linear, nn.Conv2d)
        targets = [name for name, layer in theirs.named_modules() if isinstance(layer, kinds)]
    asked = peft.LoraConfig(r=4, target_modules=targets, **settings)
    model = peft.get_peft_model(copy_of(theirs), asked)
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    found = predicted_by_ours(with_file(tmp_path / "theirs", ours, config))
    assert distance(found, predicted_by_theirs(model.base_model.model)) < TOLERANCE
    assert distance(found, predicted_by_theirs(theirs)) > 0.02


def test_adapter_of_gpt2(tmp_path: Path):
    """Its layers are transposed there, and PEFT transposes their product."""
    theirs = reference.gpt2().double()
    config = convert.gpt2.config_from(theirs.config.to_dict())
    ours = build_on_meta("gpt2", config)
    ours.load_state_dict(convert.convert_state("gpt2", config, theirs.state_dict(), "here"), assign=True)
    adapter = random_adapter({"gpt2": config}, "all", networks=["gpt2"], strength=0.1)
    writing.write(adapter, tmp_path / "x", {"gpt2": config})
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(theirs, tmp_path / "x" / "language_model")
        expected = model(inputs_embeds=x, output_hidden_states=True).hidden_states[-1]
        adapted = additions([adapter])["gpt2"](ours)
        past = [Past(7) for _ in ours.blocks]
        found = adapted(x, torch.arange(7), torch.ones(2, 7, dtype=torch.bool), past)
        with model.disable_adapter():
            unchanged = model(inputs_embeds=x, output_hidden_states=True).hidden_states[-1]
    assert distance(found, expected) < TOLERANCE < 0.02 < distance(found, unchanged)


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2, generator=generator)


def with_file(path: Path, ours: nn.Module, config: object) -> nn.Module:
    adapter: Adapter = reading.read(path, {"unet": config})
    return additions([adapter])["unet"](same_weights(ours, config))
