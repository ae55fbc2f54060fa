"""The Python API: names, shapes and promises that users rely on, with the tiny model."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audioldm2
from audioldm2.editing.edit import EDITING_OPTIONS
from audioldm2.options import SOUND_PROMPT_OPTIONS, SPEECH_OPTIONS, GenerationOptions

QUICK = dict(audio_length_in_s=0.2, num_inference_steps=3)  # 20 mel frames, 5 latent frames, 3,200 samples


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_folder) -> Path:
    """A folder to run in, where the tiny model has the published model's name."""
    (tmp_path / "cvssp").mkdir()
    (tmp_path / "cvssp" / "audioldm2").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_calls_of_the_public_api(here):
    model = audioldm2.load("cvssp/audioldm2", device="auto", dtype="auto")
    result = model.generate(
        "Techno music with a strong beat",
        negative_prompt="Low quality.", audio_length_in_s=10.0, num_inference_steps=25, guidance_scale=3.5,
        num_waveforms_per_prompt=3, sampler="dpmpp_2m", eta=0.0, seed=0, latents=None, on_step=None,
    )  # fmt: skip
    assert result.audio.shape == (1, 3, 160000) and result.audio.dtype == torch.float32
    assert result.sample_rate == 16000
    assert result.scores.shape == (1, 3)
    assert result.latents.shape == (3, 8, 250, 16)
    assert result.mel.shape == (3, 1000, 64)
    assert result.save("techno.wav") == [Path("techno.wav")]

    cond = model.encode_prompt("dog", negative_prompt="noise")
    latents = torch.randn(1, 8, 250, 16)
    z = model.denoise(cond, latents, num_inference_steps=25, sampler="ddim", guidance_scale=3.5)
    mel = model.decode(z)
    wave = model.vocode(mel)
    assert (z.shape, mel.shape, wave.shape) == ((1, 8, 250, 16), (1, 1000, 64), (1, 160032))
    assert soundfile.info("techno.wav").frames == 160000


def test_public_names():
    assert set(audioldm2.__all__) == {
        "SAMPLERS", "AudioLDM2", "Conditioning", "NoiseSchedule", "Result", "Speech", "TruncationWarning",
        "WeightsError", "load", "speak",
    }  # fmt: skip
    assert all(hasattr(audioldm2, name) for name in audioldm2.__all__)


