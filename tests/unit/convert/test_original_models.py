"""Models loaded from original files: what each kind generates, and from which contexts."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import audioldm2
from audioldm2 import convert
from audioldm2.audio import read, resample, write_wav
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from audioldm2.prompt.conditioning import Conditioning
from tests.support import originals
from tests.support.checkpoints import states_of
from tests.support.originals import table_of

KINDS = tuple(originals.CONFIGS)

SOUNDING = tuple(kind for kind in KINDS if kind != "speech")

RATES = {"base": 16000, "large": 16000, "48k": 48000, "t5": 16000}

QUICK = dict(audio_length_in_s=0.25, num_inference_steps=2)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    """No network and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", SOUNDING)
def test_generates_at_its_rate_and_length(models, kind):
    model = models(kind)
    result = model.generate("a dog", **QUICK)
    assert result.sample_rate == model.sample_rate == RATES[kind]
    assert result.audio.shape == (1, 1, RATES[kind] // 4)
    assert result.audio.isfinite().all() and result.audio.std() > 1e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["48k", "large"])
def test_converted_folder_generates_the_same_sound(models, folder, tmp_path, kind):
    tokenizers = {"clap_tokenizer": folder / "tokenizer", "t5_tokenizer": folder / "tokenizer_2"}
    storage.write(convert.read_original(folder / f"{kind}.pth", tokenizers=tokenizers), tmp_path / "out")
    again = audioldm2.load(tmp_path / "out", device="cpu")
    one, other = (
        model.generate("a dog", negative_prompt="noise", **QUICK) for model in (models(kind), again)
    )
    # A transposed view and a copy of it may differ in the last bit.
    torch.testing.assert_close(one.audio, other.audio, rtol=0, atol=1e-5)


CONTEXTS = {
    "base": {"gpt2_context", "text_context", "t5_mask"},
    "large": {"gpt2_context", "text_context", "t5_mask"},
    "48k": {"clap_vector"},
    "t5": {"text_context", "t5_mask"},
}


@pytest.mark.parametrize("kind", SOUNDING)
def test_conditioning_has_exactly_the_contexts_of_the_denoiser(models, kind):
    model = models(kind)
    conditioning = model.encode_prompt(["a dog", "rain"], "noise")
    configs = model.networks.configs
    assert conditioning.tensors.keys() == conditioning.negative.tensors.keys() == CONTEXTS[kind]
    widths = {"gpt2_context": 128, "text_context": 14, "clap_vector": 10}
    for name in CONTEXTS[kind] - {"t5_mask"}:
        assert conditioning.tensors[name].shape[-1] == widths[name]
        assert len(conditioning.tensors[name]) == 2
    assert (configs["unet"].film_dim > 0) == (conditioning.clap_vector is not None)


@pytest.mark.parametrize("kind", ["base", "48k", "t5"])
def test_guidance_moves_away_from_the_negative_prompt(models, kind):
    model = models(kind)
    plain, away, towards_itself, unguided = (
        model.generate("a dog", guidance_scale=scale, negative_prompt=negative, **QUICK).latents
        for scale, negative in ((3.5, None), (3.5, "rain on the roof"), (3.5, "a dog"), (1.0, None))
    )
    torch.testing.assert_close(towards_itself, unguided, rtol=0, atol=1e-4)  # no difference to amplify
    for one, other in ((plain, away), (plain, unguided), (away, unguided)):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["base", "48k"])
def test_candidates_are_ranked(models, kind):
    result = models(kind).generate("a dog", num_waveforms_per_prompt=3, **QUICK)
    assert result.audio.shape[:2] == result.scores.shape == (1, 3)
    assert result.scores[0].tolist() == sorted(result.scores[0].tolist(), reverse=True)
    assert sorted(result.seeds[0]) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["48k", "t5"])
def test_prompt_sounds_the_same_alone_and_in_a_batch(models, kind):
    model, prompts = models(kind), ["a dog", "a hammer hitting a wooden surface", "rain"]
    together = model.generate(prompts, **QUICK).audio
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(model.generate(prompt, **QUICK).audio[0], together[row], rtol=0, atol=1e-4)


def test_film_vector_is_the_unit_clap_embedding(models):
    """Without a negative prompt the unconditional half is the embedding of the empty text."""
    model = models("48k")
    conditioning = model.encode_prompt("a dog")
    torch.testing.assert_close(conditioning.clap_vector.norm(dim=-1), torch.ones(1))
    empty = model.encode_prompt("", guided=False)
    torch.testing.assert_close(conditioning.negative.clap_vector, empty.clap_vector)
    assert (conditioning.clap_vector - empty.clap_vector).abs().max() > 1e-3


def test_clap_conditioning_can_be_saved_and_loaded(models, tmp_path):
    conditioning = models("48k").encode_prompt(["a dog", "rain"], "noise")
    conditioning.save(tmp_path / "dog.safetensors")
    found = Conditioning.load(tmp_path / "dog.safetensors")
    assert found.tensors.keys() == {"clap_vector"} == found.negative.tensors.keys()
    assert torch.equal(found.clap_vector, conditioning.clap_vector)
    assert torch.equal(found.negative.clap_vector, conditioning.negative.clap_vector)


