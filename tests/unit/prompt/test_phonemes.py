"""Phonemes to ids and back, and the errors and warnings of what cannot be spoken."""

import random
import warnings
from dataclasses import replace

import pytest
import torch

import audioldm2
from audioldm2 import TruncationWarning, convert
from audioldm2.checkpoints import storage
from audioldm2.convert.phonemes import SYMBOLS, symbols_from
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.prompt.phonemes import PhonemeTokenizer, UnknownSymbolWarning
from tests.support import checkpoints, originals

PUBLISHED = PhonemeTokenizer(SYMBOLS)
END = 182


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> audioldm2.AudioLDM2:
    """The tiny speech model of `tests.support.originals`, which generates eight vectors only."""
    folder = tmp_path_factory.mktemp("speech")
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
    checkpoints.write_tokenizers(folder / "tokenizer", folder / "tokenizer_2")
    path = folder / "speech.pth"
    torch.save({"state_dict": originals.make("speech").table}, path)
    checkpoint = convert.read_original(path, tokenizers={"clap_tokenizer": folder / "tokenizer"})
    checkpoint.configs["gpt2"] = replace(checkpoint.configs["gpt2"], new_vectors=8)
    del checkpoint.configs["audiomae"], checkpoint.states["audiomae"]  # which gives 512 vectors
    checkpoint.pronunciations = {"one": "wɜn", "two": "tu"}
    storage.write(checkpoint, folder / "out")
    return audioldm2.load(folder / "out", device="cpu")


# Symbols ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_symbols_come_back(seed):
    choose = random.Random(seed)
    phonemes = "".join(choose.choices(SYMBOLS[1:END], k=choose.randint(0, 309)))
    ids = PUBLISHED.encode(phonemes)
    assert ids[-1] == END and END not in ids[:-1] and 0 not in ids
    assert PUBLISHED.decode(ids) == phonemes


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_unicode_gives_ids_of_the_model(seed):
    choose = random.Random(seed)
    text = "".join(chr(choose.randrange(0x110000)) for _ in range(choose.randint(0, 400)))
    ids = PUBLISHED.encode(text + "\ud83d_⚠\n")
    assert ids[-1] == END and 1 <= len(ids) <= 310
    assert all(0 < number < END for number in ids[:-1])


def test_later_of_two_equal_symbols_counts():
    assert PUBLISHED.encode("'") == [176, END]


def test_longest_symbol_is_taken():
    tokenizer = PhonemeTokenizer(["_", "a", "ai", "i", "$"], 9)
    assert tokenizer.encode("aiai") == [2, 2, 4] and tokenizer.encode("iaa") == [3, 1, 1, 4]


def test_unknown_symbols_are_named_once_and_dropped():
    with pytest.warns(UnknownSymbolWarning, match=r"no phonemes '€', '_'; they are not spoken"):
        assert PUBLISHED.encode("a€b€_") == PUBLISHED.encode("ab")


def test_part_that_is_too_long_is_shown():
    with pytest.warns(TruncationWarning, match=r"309 phonemes at most, and these are 311; .* 'bc'"):
        ids = PUBLISHED.encode("a" * 309 + "bc")
    assert len(ids) == 310 and ids[-1] == END
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PUBLISHED.encode("a" * 309)


def test_vocabulary_of_another_model_is_replaced():
    letters = {letter: number for number, letter in enumerate("_abcdefghijklmnopqrstuvwxyz' -.,!?0123")}
    with pytest.warns(UserWarning, match=r"lists 38 symbols, and the phoneme encoder has learnt 183"):
        assert symbols_from(letters, 183) == SYMBOLS
    assert symbols_from({symbol: number for number, symbol in enumerate(SYMBOLS)}, 183) == SYMBOLS


