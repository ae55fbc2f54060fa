"""`hear`: sounds become LOA, at the level of training, and AudioMAE is loaded when it is asked for."""

import threading
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import audioldm2
from audioldm2.audio import audiomae_fbank
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.models.gpt2 import GPT2Config
from tests.support.checkpoints import load_error
from tests.support.hearing import SAMPLES

REQUEST = dict(audio_length_in_s=0.5, num_inference_steps=2)


def noise(samples: int = SAMPLES, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_loa_is_the_network_on_the_sound_at_the_level_of_training(hearing):
    wave = noise(10_000) + 0.3
    centred = wave.double() - wave.double().mean()
    padded = torch.zeros(1, SAMPLES)
    padded[0, :10_000] = (centred * 0.5 / centred.abs().max()).float()
    with hearing.networks.running("audiomae") as audiomae, torch.no_grad():
        expected = audiomae(audiomae_fbank(padded, frames=128))
    found = hearing.hear(wave, 16_000)
    assert found.shape == (1, 8, 24) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_level_and_offset_do_not_count(hearing):
    wave = noise()
    expected = hearing.hear(wave)
    assert distance(hearing.hear(0.01 * wave - 0.2), expected) < 1e-3
    assert distance(hearing.hear(wave.double().numpy()), expected) < 1e-5
    assert distance(hearing.hear(noise(seed=1)), expected) > 1e-2


def test_sound_is_the_same_alone_and_in_a_batch(hearing):
    sounds = [noise(seed=0), noise(5_000, seed=1), noise(20_000, seed=2).numpy()]
    together = hearing.hear(sounds)
    assert together.shape == (3, 8, 24)
    for row, sound in enumerate(sounds):
        assert torch.equal(hearing.hear(sound)[0], together[row])
    both = torch.stack([noise(seed=0), noise(seed=3)])
    assert torch.equal(hearing.hear(both)[0], together[0])


def test_other_rates_are_resampled(hearing):
    """A tone sounds the same at both rates; read at the wrong rate it is another."""
    tone = {rate: torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate) for rate in (16_000, 48_000)}
    expected = hearing.hear(tone[16_000])
    assert distance(hearing.hear(tone[48_000], 48_000), expected) < 0.05
    assert distance(hearing.hear(tone[48_000][:16_000], 16_000), expected) > 0.1


def test_longer_sound_is_cut_with_a_warning(hearing):
    wave = torch.cat([noise(), 3 * noise(SAMPLES, seed=1)])
    with pytest.warns(
        audioldm2.TruncationWarning, match=r"wave lasts 2\.56 s; AudioMAE reads its first 1\.28 s"
    ):
        found = hearing.hear(wave)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, hearing.hear(wave[:SAMPLES]))