def test_generating_does_not_import_the_compiler(tiny_folder):
    """PyTorch's compiler takes longer to import than a small model to load; see `models.build_on_meta`."""
    program = f"""
import sys, audioldm2
model = audioldm2.load({str(tiny_folder)!r}, device="cpu")
model.generate("dog", audio_length_in_s=0.2, num_inference_steps=2)
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


def test_sound_is_finite_and_of_ordinary_loudness(tiny_model):
    audio = tiny_model.generate("dog", audio_length_in_s=1.0).audio
    assert audio.isfinite().all()
    assert 0.01 < audio.std() < 0.5 and audio.abs().max() <= 1


@pytest.mark.parametrize("change", [
    dict(prompt="cat"), dict(negative_prompt="noise"), dict(seed=1), dict(guidance_scale=7.0),
    dict(sampler="ddim"),
])  # fmt: skip
def test_every_setting_changes_the_sound(tiny_model, change):
    plain = tiny_model.generate("dog", **QUICK).audio
    changed = tiny_model.generate(**{"prompt": "dog", **QUICK, **change}).audio
    assert relative_error(changed, plain) > 1e-3


# Stages -----------------------------------------------------------------------------------------------------


def test_stages_in_a_row_equal_generate(tiny_model):
    noise = torch.randn(1, 8, 5, 16)
    whole = tiny_model.generate("dog", negative_prompt="noise", latents=noise, num_inference_steps=3)
    conditioning = tiny_model.encode_prompt("dog", negative_prompt="noise")
    z = tiny_model.denoise(conditioning, noise, num_inference_steps=3)
    wave = tiny_model.vocode(tiny_model.decode(z))
    assert relative_error(z, whole.latents) < 1e-5
    assert relative_error(wave[:, :3200], whole.audio[0]) < 1e-4


def test_noise_of_a_seed_is_a_plain_draw_on_the_cpu(tiny_model):
    noise = torch.randn((1, 8, 5, 16), generator=torch.Generator().manual_seed(4))
    assert torch.equal(
        tiny_model.generate("dog", latents=noise, num_inference_steps=3).audio,
        tiny_model.generate("dog", seed=4, **QUICK).audio,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_seed_gives_the_same_sound_under_another_default_dtype(tiny_model, dtype):
    request = dict(audio_length_in_s=0.64, num_inference_steps=2, seed=5)
    expected = tiny_model.generate("a dog barks", **request)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = tiny_model.generate("a dog barks", **request)
    finally:
        torch.set_default_dtype(usual)
    assert (found.latents - expected.latents).norm() < 1e-3 * expected.latents.norm()


def test_numpy_scalars_are_numbers(tiny_model):
    plain = dict(
        audio_length_in_s=0.2, num_inference_steps=2, guidance_scale=2.5, eta=0.5, seed=3,
        num_waveforms_per_prompt=2, guidance_interval=(0.5, 5.0), guidance_rescale=0.5,
    )  # fmt: skip
    numpy = dict(
        audio_length_in_s=np.float64(0.2), num_inference_steps=np.int64(2), guidance_scale=np.float32(2.5),
        eta=np.float16(0.5), seed=np.uint8(3), num_waveforms_per_prompt=np.int32(2),
        guidance_interval=(np.float32(0.5), np.int8(5)), guidance_rescale=np.float32(0.5),
    )  # fmt: skip
    expected = tiny_model.generate("dog", sampler="ddim", **plain)
    found = tiny_model.generate("dog", sampler="ddim", **numpy)
    assert torch.equal(found.audio, expected.audio)
    assert json.loads(json.dumps(found.record(np.int64(0)))) == json.loads(json.dumps(expected.record()))
    seeds = tiny_model.generate(["dog", "cat"], seed=[np.int64(3), np.uint16(4)], **QUICK)
    assert seeds.seeds == [[3], [4]]


def test_score_takes_arrays_of_numpy(tiny_model):
    wave = np.random.default_rng(0).standard_normal(8000) * 0.1
    expected = tiny_model.score("rain", torch.from_numpy(wave).float())
    for array in (wave, wave.astype(np.float32), wave[None], wave[::-1][::-1]):
        assert torch.allclose(tiny_model.score("rain", array, np.int64(16_000)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_text_or_path(tiny_folder, tmp_path, kind):
    model = audioldm2.load(kind(tiny_folder), device="cpu")
    assert model.generate("dog", **QUICK).save(kind(tmp_path / "a.wav")) == [tmp_path / "a.wav"]
    assert audioldm2.audio.read(kind(tmp_path / "a.wav"))[1] == 16_000


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model, encoded, z: model.denoise(encoded[:0], z), "conditioning has no rows"),
        (
            lambda model, encoded, z: model.denoise(replace(encoded, negative=narrow(encoded.negative)), z),
            "conditioning has .*; it has to have .*encode_prompt",
        ),
        (lambda model, encoded, z: model.score("rain", torch.zeros(9000), sample_rate=0), "sample_rate is 0"),
        (lambda model, encoded, z: model.score("rain", torch.zeros(9000, dtype=torch.int16)), "floats in"),
        (
            lambda model, encoded, z: model.score("rain", torch.zeros(0, 9000)),
            "at least one sample|one sample or more",
        ),
        (lambda model, encoded, z: model.score("rain", torch.zeros(1, 1, 9000)), r"\(sounds, samples\)"),
    ],
)
def test_stages_name_the_wrong_argument(tiny_model, ask, words):
    encoded = tiny_model.encode_prompt("a dog barks")
    with pytest.raises(ValueError, match=words):
        ask(tiny_model, encoded, torch.randn(tiny_model.sound.latents(1, 16)))


def narrow(encoded: audioldm2.Conditioning) -> audioldm2.Conditioning:
    return replace(encoded, text_context=encoded.text_context[..., :-1])


def test_conditioning_can_be_saved_and_passed_back(tiny_model, tmp_path):
    conditioning = tiny_model.encode_prompt(["dog", "a longer prompt of several words"], "noise")
    parts = [conditioning, conditioning.negative]
    for part in parts:
        assert len(part) == 2
        assert part.gpt2_context.shape == (2, 8, 24)
        assert part.text_context.shape[:2] == part.t5_mask.shape and part.t5_mask.dtype == torch.bool
    torch.save(
        [dict(gpt2_context=p.gpt2_context, text_context=p.text_context, t5_mask=p.t5_mask) for p in parts],
        tmp_path / "conditioning.pt",
    )
    tensors, negative = torch.load(tmp_path / "conditioning.pt", weights_only=True)
    again = audioldm2.Conditioning(**tensors, negative=audioldm2.Conditioning(**negative))
    noise = torch.randn(4, 8, 5, 16)  # two a prompt
    first = tiny_model.denoise(conditioning, noise, num_inference_steps=2)
    assert first.shape == noise.shape
    assert torch.equal(tiny_model.denoise(again, noise, num_inference_steps=2), first)


def test_stages_track_no_gradients(tiny_model):
    assert not tiny_model.generate("dog", **QUICK).latents.requires_grad


def test_generate_leaves_the_global_generator_alone(tiny_model):
    before = torch.get_rng_state()
    tiny_model.generate("dog", sampler="ddim", eta=1.0, num_waveforms_per_prompt=2, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


# Steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim", "heun"])
def test_on_step_is_called_once_a_step(tiny_model, sampler):
    seen = []
    tiny_model.generate(
        "dog", audio_length_in_s=0.2, num_inference_steps=6, sampler=sampler,
        on_step=lambda step, t, x0: seen.append((step, t, x0.shape)),
    )  # fmt: skip
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    times = [t for _, t, _ in seen]
    assert times == sorted(times, reverse=True) and times[-1] >= 0 and times[0] <= 1000
    assert {shape for _, _, shape in seen} == {(1, 8, 5, 16)}


def test_returning_false_stops_early_and_keeps_the_estimate(tiny_model):
    seen = []

    def on_step(step: int, t: float, x0: torch.Tensor) -> bool:
        seen.append(x0)
        return step < 2

    result = tiny_model.generate("dog", audio_length_in_s=0.2, num_inference_steps=6, on_step=on_step)
    assert len(seen) == 2
    assert torch.equal(result.latents, seen[-1])
    assert result.audio.shape == (1, 1, 3200)


def test_on_stage_reports_stages_in_order(tiny_model):
    stages = []
    tiny_model.generate("dog", num_waveforms_per_prompt=2, on_stage=stages.append, **QUICK)
    assert stages == ["encoding the prompt", "denoising", "decoding", "vocoding", "ranking"]


# Several prompts, several candidates ------------------------------------------------------------------------


def test_prompts_of_a_list_sound_as_alone(tiny_model):
    prompts = ["dog", "Techno music with a strong, upbeat tempo and high melodic riffs"]
    result = tiny_model.generate(prompts, negative_prompt=["noise", ""], seed=[3, 4], **QUICK)
    assert result.audio.shape == (2, 1, 3200)
    assert result.scores is None and result.seeds == [[3], [4]]
    for place, (prompt, negative, seed) in enumerate(zip(prompts, ["noise", ""], [3, 4], strict=True)):
        alone = tiny_model.generate(prompt, negative_prompt=negative, seed=seed, **QUICK)
        assert relative_error(result.audio[place], alone.audio[0]) < 1e-4


def test_candidates_are_best_first_and_reproducible_by_seed(tiny_model):
    prompts = ["dog", "a church bell and a violin"]
    result = tiny_model.generate(prompts, num_waveforms_per_prompt=3, seed=10, **QUICK)
    assert result.audio.shape == (2, 3, 3200) and result.latents.shape == (6, 8, 5, 16)
    assert torch.equal(result.scores, result.scores.sort(dim=1, descending=True).values)
    for place, prompt in enumerate(prompts):
        assert sorted(result.seeds[place]) == [10, 11, 12]
        for candidate, seed in enumerate(result.seeds[place]):
            alone = tiny_model.generate(prompt, seed=seed, **QUICK)
            assert relative_error(result.audio[place, candidate], alone.audio[0, 0]) < 1e-4
            assert relative_error(result.mel[3 * place + candidate], alone.mel[0]) < 1e-4
            assert relative_error(result.latents[3 * place + candidate], alone.latents[0]) < 1e-4
            score = tiny_model.score(prompt, result.audio[place, candidate])
            assert score.item() == pytest.approx(result.scores[place, candidate].item(), abs=1e-5)


def test_seed_decides_the_noise_of_a_stochastic_sampler(tiny_model):
    settings = dict(sampler="dpmpp_2m_sde", **QUICK)
    together = tiny_model.generate(["dog", "cat"], num_waveforms_per_prompt=2, seed=7, **settings)
    alone = tiny_model.generate("cat", seed=together.seeds[1][1], **settings)
    assert relative_error(together.audio[1, 1], alone.audio[0, 0]) < 1e-4


def test_seed_after_the_largest_is_zero(tiny_model):
    result = tiny_model.generate("dog", num_waveforms_per_prompt=2, seed=2**63 - 1, **QUICK)
    assert sorted(result.seeds[0]) == [0, 2**63 - 1]
    alone = tiny_model.generate("dog", seed=0, **QUICK)
    assert relative_error(result.audio[0, result.seeds[0].index(0)], alone.audio[0, 0]) < 1e-4


def test_seed_none_draws_one_and_returns_it(tiny_model):
    first, second = (tiny_model.generate("dog", seed=None, **QUICK) for _ in range(2))
    assert first.seeds != second.seeds
    again = tiny_model.generate("dog", seed=first.seeds[0], **QUICK)
    assert torch.equal(again.audio, first.audio)


# Files ------------------------------------------------------------------------------------------------------


def test_record_has_every_option_as_plain_values(tiny_model):
    settings = dict(seed=[5, 6], guidance_interval=(0, float("inf")), negative_prompt=["a", "b"], **QUICK)
    result = tiny_model.generate(["dog", "cat"], **settings)
    for prompt, (seed, negative) in enumerate(((5, "a"), (6, "b"))):
        record = json.loads(json.dumps(result.record(prompt), allow_nan=False))
        absent = {"latents", *EDITING_OPTIONS, *SOUND_PROMPT_OPTIONS, *SPEECH_OPTIONS}
        assert {each.name for each in fields(GenerationOptions)} - absent <= set(record)
        assert (record["seed"], record["negative_prompt"]) == (seed, negative)
        assert (record["audio_length_in_s"], record["num_inference_steps"]) == (0.2, 3)
        assert {"audioldm2", "model", "device", "dtype", "prompt", "sample_rate", "score"} <= set(record)


def test_save_writes_the_best_sound_of_each_prompt(tiny_model, tmp_path):
    result = tiny_model.generate(["dog", "cat"], num_waveforms_per_prompt=2, **QUICK)
    paths = result.save(tmp_path / "pets.wav")
    assert paths == [tmp_path / "pets-1.wav", tmp_path / "pets-2.wav"]
    for place, path in enumerate(paths):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == 16000
        assert torch.allclose(torch.from_numpy(samples), result.audio[place, 0], atol=1e-4)


@pytest.mark.parametrize("name", ["a.mp3", "a", "folder.wav/"])
def test_save_rejects_other_endings_and_folders(tiny_model, tmp_path, name):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises((ValueError, OSError), match=r"a\.mp3|a ends|folder\.wav"):
        tiny_model.generate("dog", **QUICK).save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(prompt=[]), r"prompt is \[\]; it has to be"),
        (dict(prompt=5), "prompt is 5; it has to be a text"),
        (dict(negative_prompt=["a", "b"]), "negative_prompt has 2 entries for 1 prompts"),
        (dict(audio_length_in_s=0), "audio_length_in_s is 0"),
        (dict(num_inference_steps=2.5), "num_inference_steps is 2.5"),
        (dict(num_waveforms_per_prompt=0), "num_waveforms_per_prompt is 0"),
        (dict(guidance_scale=float("nan")), "guidance_scale is nan"),
        (dict(sampler="plms"), "sampler is 'plms'"),
        (dict(eta=2.0, sampler="ddim"), "eta is 2.0"),
        (dict(seed=-1), "seed is -1"),
        (dict(latents=torch.zeros(1, 8, 5, 4)), "latents has shape"),
        (dict(guidance_interval=(3, 1)), "guidance_interval is"),
    ],
)
def test_wrong_argument_is_named_before_any_network_runs(tiny_model, monkeypatch, arguments, words):
    monkeypatch.setattr(tiny_model.networks, "running", None)
    with pytest.raises(ValueError, match=words):
        tiny_model.generate(**{"prompt": "dog", **arguments})


@pytest.mark.parametrize(
    ("stage", "argument", "words"),
    [
        (
            "decode",
            torch.zeros(1, 3, 5, 16),
            r"^z has shape \(1, 3, 5, 16\); .* shape \(batch, 8, time, 16\)",
        ),
        ("decode", torch.zeros(8, 5, 16), r"^z has shape \(8, 5, 16\)"),
        ("decode", torch.zeros(1, 8, 0, 16), r"^z has shape \(1, 8, 0, 16\)"),
        ("decode", [[0.0]], "^z is a list; it has to be a float tensor"),
        ("vocode", torch.zeros(1, 20, 80), r"^mel has shape \(1, 20, 80\); .* shape \(batch, time, 64\)"),
        ("vocode", torch.zeros(1, 20, 64, dtype=torch.int16), "^mel has dtype torch.int16"),
    ],
)
def test_stage_refuses_a_tensor_of_another_shape(tiny_model, monkeypatch, stage, argument, words):
    monkeypatch.setattr(tiny_model.networks, "running", None)
    with pytest.raises(ValueError, match=words):
        getattr(tiny_model, stage)(argument)
