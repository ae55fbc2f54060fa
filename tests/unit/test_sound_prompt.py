"""`generate` with a sound as the prompt: what the denoiser reads, ranking, the record, and mistakes."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2, Result, clap_score
from audioldm2.adapters import writing
from audioldm2.audio import SAMPLE_RATE, write_wav
from audioldm2.errors import ArgumentError
from audioldm2.prompt.conditioning import Conditioning
from tests.support.adapters import random_adapter
from tests.support.hearing import SAMPLES, add_audiomae
from tests.support.speaking import write_speech_model

REQUEST = dict(audio_length_in_s=0.25, num_inference_steps=1)
PROMPTS = ["a dog barks", "rain on the roof, again and again"]
CLOSE = 1e-4  # relative: batches of other sizes are added up in another order


def noise(samples: int = SAMPLES // 2, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def generate(model: AudioLDM2, *prompt: Any, **options: Any) -> Result:
    return model.generate(*prompt, **REQUEST | options)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def file(tmp_path) -> Path:
    write_wav(tmp_path / "noise.wav", noise(), SAMPLE_RATE)
    return tmp_path / "noise.wav"


@pytest.fixture
def encoded(monkeypatch) -> list[Conditioning]:
    """What `generate` has encoded its prompts as."""
    found, encode = [], AudioLDM2.encode_prompt

    def kept(self: AudioLDM2, *texts: Any, **named: Any) -> Conditioning:
        found.append(encode(self, *texts, **named))
        return found[-1]

    monkeypatch.setattr(AudioLDM2, "encode_prompt", kept)
    return found


# What the denoiser reads ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_none_heard_is_the_prompt_alone_bit_for_bit(hearing: AudioLDM2, file: Path):
    plain = generate(hearing, PROMPTS[0], num_waveforms_per_prompt=2)
    stages: list[str] = []
    found = generate(
        hearing, PROMPTS[0], num_waveforms_per_prompt=2, audio_prompt=file, heard=0, on_stage=stages.append
    )
    assert torch.equal(found.audio, plain.audio) and torch.equal(found.scores, plain.scores)
    assert "hearing the sound" not in stages
    empty = generate(hearing, audio_prompt=file, heard=0, num_waveforms_per_prompt=2)
    assert torch.equal(empty.scores, generate(hearing, "", num_waveforms_per_prompt=2).scores)


def test_all_heard_are_the_vectors_of_the_sound_bit_for_bit(hearing: AudioLDM2, encoded, file: Path):
    loa = hearing.hear(audioldm2.audio.read(file)[0])
    all_heard = generate(hearing, PROMPTS[0], audio_prompt=file)
    assert torch.equal(encoded[0].gpt2_context, loa)
    assert torch.equal(generate(hearing, PROMPTS[0], audio_prompt=str(file), heard=8).audio, all_heard.audio)
    generate(hearing, PROMPTS[0], audio_prompt=file, heard=3)
    three_heard = encoded[-1].gpt2_context
    assert torch.equal(three_heard, hearing.encode_prompt(PROMPTS[0], loa=loa, heard=3).gpt2_context)


def test_sound_and_text_both_change_the_result(hearing: AudioLDM2):
    found = [
        generate(hearing, prompt, audio_prompt=sound, heard=heard).audio
        for prompt, sound, heard in [
            (PROMPTS[0], noise(seed=1), None),
            (PROMPTS[0], noise(seed=2), None),
            (PROMPTS[1], noise(seed=1), None),
            (PROMPTS[0], noise(seed=1), 4),
            ("", noise(seed=1), None),
        ]
    ]
    for place, one in enumerate(found):
        assert all(distance(one, other) > 1e-3 for other in found[:place])


def test_no_text_is_an_empty_text(hearing: AudioLDM2):
    sounds = [noise(seed=1), noise(seed=2)]
    assert torch.equal(
        generate(hearing, audio_prompt=sounds[0]).audio, generate(hearing, "", audio_prompt=sounds[0]).audio
    )
    both = generate(hearing, audio_prompt=sounds)
    assert both.request.prompts == ["", ""] and len(both.audio) == 2


def test_wave_of_another_rate_is_resampled(hearing: AudioLDM2, encoded):
    tone = {rate: torch.sin(2 * torch.pi * 440 * torch.arange(rate // 4) / rate) for rate in (16_000, 48_000)}
    generate(hearing, audio_prompt=tone[16_000])
    generate(hearing, audio_prompt=tone[48_000].numpy(), audio_prompt_sample_rate=48_000)
    generate(hearing, audio_prompt=tone[48_000])
    right, resampled, wrong = (each.gpt2_context for each in encoded)
    assert distance(resampled, right) < 0.05 < distance(wrong, right)


def test_each_prompt_has_its_sound_alone_and_in_a_batch(hearing: AudioLDM2, file: Path):
    sounds = [file, noise(9_000, seed=2).numpy()]
    together = generate(hearing, PROMPTS, audio_prompt=sounds, seed=[1, 2], heard=5)
    for row, sound in enumerate(sounds):
        alone = generate(hearing, PROMPTS[row], audio_prompt=sound, seed=row + 1, heard=5)
        assert distance(together.audio[row], alone.audio[0]) < CLOSE
    swapped = generate(hearing, PROMPTS, audio_prompt=sounds[::-1], seed=[1, 2], heard=5)
    assert distance(swapped.audio, together.audio) > 1e-3
    shared = generate(hearing, PROMPTS, audio_prompt=file, seed=[1, 2], heard=5)
    assert torch.equal(shared.audio[0], together.audio[0])


def test_same_sound_is_heard_once(hearing: AudioLDM2, file: Path, monkeypatch):
    from audioldm2.models.audiomae import AudioMAE

    runs, forward = [], AudioMAE.forward
    monkeypatch.setattr(AudioMAE, "forward", lambda self, x: runs.append(len(x)) or forward(self, x))
    generate(hearing, PROMPTS, audio_prompt=file, num_waveforms_per_prompt=2)
    generate(hearing, PROMPTS, audio_prompt=[file, str(file)])
    assert runs == [1, 1]
    generate(hearing, PROMPTS, audio_prompt=[file, noise(seed=1)])
    assert runs == [1, 1, 1, 1]


def test_all_parts_of_a_timeline_have_the_sound(hearing: AudioLDM2, encoded, file: Path):
    timelines = [[("rain", 0.0, 0.3), ("wind", 0.3, 0.6)], [("a dog", 0.0, 0.6)]]
    hearing.generate(timelines, audio_prompt=[file, noise(seed=1)], num_inference_steps=1)
    first, second = hearing.hear([audioldm2.audio.read(file)[0], noise(seed=1)])
    assert torch.equal(encoded[0].gpt2_context, torch.stack([first, first, second]))


def test_negative_part_hears_nothing(hearing: AudioLDM2, encoded, file: Path):
    generate(hearing, PROMPTS[0], negative_prompt="music", audio_prompt=file)
    expected = hearing.encode_prompt(PROMPTS[0], "music").negative
    torch.testing.assert_close(encoded[0].negative.gpt2_context, expected.gpt2_context, atol=1e-5, rtol=0)
    generate(hearing, PROMPTS[0], audio_prompt=file, unconditional="trained")
    trained = encoded[-1].negative
    assert not trained.gpt2_context.any() and trained.t5_mask.sum() == 1  # T5("") is its end symbol


FROM_A_SOUND: dict[str, dict[str, Any]] = {
    "a loop in windows": dict(loop=True, window_seconds=0.4),
    "a given sound": dict(audio=noise(8_000, seed=5), strength=0.5, audio_length_in_s=None),
    "a remade part": dict(
        audio=noise(8_000, seed=5), mask_start_seconds=0.1, mask_end_seconds=0.3, audio_length_in_s=None
    ),
    "no guidance": dict(guidance_scale=1.0),
}


@pytest.mark.parametrize("what", FROM_A_SOUND)
def test_sound_counts_with_other_options(hearing: AudioLDM2, what: str):
    options = dict(num_inference_steps=2) | FROM_A_SOUND[what]
    one, again, other = (
        generate(hearing, PROMPTS[0], audio_prompt=noise(seed=seed), **options) for seed in (1, 1, 2)
    )
    assert torch.equal(one.audio, again.audio) and distance(other.audio, one.audio) > 1e-4
    kept = slice(0, 1_200) if what == "a remade part" else slice(0)
    assert torch.equal(one.audio[0, 0, kept], noise(8_000, seed=5)[kept])


def test_speech_model_hears_a_voice_and_speaks_the_words(tiny_folder: Path, tmp_path, encoded):
    folder = add_audiomae(write_speech_model(tmp_path / "speech", tiny_folder), tmp_path / "hearing")
    model = audioldm2.load(folder, device="cpu")
    sound, words = noise(), dict(num_inference_steps=1, audio_length_in_s=0.25)
    model.generate(audio_prompt=sound, heard=3, transcription="one two", **words)
    model.generate(audio_prompt=sound, heard=3, transcription="seven", **words)
    assert torch.equal(encoded[0].gpt2_context[:, :3], model.hear(sound)[:, :3])
    assert distance(encoded[1].gpt2_context[:, 3:], encoded[0].gpt2_context[:, 3:]) > 1e-3
    for heard in (None, 8):
        with pytest.raises(
            ArgumentError, match=r"heard is 8, all vectors of GPT-2; .* from 0 to 7: a speech"
        ):
            model.generate(audio_prompt=sound, heard=heard, transcription="one two", **words)


# Ranking ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_candidates_without_a_text_are_ranked_by_likeness_to_the_sound(hearing: AudioLDM2, monkeypatch):
    sounds, embed, embedded = [noise(seed=1), noise(8_000, seed=2)], clap_score.embed_sounds, []
    with monkeypatch.context() as patch:
        patch.setattr(
            clap_score, "embed_sounds", lambda *given: embedded.append(len(given[2])) or embed(*given)
        )
        found = generate(
            hearing, ["", PROMPTS[0], ""], audio_prompt=[sounds[0], sounds[0], sounds[1]],
            num_waveforms_per_prompt=3,
        )  # fmt: skip
    assert embedded == [3, 2, 6]  # those with a text; the two sounds, once each; those without a text
    for row, sound in ((0, sounds[0]), (2, sounds[1])):
        vectors = clap_score.embed_sounds(hearing.networks, hearing.clap_mel, [*found.audio[row]], 16_000)
        level = 0.5 * (sound - sound.mean()) / (sound - sound.mean()).abs().max()
        (own,) = clap_score.embed_sounds(hearing.networks, hearing.clap_mel, [level], 16_000)
        torch.testing.assert_close(found.scores[row], vectors @ own, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.scores[1], hearing.score(PROMPTS[0], found.audio[1]), atol=1e-5, rtol=0)
    assert (found.scores.diff(dim=1) <= 0).all() and found.scores.unique().numel() == 9


@pytest.mark.slow
def test_parts_of_a_timeline_without_a_text_are_ranked_by_the_sound(hearing: AudioLDM2):
    timeline = [("rain", 0.0, 0.4), ("", 0.4, 0.8)]
    found = hearing.generate(
        timeline, audio_prompt=noise(), num_waveforms_per_prompt=2, num_inference_steps=1
    )
    for score, wave in zip(found.scores[0], found.audio[0], strict=True):
        text = hearing.score("rain", wave[:6_400])
        pair = [wave[6_400:], found.request.sound_prompts[0].normalized]
        vectors = clap_score.embed_sounds(hearing.networks, hearing.clap_mel, pair, 16_000)
        torch.testing.assert_close(score, (text[0] + vectors[0] @ vectors[1]) / 2, atol=1e-5, rtol=0)


# Where it runs ----------------------------------------------------------------------------------------------


def test_hearing_is_a_stage_of_its_own(hearing: AudioLDM2, file: Path):
    stages: list[str] = []
    generate(hearing, PROMPTS[0], audio_prompt=file, on_stage=stages.append)
    assert stages == ["hearing the sound", "encoding the prompt", "denoising", "decoding", "vocoding"]


@pytest.mark.slow
@pytest.mark.parametrize("where", [dict(offload=True), dict(low_memory=True)])
def test_every_residence_gives_the_same_sound(hearing_folder: Path, hearing: AudioLDM2, where: dict):
    model = audioldm2.load(hearing_folder, device="cpu", **where)
    expected = generate(hearing, PROMPTS[0], audio_prompt=noise()).audio
    assert distance(generate(model, PROMPTS[0], audio_prompt=noise()).audio, expected) < CLOSE
    assert not model.networks._users["audiomae"]


@pytest.mark.slow
def test_model_with_an_adapter_hears_the_same(hearing_folder: Path, hearing: AudioLDM2, tmp_path, encoded):
    configs = hearing.networks.configs
    writing.write(random_adapter(configs), tmp_path / "oud", configs)
    model = audioldm2.load(hearing_folder, device="cpu")
    model.load_lora(tmp_path / "oud")
    adapted, plain = (generate(each, PROMPTS[0], audio_prompt=noise()).audio for each in (model, hearing))
    assert torch.equal(encoded[0].gpt2_context, encoded[1].gpt2_context)
    assert distance(adapted, plain) > 1e-3


@pytest.mark.slow
def test_threads_hear_different_sounds_on_one_model(hearing_folder: Path, hearing: AudioLDM2):
    model, found = audioldm2.load(hearing_folder, device="cpu"), {}
    asked = [dict(audio_prompt=noise(seed=seed), heard=heard) for seed, heard in enumerate((8, 0, 3, None))]

    def make(row: int) -> None:
        found[row] = generate(model, PROMPTS[0], **asked[row]).audio

    threads = [threading.Thread(target=make, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, options in enumerate(asked):
        assert torch.equal(found[row], generate(hearing, PROMPTS[0], **options).audio)


# The record -------------------------------------------------------------------------------------------------


def test_record_names_the_sound_of_each_prompt(hearing: AudioLDM2, file: Path):
    wave = noise(9_600, seed=3)
    result = generate(hearing, PROMPTS, audio_prompt=[file, wave], audio_prompt_sample_rate=None, heard=2)
    first, second = (json.loads(json.dumps(result.record(row))) for row in range(2))
    assert first["heard"] == second["heard"] == 2
    assert first["audio_prompt"]["file"] == "noise.wav" and second["audio_prompt"]["file"] is None
    assert [each["audio_prompt"]["seconds"] for each in (first, second)] == [0.64, 0.6]
    given = generate(hearing, audio=wave, prompt="", audio_length_in_s=None, strength=0).record()["audio"]
    assert second["audio_prompt"] == given  # file, sha256, rate and seconds
    assert result.of_prompt(1).record()["audio_prompt"] == second["audio_prompt"]
    assert generate(hearing, audio_prompt=wave).record()["heard"] == 8
    plain = generate(hearing, PROMPTS[0]).record()
    assert not {"audio_prompt", "audio_prompt_sample_rate", "heard"} & plain.keys()


# Mistakes ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt at all": (
        dict(prompt=None, audio_prompt=None),
        "prompt is None; it has to be .*, unless there is an audio_prompt",
    ),
    "heard alone": (
        dict(audio_prompt=None, heard=3),
        "heard is 3; it has to be left out without a sound prompt",
    ),
    "a rate alone": (
        dict(audio_prompt=None, audio_prompt_sample_rate=9),
        "audio_prompt_sample_rate is 9; it has to be left out without a sound prompt",
    ),
    "too many": (dict(heard=9), "heard is 9; it has to be a whole number from 0 to 8"),
    "negative": (dict(heard=-1), "heard is -1; it has to be a whole number of at least 0"),
    "half": (dict(heard=2.5), "heard is 2.5"),
    "more sounds than prompts": (
        dict(audio_prompt=[noise(), noise()]),
        "audio_prompt has 2 entries for 1 prompts; it has to have one for each prompt, or be one sound",
    ),
    "silence": (dict(audio_prompt=torch.zeros(900)), "audio_prompt is silent; it has to be louder"),
    "a silent start": (
        dict(audio_prompt=torch.cat([torch.zeros(SAMPLES), noise()])),
        "audio_prompt begins with silence; .* 1.28 s",
    ),
    "nothing": (dict(audio_prompt=[]), "audio_prompt has no samples|audio_prompt is float64"),
    "no text for a file": (dict(audio_prompt=""), "audio_prompt is ''; it has to be a sound file"),
    "a number": (dict(audio_prompt=7), "audio_prompt is 7; it has to be floats"),
    "none in a list": (dict(audio_prompt=[noise(), None]), r"audio_prompt\[1\] is None; it has to be"),
    "stereo": (dict(audio_prompt=torch.ones(2, 900)), r"audio_prompt has shape \(2, 900\); .* one sound"),
    "NaN in a list": (
        dict(prompt=["a", "b"], audio_prompt=[noise(), noise() / 0]),
        r"audio_prompt\[1\] has 10240 samples of 10240 that are NaN or infinite",
    ),
    "a rate of a file": (
        dict(audio_prompt="x.wav", audio_prompt_sample_rate=9),
        "audio_prompt_sample_rate is 9; it has to be left out for a file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore::audioldm2.TruncationWarning")
def test_bad_sound_prompt_is_named_before_any_network_runs(hearing: AudioLDM2, case: str, monkeypatch):
    monkeypatch.setattr(hearing.networks, "running", lambda name: pytest.fail(f"{name} ran"))
    changes, words = BAD[case]
    with pytest.raises(ArgumentError, match=words):
        hearing.generate(**dict(prompt="rain", audio_prompt=noise()) | changes)


def test_bad_file_is_named_before_any_network_runs(hearing: AudioLDM2, tmp_path, monkeypatch):
    monkeypatch.setattr(hearing.networks, "running", lambda name: pytest.fail(f"{name} ran"))
    write_wav(tmp_path / "silent.wav", torch.zeros(900), SAMPLE_RATE)
    for name, words in (("silent.wav", "silent.wav is silent"), ("", "is a folder; it has to be a sound")):
        with pytest.raises(ArgumentError, match=words):
            hearing.generate(audio_prompt=[tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        hearing.generate("rain", audio_prompt=tmp_path / "none.wav")


def test_longer_sound_is_cut_with_a_warning_that_names_it(hearing: AudioLDM2, tmp_path):
    write_wav(tmp_path / "long.wav", noise(2 * SAMPLES), SAMPLE_RATE)
    with pytest.warns(audioldm2.TruncationWarning, match=r"long\.wav lasts 2\.56 s; AudioMAE reads its"):
        generate(hearing, audio_prompt=tmp_path / "long.wav")


def test_model_without_audiomae_says_how_to_add_it(tiny_model: AudioLDM2, monkeypatch):
    monkeypatch.setattr(tiny_model.networks, "running", lambda name: pytest.fail(f"{name} ran"))
    for heard in (None, 0, 8):
        with pytest.raises(ValueError, match=r"has no AudioMAE, which .* --stage audiomae"):
            tiny_model.generate("rain", audio_prompt=noise(), heard=heard)


@pytest.mark.parametrize("options", [dict(audio_prompt=np.ones(9)), dict(heard=3)])
def test_edit_by_text_takes_no_sound_prompt(hearing: AudioLDM2, options: dict):
    words = "it has to be left out of an edit, which is from a text to a text"
    with pytest.raises(ArgumentError, match=words):
        hearing.edit(noise(), "rain", **options)
