"""Training of models that speak: captions with words, phonemes, the auxiliary loss, what learns."""

# ruff: noqa: RUF001 - phonemes look like letters

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2 import load
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.cli.main import main
from audioldm2.errors import ArgumentError
from audioldm2.training.ldm import Draws, LDMStage
from audioldm2.training.new_model import SIZES as MODEL_SIZES
from audioldm2.training.new_model import configs_from, from_scratch
from audioldm2.training.randomness import generator
from audioldm2.training.speech import FrameHead, PhonemeIds, auxiliary_loss
from audioldm2.training.spoken import Spoken
from audioldm2.training.tables import read_table
from tests.support.training import SIZES, clips, parameter_copies, stage_of, write_sounds

SPEECH_SIZES = {name: size for name, size in SIZES.items() if name != "t5"} | {
    "phonemes": {"dim": 32, "depth": 1, "heads": 2, "ff_dim": 32},
    "projection": {"clap_dim": 32, "t5_dim": 32, "gpt2_dim": 32, "positions": 12},
    "gpt2": {"dim": 32, "depth": 1, "heads": 2, "new_vectors": 4},
    "unet": {
        "latent_channels": 8, "channels": [16], "heads": [1], "gpt2_dim": 32,
        "transformers": [["self_attn", "gpt2_attn"]],
    },
    "vae": {"channels": [8, 8, 16], "norm_groups": 4, "latent_channels": 8},
}  # fmt: skip
SAID = {"one": "wˈʌn", "two": "tˈuː", "six": "sˈɪks"}
CAPTIONS = [Spoken("a voice", word, phonemes) for word, phonemes in SAID.items()]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny untrained model that speaks."""
    configs = configs_from(SPEECH_SIZES, "SPEECH_SIZES")
    return from_scratch(configs, CAPTIONS * 4, tmp_path_factory.mktemp("vocabularies"))


def speech_stage(speaker: Checkpoint, **values: object) -> LDMStage:
    recipe = {"train_t5": False, "unconditional": "trained", "prompt_dropout": 0.0, "auxiliary_weight": 0.5}
    return stage_of("ldm", speaker, **(recipe | values))


def write_table(folder: Path, header: str, *rows: str) -> Path:
    for name in {row.split(",")[0] for row in rows}:
        (folder / name).touch()
    table = folder / "captions.csv"
    table.write_text("\n".join([header, *rows]), encoding="utf-8")
    return table


# Tables -----------------------------------------------------------------------------------------------------


def test_a_table_says_what_a_voice_says(tmp_path: Path):
    rows = ("a.wav,a man,one two,", "b.wav,a man,,tˈuː", "a.wav,a low voice,one two,")
    first, second = read_table(write_table(tmp_path, "file,caption,transcription,phonemes", *rows))
    assert first.captions == ("a man", "a low voice")
    assert [caption.transcription for caption in first.captions] == ["one two"] * 2
    assert second.captions[0].phonemes == "tˈuː"


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a.wav,a man,one", "b.wav,a man, "], r"line 3: 'transcription' has to be a non-empty text"),
        (["a.wav,a man,one", "a.wav,a man,two"], r"line 3: 'a\.wav' says .*two.* here, and .*one.* above"),
    ],
)
def test_a_sound_says_one_thing(rows: list[str], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        read_table(write_table(tmp_path, "file,caption,transcription", *rows))


def test_the_hash_of_data_covers_the_words():
    assert repr(Spoken("a man", "one")) != repr(Spoken("a man", "two")) != repr("a man")


# A new model ------------------------------------------------------------------------------------------------


def test_a_new_model_knows_the_phonemes_of_the_data(speaker: Checkpoint):
    assert speaker.symbols == ("_", *sorted(set("".join(SAID.values()))), "~")
    assert speaker.configs["phonemes"].vocabulary == len(speaker.symbols)
    assert "t5" not in speaker.configs and set(speaker.tokenizers) == {"clap_tokenizer"}


def test_phonemes_are_found_by_pronouncing_the_transcription(speaker: Checkpoint):
    speaker = type(speaker)(**(vars(speaker) | {"pronunciations": SAID}))
    ids = PhonemeIds(speaker)
    assert ids(Spoken("a voice", "Two")) == ids(Spoken("a voice", "", "tˈuː")) != ids(CAPTIONS[0])
    assert ids.spelled(Spoken("a voice", "six")) == SAID["six"]


@pytest.mark.parametrize("sizes", ["small-speech", "published-speech"])
def test_speech_sizes_fit_together(sizes: str, tmp_path: Path):
    from_scratch(MODEL_SIZES[sizes], CAPTIONS * 4, tmp_path)  # checks shapes without making weights


def test_words_have_to_suit_the_model(speaker: Checkpoint, initial: Checkpoint):
    with pytest.raises(ArgumentError, match=r"data has a clip that says nothing.*'transcription'"):
        speech_stage(speaker).require_captions([*CAPTIONS, "rain"])
    with pytest.raises(ArgumentError, match=r"data says no words; it has to have a column 'transcription'"):
        speech_stage(speaker).require_captions(["rain"])
    with pytest.raises(ArgumentError, match=r"data says words; it has to have no column .* cannot speak"):
        stage_of("ldm", initial).require_captions(CAPTIONS)


# Losses -----------------------------------------------------------------------------------------------------


def test_as_many_vectors_as_frames_predict_a_frame_each():
    head, vectors = FrameHead(6, 2, 3), torch.randn(4, 5, 6)
    found = head(vectors, 5)
    for clip in range(4):
        for frame in range(5):
            wanted = head.linear(vectors[clip, frame]).reshape(2, 3)
            torch.testing.assert_close(found[clip, :, frame], wanted)


def test_twice_as_many_vectors_as_frames_are_averaged_in_pairs():
    head, vectors = FrameHead(6, 2, 3), torch.randn(1, 8, 6)
    pairs = vectors.unflatten(1, (4, 2)).mean(dim=2)
    torch.testing.assert_close(head(vectors, 4), head(pairs, 4))


def test_auxiliary_loss_is_the_squared_error_of_clips_that_keep_their_caption():
    head, vectors, latents = FrameHead(6, 2, 3), torch.randn(3, 5, 6), torch.randn(3, 2, 5, 3)
    found = auxiliary_loss(head, vectors, latents, torch.tensor([False, True, False]))
    kept = [F.mse_loss(head(vectors, 5)[clip], latents[clip]) for clip in (0, 2)]
    torch.testing.assert_close(found, sum(kept) / 3)


def drawn(stage: LDMStage, wave: Tensor) -> Draws:
    return stage.draw(stage.prepare(wave), generator("noise", 0, 0))


def test_the_loss_is_that_of_the_denoiser_and_the_weighted_auxiliary_one(speaker: Checkpoint):
    stage, (wave, _) = speech_stage(speaker), clips(3)
    draws = drawn(stage, wave)
    cond = stage.encode(CAPTIONS, torch.zeros(3, dtype=torch.bool))
    auxiliary = auxiliary_loss(stage.helpers["head"], cond.gpt2_context, draws.mean, draws.dropped)
    plain = speech_stage(speaker, auxiliary_weight=0.0).loss(CAPTIONS, draws)
    torch.testing.assert_close(stage.loss(CAPTIONS, draws), plain + 0.5 * auxiliary)


def test_the_denoiser_rests_while_gpt2_learns_alone(speaker: Checkpoint):
    stage, (wave, _) = speech_stage(speaker, auxiliary_steps=2), clips(3)
    before = parameter_copies(stage.trained)
    for resting in (True, True, False):
        metrics = stage.step(wave, CAPTIONS)
        same = all(torch.equal(x, before["unet"][key]) for key, x in stage.trained["unet"].named_parameters())
        assert same == resting == ("noise" not in metrics)
    for name in ("phonemes", "gpt2", "projection"):
        assert any(not torch.equal(x, before[name][key]) for key, x in stage.trained[name].named_parameters())


def test_gpt2_stays_where_the_denoiser_learns_alone(speaker: Checkpoint):
    stage, (wave, _) = speech_stage(speaker, train_gpt2=False, auxiliary_weight=0.0), clips(3)
    assert set(stage.trained) == {"unet"}
    kept, again = (stage.encode(CAPTIONS, torch.zeros(3, dtype=torch.bool)) for _ in range(2))
    learning = speech_stage(speaker).encode(CAPTIONS, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(kept.gpt2_context, again.gpt2_context)
    torch.testing.assert_close(kept.gpt2_context, learning.gpt2_context)
    stage.step(wave, CAPTIONS)


@pytest.mark.slow
def test_steps_teach_which_word_is_which(speaker: Checkpoint):
    """The latents of three words from the same caption: only phonemes tell them apart."""
    stage = speech_stage(speaker, auxiliary_weight=1.0, auxiliary_steps=60)
    means = torch.randn(3, 8, 4, 16, generator=torch.Generator().manual_seed(0))
    clips_of = torch.stack([means, torch.zeros_like(means)], dim=1)
    swapped = [CAPTIONS[1], CAPTIONS[2], CAPTIONS[0]]
    for _ in range(60):
        stage.step_prepared(clips_of, CAPTIONS)
    draws = stage.draw(clips_of, generator("noise", 0, 0))
    stage.done = 0
    with torch.no_grad():
        right, wrong = (float(stage.errors(said, draws)["auxiliary"][1]) for said in (CAPTIONS, swapped))
    assert right < wrong / 2


# Runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_continues_exactly(speaker: Checkpoint):
    wave, _ = clips(3)
    whole, first, second = (speech_stage(speaker, ema=0.9) for _ in range(3))
    for _ in range(2):
        whole.step(wave, CAPTIONS)
    first.step(wave, CAPTIONS)
    second.load_state_dict(first.state_dict())
    metrics = second.step(wave, CAPTIONS)
    assert metrics["auxiliary"] > 0
    for name, network in whole.trained.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, second.trained[name].state_dict()[key])
    assert torch.equal(whole.helpers["head"].linear.weight, second.helpers["head"].linear.weight)


def test_the_model_has_no_head(speaker: Checkpoint):
    stage = speech_stage(speaker)
    assert "head" in stage.helpers and set(stage.checkpoint().states) == set(speaker.states)


@pytest.mark.slow
def test_the_command_line_trains_a_model_that_speaks(tmp_path: Path):
    sounds = write_sounds(tmp_path / "sounds")
    words = list(SAID.items())
    rows = [f"{i}.wav,a voice says,{','.join(words[i % 3])}" for i in range(10)]
    table = "\n".join(["file,caption,transcription,phonemes", *rows])
    (sounds / "captions.csv").write_text(table, encoding="utf-8")
    sizes, recipe = tmp_path / "sizes.json", tmp_path / "recipe.json"
    sizes.write_text(json.dumps(SPEECH_SIZES))
    values = {"batch": 2, "seconds": 0.32, "steps": 2, "pool": 0, "train_t5": False, "auxiliary_weight": 0.5}
    recipe.write_text(json.dumps(values | {"unconditional": "trained"}))
    command = ["train", "--stage", "ldm", "--data", sounds, "--model", sizes, "--config", recipe]
    assert main([*map(str, command), "--out", str(tmp_path / "run"), "--sample-every", "2"]) == 0
    assert len(list((tmp_path / "run" / "samples").rglob("*.wav"))) > 0
    result = load(tmp_path / "run" / "model").generate("a voice", phonemes="wˈʌn", num_inference_steps=2)
    assert result.audio.shape[-1] == round(0.32 * 16_000)