def test_clap_conditioning_is_mixed_at_unit_norm(models):
    model = models("48k")
    dog, rain = (model.encode_prompt(prompt, "noise") for prompt in ("a dog", "rain on the roof"))
    for amount, end in ((0, dog), (1, rain)):
        assert torch.equal(dog.mix(rain, amount).clap_vector, end.clap_vector)
    middle = dog.mix(rain, 0.5).clap_vector
    torch.testing.assert_close(middle.norm(dim=-1), torch.ones(1))
    towards = [torch.cosine_similarity(middle, each.clap_vector).item() for each in (dog, rain)]
    assert towards[0] == pytest.approx(towards[1], abs=1e-5)
    assert towards[0] > torch.cosine_similarity(dog.clap_vector, rain.clap_vector).item()


def test_mixed_clap_conditioning_denoises_to_neither_end(models):
    model = models("48k")
    dog, rain = (model.encode_prompt(prompt) for prompt in ("a dog", "rain on the roof"))
    noise = torch.randn(model.sound.latents(1, 4))
    one, middle, other = (
        model.denoise(each, noise, num_inference_steps=2) for each in (dog, dog.mix(rain, 0.5), rain)
    )
    assert (one - middle).abs().max() > 1e-3 and (other - middle).abs().max() > 1e-3


@pytest.mark.parametrize(("of", "to"), [("t5", "48k"), ("48k", "t5"), ("base", "t5"), ("t5", "base")])
def test_rejects_conditioning_of_another_kind(models, of, to):
    """One that has more than this denoiser needs is accepted."""
    conditioning, noise = models(of).encode_prompt("a dog"), torch.randn(models(to).sound.latents(1, 4))
    if CONTEXTS[to] <= CONTEXTS[of]:
        assert models(to).denoise(conditioning, noise, num_inference_steps=1).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"it has to have .*make it with this model's encode_prompt"):
        models(to).denoise(conditioning, noise, num_inference_steps=1)


@pytest.mark.parametrize("residence", ["offload", "low_memory"])
def test_residence_does_not_change_the_sound(models, folder, residence):
    other = audioldm2.load(folder / "48k.pth", device="cpu", **{residence: True})
    one, other = (model.generate("a dog", **QUICK).audio for model in (models("48k"), other))
    assert torch.equal(one, other)


def test_speech_model_speaks_as_upstream_trained(models):
    model = models("speech")
    assert model.speaks and model.unconditional == "trained" and model.sound.default_seconds == 10.24
    conditioning = model.encode_prompt(["a man", "a woman"], phonemes=["ab", "abcba"])
    assert conditioning.gpt2_context.shape == (2, 512, 128) and conditioning.text_context is None
    assert not conditioning.negative.gpt2_context.any()


def test_folder_with_one_original_loads(folder, tmp_path):
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).symlink_to(folder / name)
    originals.save(tmp_path / "audioldm_48k.pth", table_of("48k"))
    assert audioldm2.load(tmp_path, device="cpu").sample_rate == 48000


def test_folder_with_several_originals_asks_for_one(folder):
    with pytest.raises(WeightsError, match=r"has several original checkpoints .* name one of them"):
        audioldm2.load(folder, device="cpu")


def test_rejects_loading_without_tokenizers(tmp_path, offline):
    file = originals.save(tmp_path / "a.pth", table_of("t5"))
    with pytest.raises(WeightsError, match=r"a\.pth has no 'clap_tokenizer', 't5_tokenizer'.*--tokenizers"):
        audioldm2.load(file, device="cpu")


def test_tensors_stay_memory_mapped(folder):
    """Every tensor that is not transposed or cut is a view of the mapped file."""
    one, other = (states_of(convert.read_original(folder / "t5.pth"))["unet"] for _ in range(2))
    mapped = mapped_ranges(folder / "t5.pth")
    for state in (one, other):
        for key, tensor in state.items():
            assert any(low <= tensor.data_ptr() < high for low, high in mapped), key


def mapped_ranges(file: Path) -> list[tuple[int, int]]:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps, which this system lacks")
    found = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(file) in line
    ]
    return [(int(low, 16), int(high, 16)) for low, high in found]


def test_file_at_16_khz_is_extended_to_48_khz(models, tmp_path):
    """What the file has stays; above its 8 kHz stands what the model makes."""
    model, seconds = models("48k"), 0.5
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0)) / 10
    write_wav(tmp_path / "low.wav", wave, 16_000)
    result = model.generate("a dog", audio=tmp_path / "low.wav", mask_start_hz=8000, num_inference_steps=2)
    assert result.sample_rate == 48_000 and result.audio.shape[-1] == round(48_000 * seconds)
    kept_to = result.record()["remade_hz"][0][0]
    assert 2000 < kept_to <= 8000
    own = resample(read(tmp_path / "low.wav")[0], 16_000, 48_000)
    made = result.audio[0, 0]
    window, hz = torch.hann_window(len(own), dtype=torch.float64), torch.fft.rfftfreq(len(own), 1 / 48_000)

    def energy(of: torch.Tensor, band: torch.Tensor) -> float:
        return torch.fft.rfft(of.double() * window)[band].abs().square().sum().item()

    low, high = hz < kept_to - 100, hz > 8500
    own_low, own_high, made_high = energy(own, low), energy(own, high), energy(made, high)
    error_low = energy(made - own, low)
    assert error_low < 1e-6 * own_low, "-60 dB"
    assert made_high > 1e3 * own_high, "the file has nothing there"