BAD = {
    "silence": (torch.zeros(4000), None, "wave is silent; it has to be louder than -120 dB"),
    "constant": (torch.full((4000,), 0.5), None, "wave is silent"),
    "silent start": (torch.cat([torch.zeros(SAMPLES), noise()]), None, "wave begins with silence; .* 1.28 s"),
    "empty": (torch.zeros(0), None, "wave has no samples"),
    "no sounds": (torch.zeros(0, 100), None, "wave has no sounds"),
    "nothing": ([], None, "wave has no samples"),
    "NaN": (torch.full((4000,), torch.nan), None, "wave has 4000 samples of 4000 that are NaN or infinite"),
    "one of several": ([noise(), noise() / 0], None, r"wave\[1\] has 20480 samples of 20480 that are NaN"),
    "whole numbers": (np.zeros(4000, dtype=np.int16), None, r"wave is int16 \(4000,\); it has to be floats"),
    "shape": (torch.zeros(1, 2, 4000), None, r"wave is float32 \(1, 2, 4000\)"),
    "stereo in a list": ([noise(), torch.zeros(2, 4000)], None, r"wave\[1\] is float32 \(2, 4000\)"),
    "a file's name": ("dog.wav", None, "wave is 'dog.wav'; it has to be floats"),
    "none": (None, None, "wave is None; it has to be floats"),
    "rate": (noise(), 0, "sample_rate is 0; it has to be a whole number from 1 to"),
    "broken rate": (noise(), 44_100.5, "sample_rate is 44100.5"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore::audioldm2.TruncationWarning")
def test_bad_sound_is_named_before_the_network_runs(hearing, case: str, monkeypatch):
    monkeypatch.setattr(hearing.networks, "running", lambda name: pytest.fail(f"{name} ran"))
    wave, rate, words = BAD[case]
    with pytest.raises(ArgumentError, match=words):
        hearing.hear(wave, rate)


def test_model_without_audiomae_says_how_to_add_it(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match=r"has no AudioMAE, which .* 'audioldm2 train --stage audiomae"):
        tiny_model.hear(noise())
    monkeypatch.setitem(tiny_model.networks.configs, "gpt2", GPT2Config())  # of the published size
    with pytest.raises(ValueError, match=r"has no AudioMAE, which .* 'audioldm2 convert .* OUT --audiomae"):
        tiny_model.hear(noise())


# Where AudioMAE lives ---------------------------------------------------------------------------------------


def test_audiomae_is_loaded_when_asked_for(hearing_folder, tiny_model):
    model = audioldm2.load(hearing_folder, device="cpu")
    found = model.generate("rain", **REQUEST)
    assert torch.equal(found.audio, tiny_model.generate("rain", **REQUEST).audio)
    assert model.networks._loaded.keys() == tiny_model.networks._loaded.keys()
    model.hear(noise())
    assert model.networks._loaded.keys() - tiny_model.networks._loaded.keys() == {"audiomae"}
    with model.networks.running("audiomae") as first, model.networks.running("audiomae") as second:
        assert first is second


@pytest.mark.parametrize("where", [dict(offload=True), dict(low_memory=True)])
def test_every_residence_hears_the_same(hearing_folder, hearing, where: dict):
    model = audioldm2.load(hearing_folder, device="cpu", **where)
    expected = hearing.hear(noise())
    for _ in range(2):
        assert torch.equal(model.hear(noise()), expected)
    with model.networks.running("audiomae") as audiomae:
        weight = audiomae.position_embedding
    assert audiomae.position_embedding.is_meta == ("low_memory" in where)
    assert not weight.is_meta or "low_memory" in where


def test_threads_hear_at_once(hearing_folder, hearing):
    model, sounds = audioldm2.load(hearing_folder, device="cpu"), [noise(seed=seed) for seed in range(4)]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda row=row: found.update({row: model.hear(sounds[row])}))
        for row in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, sound in enumerate(sounds):
        assert torch.equal(found[row], hearing.hear(sound))


def test_bfloat16_hears_nearly_the_same(hearing_folder, hearing):
    model = audioldm2.load(hearing_folder, device="cpu", dtype="bfloat16")
    found, expected = model.hear(noise()), hearing.hear(noise())
    assert found.dtype == torch.float32 and 0 < distance(found, expected) < 0.05


def test_damaged_audiomae_is_an_error_of_loading(hearing_folder, tmp_path):
    """Although it is read later."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in hearing_folder.iterdir():
        (folder / path.name).symlink_to(path)
    state = load_file(folder / "audiomae.safetensors")
    (folder / "audiomae.safetensors").unlink()
    del state["norm_out.bias"]
    save_file(state, folder / "audiomae.safetensors")
    message = load_error(folder)
    assert "norm_out.bias" in message and "audiomae" in message


def test_loaded_folder_names_the_file_of_its_audiomae(hearing_folder, tmp_path):
    from audioldm2.checkpoints import storage

    checkpoint = storage.read(hearing_folder)
    assert checkpoint.audiomae_source == "full.pth"
    config = hearing_folder / "config.json"
    assert '"audiomae_source": "full.pth"' in config.read_text(encoding="utf-8")
    (tmp_path / "model").mkdir()
    for path in hearing_folder.iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    (tmp_path / "model" / "config.json").unlink()
    text = config.read_text(encoding="utf-8").replace('"full.pth"', "7")
    (tmp_path / "model" / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"'audiomae_source' in .* is 7; it has to be a text or null"):
        storage.read(tmp_path / "model")