# A model that speaks ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_of_a_batch_are_those_alone(speaker):
    prompts, phonemes = ["a man", "a woman", "a man"], ["ab", "abcdefgh" * 3, ""]
    for how in ("trained", "reference"):
        request = dict(negative_prompt=["", "", "hiss"], unconditional=how)
        together = speaker.encode_prompt(prompts, phonemes=phonemes, **request)
        for row, (prompt, said, negative) in enumerate(zip(prompts, phonemes, ["", "", "hiss"], strict=True)):
            alone = speaker.encode_prompt(prompt, negative, phonemes=said, unconditional=how)
            pairs = [(together[row], alone), (together[row].negative, alone.negative)]
            for found, expected in pairs:
                torch.testing.assert_close(found.gpt2_context, expected.gpt2_context, rtol=1e-4, atol=1e-3)
    first, second, third = together.gpt2_context
    assert (first - second).norm() > 1 and (first - third).norm() > 1


def test_unconditional_readings(speaker):
    trained, reference = (
        speaker.encode_prompt("a man", phonemes="ab", unconditional=how) for how in ("trained", "reference")
    )
    assert not trained.negative.gpt2_context.any()
    assert reference.negative.gpt2_context.std() > 0.1
    other = speaker.encode_prompt("a woman", phonemes="cd", unconditional="reference")
    assert torch.equal(other.negative.gpt2_context, reference.negative.gpt2_context)


def test_sounds_of_a_batch_candidates_and_record(speaker):
    request = dict(audio_length_in_s=0.32, num_inference_steps=2, seed=3)
    both = speaker.generate(["a man", "a woman"], transcription=["one two", "two"], **request)
    alone = speaker.generate("a woman", phonemes="tu", **request)
    torch.testing.assert_close(both.audio[1], alone.audio[0], rtol=0, atol=1e-3)
    said = {name: both.record(1)[name] for name in ("transcription", "phonemes", "pronounced_by")}
    assert said == {"transcription": "two", "phonemes": "tu", "pronounced_by": "table"}
    assert alone.record()["transcription"] is None and alone.record()["phonemes"] == "tu"


def test_saved_conditioning_speaks_again(speaker, tmp_path):
    conditioning = speaker.encode_prompt("a man", transcription="one")
    conditioning.save(tmp_path / "one.safetensors")
    again = audioldm2.Conditioning.load(tmp_path / "one.safetensors")
    latents = torch.randn(speaker.sound.latents(1, 8))
    found, expected = (
        speaker.denoise(each, latents, num_inference_steps=2) for each in (again, conditioning)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "transcription is missing; it has to be the words to speak"),
        (
            {"phonemes": "a", "transcription": "one"},
            "phonemes is 'a'; it has to be left out with transcription",
        ),
        ({"phonemes": ["a", "b"]}, "phonemes has 2 entries for 1 prompts"),
        ({"phonemes": 3}, "phonemes is 3; it has to be a text or a list of at least one text"),
    ],
)
def test_refusals_of_a_speech_model(speaker, arguments, words):
    for call in (speaker.generate, speaker.encode_prompt):
        with pytest.raises(ArgumentError) as caught:
            call("a man", **arguments)
        assert words in str(caught.value)


def test_timelines_and_edits_by_text_are_refused(speaker):
    with pytest.raises(ArgumentError, match="prompt is a timeline; it has to be a text or texts"):
        speaker.generate([("a man", 0, 1)], phonemes="a")
    with pytest.raises(ArgumentError, match="a speech model; it has to be edited by a model of sounds"):
        speaker.edit(torch.randn(16000), "a cat", source_prompt="a dog")


@pytest.mark.parametrize("name", ["transcription", "phonemes"])
def test_other_models_refuse_to_speak(tiny_model, name):
    assert not tiny_model.speaks
    for call in (tiny_model.generate, tiny_model.encode_prompt):
        with pytest.raises(ArgumentError, match=rf"{name} is 'a'; it has to be left out: .* not a speech"):
            call("a dog", **{name: "a"})


def test_positions_have_to_suffice():
    configs = dict(originals.CONFIGS["speech"])
    configs["gpt2"] = replace(configs["gpt2"], max_positions=540)
    with pytest.raises(WeightsError, match=r"positions of 'projection' is 30; it has to be from 1 to 23"):
        storage.validate.check_together(configs, "here")
