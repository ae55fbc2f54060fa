"""Export to the diffusers layout: the reference loads it strictly and generates our sound; and back.

The errors measured are 118 dB below the sound and more.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ClapModel,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    T5EncoderModel,
    T5TokenizerFast,
)

import audioldm2
from audioldm2 import NoiseSchedule, convert
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5
from audioldm2.models.vae import VAEConfig
from audioldm2.prompt.tokenizers import T5Tokenizer
from audioldm2.training.new_model import configs_from, from_scratch
from scripts import make_random_checkpoint, make_reference_checkpoint
from tests.support import originals

LEAST = 100  # dB of signal over error
PROMPT = "a dog barks while the rain falls"
CLASSES = {
    "text_encoder": ClapModel,
    "text_encoder_2": T5EncoderModel,
    "projection_model": AudioLDM2ProjectionModel,
    "language_model": GPT2LMHeadModel,
    "unet": AudioLDM2UNet2DConditionModel,
    "vae": AutoencoderKL,
    "vocoder": SpeechT5HifiGan,
}
BASE = make_random_checkpoint.TINY
ATTENDING = (SELF, GPT2, T5)
UNETS = {
    "base": replace(BASE["unet"], transformers=((), ATTENDING, ATTENDING), layers=2),
    "large": replace(BASE["unet"], transformers=((), (), (*ATTENDING, LAST_SELF)), depth=2),
    "music": BASE["unet"],
    "contexts that differ": replace(BASE["unet"], transformers=((SELF,), (GPT2,), ATTENDING)),
    "heads that differ": replace(BASE["unet"], transformers=(ATTENDING,) * 3, heads=(1, 6, 2)),
}
SETTINGS = {"audio_length_in_s": 0.97, "num_inference_steps": 4, "negative_prompt": "noise"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    """Tokenizers in the published form, which the reference reads without further packages."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in zip(storage.TOKENIZERS, make_reference_checkpoint.small_tokenizers(), strict=True):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizers) -> Callable[[str], tuple[Path, Path]]:
    """Returns a converted folder of a kind, and the same in the diffusers layout."""
    folders: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in folders:
            folder = tmp_path_factory.mktemp("made")
            storage.write(checkpoint(kind, tokenizers), folder / "converted")
            convert.write_diffusers(storage.read(folder / "converted"), folder / "diffusers")
            folders[kind] = folder / "converted", folder / "diffusers"
        return folders[kind]

    return make


def checkpoint(kind: str, tokenizers: Path) -> storage.Checkpoint:
    """Return a random checkpoint whose activations have an ordinary size at each step."""
    folders = make_random_checkpoint.find_tokenizers(tokenizers)
    sizes = {
        name: reader.from_folder(folders[name]).splitter.get_vocab_size()
        for name, reader in storage.TOKENIZERS.items()
    }
    configs: dict[str, Any] = BASE | {
        "unet": UNETS[kind],
        "clap_text": replace(BASE["clap_text"], vocabulary=sizes["clap_tokenizer"]),
        "t5": replace(BASE["t5"], vocabulary=sizes["t5_tokenizer"]),
    }
    if kind == "music":
        configs["vae"] = replace(BASE["vae"], scaling_factor=0.2, channels=(8, 16, 20), layers=2)
    return storage.Checkpoint(
        configs=configs,
        states={
            name: partial(make_random_checkpoint.random_state, name, config, place, torch.float32)
            for place, (name, config) in enumerate(configs.items())
        },
        schedule={"beta_end": 0.02} if kind == "music" else {},
        clap_mel={"f_max": 12000} if kind == "music" else {},
        tokenizers=folders,
        source="random",
    )


def states_of(checkpoint: storage.Checkpoint) -> dict[str, dict[str, Tensor]]:
    return {name: open_state() for name, open_state in checkpoint.states.items()}


