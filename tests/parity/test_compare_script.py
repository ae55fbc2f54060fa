"""The two scripts about the reference: a tiny checkpoint is made, and both sides are compared on it."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import audioldm2
from audioldm2.prompt.tokenizers import T5Tokenizer
from scripts import compare_with_reference, make_reference_checkpoint

SHORT = ["--duration", "0.3", "--steps", "3"]
TEXT_NETWORKS = ("CLAP text", "T5", "projection", "GPT-2")
STAGES = {
    *(f"{name}, {text}" for name in TEXT_NETWORKS for text in ("prompt", "negative")),
    *("UNet, call 2 of 3", "VAE decoder", "VAE encoder", "HiFi-GAN", "CLAP audio"),
    *("latents, from the prompt", "waveform, from the prompt"),
}


@pytest.fixture(scope="module")
def folder(reference_folder) -> Path:
    return reference_folder


def decibels(printed: str) -> dict[str, float]:
    """What the table says of each stage."""
    lines = re.findall(r"^(.*?) +\d+(?:x\d+)+ +\S+ +\S+ +(\S+)", printed, re.MULTILINE)
    return {name: float(level) for name, level in lines}


def test_every_parameter_is_random_and_every_stage_of_ordinary_size(folder):
    for file in folder.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.is_floating_point():
                assert tensor.isfinite().all() and tensor.abs().max() < 10, name
                assert tensor.numel() == 1 or tensor.std() > 0, name
    model = audioldm2.load(folder, device="cpu")
    result = model.generate("a dog barks", audio_length_in_s=1.0, num_inference_steps=10)
    assert 0.3 < result.latents.std() < 30
    assert 0.1 < result.mel.std() < 3
    assert 0.05 < result.audio.std() < 0.4 and result.audio.abs().mean() < 0.4


def test_ddim(folder, capsys):
    assert compare_with_reference.main([str(folder), *SHORT]) == 0
    table = decibels(capsys.readouterr().out)
    assert table.keys() == STAGES
    assert min(table.values()) >= 60


def test_dpmpp_2m_without_guidance(folder, capsys):
    arguments = [str(folder), *SHORT, "--sampler", "dpmpp_2m", "--guidance", "1"]
    assert compare_with_reference.main(arguments) == 0
    table = decibels(capsys.readouterr().out)
    assert table.keys() == {stage for stage in STAGES if "negative" not in stage}
    assert min(table.values()) >= 60


def test_damaged_weight_shows_in_its_line(folder, tmp_path, capsys):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    file = damaged / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["decoder.mid_block.resnets.0.norm1.weight"] *= 1.5
    save_file(state, file)
    assert compare_with_reference.main([str(folder), *SHORT, "--ours", str(damaged)]) == 1
    printed = capsys.readouterr().out
    short = {stage for stage, level in decibels(printed).items() if level < 60}
    assert short == {"VAE decoder", "waveform, from the prompt"}
    assert "below 60 dB: VAE decoder, waveform, from the prompt" in printed


def test_networks(folder, capsys):
    assert compare_with_reference.main([str(folder), "--networks"]) == 0
    table = decibels(capsys.readouterr().out)
    assert len(table) > 20 and min(table.values()) >= 100


def test_published_language_model_and_pickles(tmp_path, capsys):
    """GPT2Model, with which the reference alone cannot generate, and .bin files."""
    make_reference_checkpoint.main([str(tmp_path), "--gpt2-model", "--bin"])
    assert not list(tmp_path.rglob("*.safetensors"))
    assert compare_with_reference.main([str(tmp_path), *SHORT]) == 0
    assert decibels(capsys.readouterr().out).keys() == STAGES


def test_long_negative_prompt_is_cut_like_the_reference(folder, capsys):
    prompt, negative = "a dog", "Low quality, average quality; noise"
    arguments = [str(folder), *SHORT, "--prompt", prompt, "--negative-prompt", negative]
    assert compare_with_reference.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "the reference cuts the negative prompt to the prompt's length; both sides get 'L"
    )
    assert min(decibels(printed).values()) >= 60


@pytest.mark.parametrize("negative", ["", "noise, hiss and hum", "\u65e5\u672c x", "  two  spaces"])
def test_negative_prompt_is_cut_where_the_reference_cuts(folder, negative):
    """T5 gets from the cut text what the reference's tokenizer leaves of the whole."""
    ours = T5Tokenizer.from_folder(folder / "tokenizer_2")
    reference = make_reference_checkpoint.T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    for prompt in ("", "a dog", "a church bell and a violin"):
        expected = reference(negative, max_length=len(ours.encode(prompt)), truncation=True).input_ids
        cut = compare_with_reference.cut_negative_prompt(ours, prompt, negative)
        assert ours.encode(cut) == expected, prompt


def test_another_layout_is_a_sentence(tmp_path, capsys):
    assert compare_with_reference.main([str(tmp_path)]) == 2
    assert "is not in the diffusers layout" in capsys.readouterr().err