def signal_to_error(found: Tensor, expected: Tensor) -> float:
    """Return the ratio in dB."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01, "the reference's sound is too quiet to judge"
    error = (found - expected).double().norm().clamp(min=1e-20)
    return 20 * torch.log10(expected.double().norm() / error).item()


@pytest.mark.parametrize(
    ("kind", "folder"),
    [  # the kinds differ by their UNets, and the music model by its VAE
        *(("base", folder) for folder in CLASSES),
        *((kind, "unet") for kind in UNETS if kind != "base"),
        ("music", "vae"),
    ],
)
def test_reference_loads_each_network_strictly(made, kind, folder):
    _, diffusers = made(kind)
    _, info = CLASSES[folder].from_pretrained(diffusers / folder, output_loading_info=True)
    found = {what: list(keys) for what, keys in info.items() if keys}
    assert found == {}


@pytest.mark.parametrize(
    ("kind", "guidance_scale"), [*((kind, 3.5) for kind in UNETS if kind != "base"), ("base", 1.0)]
)
def test_reference_generates_our_sound(made, kind, guidance_scale):
    converted, diffusers = made(kind)
    pipe = AudioLDM2Pipeline.from_pretrained(diffusers)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    settings = SETTINGS | {"guidance_scale": guidance_scale}
    generator = torch.Generator("cpu").manual_seed(5)
    expected = pipe(PROMPT, generator=generator, output_type="pt", **settings).audios
    ours = audioldm2.load(converted, device="cpu")
    found = ours.generate(PROMPT, seed=5, sampler="ddim", **settings)
    assert signal_to_error(found.audio[0], expected) >= LEAST


@pytest.mark.parametrize("kind", UNETS)
def test_round_trip_is_bit_exact(made, kind, tmp_path):
    converted, diffusers = made(kind)
    before, between = storage.read(converted), convert.read_diffusers(diffusers)
    storage.write(between, tmp_path / "again")
    after = storage.read(tmp_path / "again")
    assert after.configs == between.configs == before.configs
    assert storage.schedule_of(after, "") == storage.schedule_of(before, "")
    assert storage.clap_mel_of(after, "") == storage.clap_mel_of(before, "")
    ours, found = states_of(before), states_of(after)
    assert found.keys() == ours.keys()
    for name, state in ours.items():
        assert found[name].keys() == state.keys()
        for key, tensor in state.items():
            assert torch.equal(found[name][key], tensor) and found[name][key].dtype == tensor.dtype
    if kind == "music":
        assert storage.schedule_of(after, "") == replace(NoiseSchedule(), beta_end=0.02)
        assert storage.clap_mel_of(after, "").f_max == 12000


def test_round_trip_keeps_the_tokenizers(made):
    converted, diffusers = made("base")
    before, after = (audioldm2.load(folder, device="cpu") for folder in (converted, diffusers))
    for text in ("a dog", "", "<mask> ünïcödé 日本", "bell " * 600):
        assert before.clap_tokenizer.encode(text) == after.clap_tokenizer.encode(text)
        assert before.t5_tokenizer.encode(text) == after.t5_tokenizer.encode(text)


def test_float16_export_keeps_overflowing_weights_in_float32(made, tmp_path):
    """The reference keeps them in float32 too."""
    converted, _ = made("base")
    convert.write_diffusers(storage.read(converted), tmp_path / "half", dtype=torch.float16)
    back = convert.read_diffusers(tmp_path / "half")
    for name, state in states_of(back).items():
        kept = {key for key, tensor in state.items() if tensor.dtype == torch.float32}
        assert {tensor.dtype for tensor in state.values()} <= {torch.float16, torch.float32}
        assert all(".ff.out." in key for key in kept) and bool(kept) == (name == "t5")
    model = T5EncoderModel.from_pretrained(tmp_path / "half" / "text_encoder_2", dtype=torch.float16)
    dense = model.encoder.block[0].layer[1].DenseReluDense
    assert (dense.wo.weight.dtype, dense.wi_0.weight.dtype) == (torch.float32, torch.float16)


def test_reference_reads_a_sentencepiece_vocabulary(tmp_path):
    """Of sentencepiece's file alone, which transformers reads only with another package."""
    captions = ["a dog barks", "rain falls on a roof", "a high beep, then rain", "wind", "one two three four"]
    (tmp_path / "vocabularies").mkdir()
    made = from_scratch(configs_from({}, "the test"), captions, tmp_path / "vocabularies")
    convert.write_diffusers(made, tmp_path / "diffusers")
    ours = T5Tokenizer.from_folder(made.tokenizers["t5_tokenizer"])
    for kind in (AutoTokenizer, T5TokenizerFast):
        theirs = kind.from_pretrained(tmp_path / "diffusers" / "tokenizer_2")
        for text in ("a dog", "", "  Rain  falls. ", "zzz \u65e5", "a </s> dog"):
            assert theirs(text).input_ids == ours.encode(text)


@pytest.mark.parametrize("roles", [(T5,), (GPT2, T5), (SELF, T5), (T5, SELF)])
def test_rejects_contexts_that_the_layout_would_swap(tmp_path, tokenizers, roles):
    source = checkpoint("base", tokenizers)
    source.configs["unet"] = replace(BASE["unet"], transformers=((), roles, ATTENDING))
    with pytest.raises(WeightsError, match="because it tells them apart by their place"):
        convert.write_diffusers(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["48k", "t5"])
def test_rejects_kind_that_the_layout_cannot_hold(tmp_path, kind):
    file = originals.save(tmp_path / "a.pth", originals.make(kind).table)
    source = convert.read_original(file)
    source.states = dict.fromkeys(source.states, None)  # opening one would be a TypeError
    with pytest.raises(WeightsError, match=r"the diffusers layout is that of AudioLDM2Pipeline"):
        convert.write_diffusers(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("kind", ["base", "large"])
def test_original_is_exported_directly(tmp_path, tokenizers, kind):
    """From the .pth file, with heads 32 wide, whose number differs per level."""
    file = originals.save(tmp_path / "a.pth", originals.make(kind).table)
    found = make_random_checkpoint.find_tokenizers(tokenizers)
    convert.write_diffusers(convert.read_original(file, tokenizers=found), tmp_path / "out")
    unet, info = CLASSES["unet"].from_pretrained(tmp_path / "out" / "unet", output_loading_info=True)
    assert not any(info.values())
    back = convert.read_diffusers(tmp_path / "out")
    kept = {name: config for name, config in originals.make(kind).configs.items() if name != "audiomae"}
    assert back.configs == kept
    heads = [block.attentions[0].transformer_blocks[0].attn1.heads for block in unet.down_blocks[1:]]
    assert heads == list(originals.make(kind).configs["unet"].heads[1:])
    for name, state in states_of(back).items():
        assert all(torch.equal(each, originals.make(kind).states[name][key]) for key, each in state.items())


def test_vae_of_one_level_survives_the_round_trip(made, tmp_path, tokenizers):
    """It neither downsamples nor upsamples."""
    source = checkpoint("base", tokenizers)
    config = VAEConfig(latent_channels=8, channels=(8,), layers=1, norm_groups=4)
    source.configs |= {"vae": config}
    source.states["vae"] = partial(make_random_checkpoint.random_state, "vae", config, 0, torch.float32)
    convert.write_diffusers(source, tmp_path / "out")
    _, info = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae", output_loading_info=True)
    assert not any(info.values())
    found, expected = convert.read_diffusers(tmp_path / "out").states["vae"](), source.states["vae"]()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
