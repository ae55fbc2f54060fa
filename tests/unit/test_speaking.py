"""Texts of any length in one voice: what is a clip, what is cut off, and how clips are joined."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from audioldm2.audio.speech_ends import AFTER, BEFORE, speech_ends
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.result import Result
from audioldm2.sound_shape import SoundShape
from audioldm2.speaking import PAUSE, Speech, clips_of, speak

RATE, HOP = 16000, 160
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORD = 0.2  # seconds


class StandIn:
    """A model without networks. Its clips, of 4 s, have a tone of 0.2 s for each word after a second."""

    speaks, sample_rate, pronunciations = True, RATE, dict(zip(WORDS, WORDS, strict=True))

    def __init__(self, seconds: float = 4.0, most: int = 310):
        self.phoneme_tokenizer = SimpleNamespace(max_length=most)
        self.sound = SoundShape(RATE, HOP, 4, 8, 64, seconds)
        self.asked: list[GenerationOptions] = []

    def generate(self, prompt: str, *, options: GenerationOptions, **follow: Any) -> Result:
        self.asked.append(options)
        count = options.num_waveforms_per_prompt
        text, seed = options.transcription, options.seed
        assert isinstance(text, str) and isinstance(seed, int)
        audio = torch.zeros(1, count, 4 * RATE)
        time = torch.arange(int(WORD * RATE) * len(text.split())) / RATE
        for place in range(count):
            tone = 0.1 * (1 + seed + place) * torch.sin(2 * torch.pi * 440 * time)
            audio[0, place, RATE : RATE + len(time)] = tone
        scores = torch.tensor([[0.5 - 0.1 * place for place in range(count)]]) if count > 1 else None
        seeds = [[seed + place for place in range(count)]]
        if "six" in text and count > 1:  # here the other candidate is better by far
            audio, seeds = audio.flip(1), [seeds[0][::-1]]
            scores = torch.tensor([[0.9, 0.1]])
        request: Any = SimpleNamespace(
            prompts=[prompt],
            negative_prompts=[""],
            record=dict,
            prompt_record=lambda place: prompt,
            sound_prompt_record=lambda place: {},
            speech_record=lambda place: {"transcription": text, "phonemes": text, "pronounced_by": "table"},
        )
        mel = torch.zeros(count, audio.shape[-1] // HOP, 64)
        return Result(audio, RATE, scores, seeds, mel, mel, request, {"model": "stand-in"})


def spoken(text: str, model: Any = None, **options: Any) -> Speech:
    return speak(model or StandIn(), "a calm voice", text, **options)


def test_a_text_that_fits_is_the_clip_that_generate_gives():
    model = StandIn()
    speech = spoken("one two, three.", model, seed=3)
    expected = model.generate("", options=GenerationOptions(seed=3, transcription="one two, three."))
    assert speech.audio.equal(expected.audio) and speech.texts == ["one two, three."]
    assert model.asked[0].transcription == "one two, three."
    assert speech.record()["pronounced_by"] == "table" and speech.record()["seed"] == 3


def test_what_fits_is_the_less_of_phonemes_and_time():
    text = "one two three. four five six. seven"
    assert clips_of(StandIn(most=310), text, 10.0) == [text]  # type: ignore[arg-type]
    by_time = clips_of(StandIn(), text, 1.0, 14.0)  # type: ignore[arg-type]
    by_count = clips_of(StandIn(most=15), text, 10.0)  # type: ignore[arg-type]
    assert by_time == by_count == ["one two three. ", "four five six. ", "seven"]


def test_clips_have_one_voice_and_are_joined_with_pauses():
    model, said = StandIn(seconds=2.0), []
    speech = spoken(
        "one two three four. five, six seven eight nine ten one.", model, seed=4, phonemes_per_second=11,
        on_part=lambda place, texts: said.append(texts[place]),
    )  # fmt: skip
    texts = ["one two three four.", "five,", "six seven eight nine", "ten one."]
    assert [each.transcription for each in model.asked] == texts
    assert {each.seed for each in model.asked} == {4}
    assert said == speech.texts and "".join(said) == "one two three four. five, six seven eight nine ten one."
    tones = [WORD * len(text.split()) + BEFORE + AFTER for text in speech.texts]
    assert speech.starts[1] == pytest.approx(tones[0] + PAUSE, abs=0.03)
    assert speech.mel.shape[1] == pytest.approx(speech.audio.shape[-1] / HOP, abs=8)
    second = speech.audio[0, 0, int(speech.starts[1] * RATE) :]
    first = speech.audio[0, 0, : int(speech.starts[1] * RATE)]
    assert second.abs().max() > 0.1 and first[-int(0.25 * RATE) :].abs().max() == 0
    record = speech.record()
    assert record["transcription"] == "".join(speech.texts)
    assert [each["transcription"] for each in record["clips"]] == [each.strip() for each in speech.texts]


def length(text: str, **options: Any) -> float:
    return spoken(text, StandIn(seconds=2.0), phonemes_per_second=6.0, **options).audio.shape[-1] / RATE


def test_pauses_are_longest_after_paragraphs_and_shorter_at_commas():
    words = 2 * (2 * WORD + BEFORE + AFTER)
    for between, pauses in ((".\n\n", 2.0), (". ", 1.0), (", ", 0.5), (" ", 0.0)):
        assert length(f"one seven{between}four six") == pytest.approx(words + pauses * PAUSE, abs=0.03)
    assert length("one seven. four six", pause_seconds=1) == pytest.approx(words + 1, abs=0.03)


def test_a_seed_that_is_drawn_is_one_for_all_clips():
    model = StandIn(seconds=1.0)
    spoken("one two three. four five six.", model, seed=None)
    assert len(model.asked) == 2 and model.asked[0].seed == model.asked[1].seed is not None


def test_of_several_candidates_one_seed_speaks_all_clips():
    speech = spoken("one two three. four five six.", StandIn(seconds=1.0), seed=0, num_waveforms_per_prompt=2)
    assert len(speech.texts) == 2  # seed 0 has scores 0.5 and 0.1, seed 1 has 0.4 and 0.9
    assert speech.audio.abs().max() == pytest.approx(0.2, abs=0.01)
    middle = int(speech.starts[1] * RATE)
    assert speech.audio[0, 0, :middle].abs().max() == pytest.approx(0.2, abs=0.01)
    assert speech.seed == speech.record()["seed"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loop": True}, "loop is True; it has to be left out with a text of several clips."),
        ({"seed": [1]}, r"seed is \[1\]; it has to be one number"),
        ({"transcription": "a"}, "transcription is 'a'; it has to be left out"),
        ({"phonemes": "a"}, "phonemes is 'a'; it has to be left out"),
        ({"pause_seconds": -1}, "pause_seconds is -1; it has to be a number from 0 to 60"),
        ({"phonemes_per_second": 0}, "phonemes_per_second is 0; it has to be a number from 1 to 100"),
    ],
)
def test_mistakes_are_named_before_a_clip_is_generated(options: dict[str, Any], sentence: str):
    model = StandIn(seconds=1.0)
    with pytest.raises(ArgumentError, match=sentence):
        spoken("one two three. four five six.", model, **options)
    assert model.asked == []


def test_several_prompts_and_other_models_are_refused():
    with pytest.raises(ArgumentError, match=r"prompt is .*; it has to be one text"):
        speak(StandIn(), ["a", "b"], "one")  # type: ignore[arg-type]
    model = StandIn()
    model.phoneme_tokenizer = None  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="this model is not a speech model"):
        spoken("one", model)


# ---- the ends of speech


def tone(*parts: tuple[float, float]) -> torch.Tensor:
    """A tone of levels (dB) and seconds, over a floor of noise at -60 dB."""
    level = torch.cat([torch.full((int(seconds * RATE),), 10 ** (db / 20)) for db, seconds in parts])
    time = torch.arange(len(level)) / RATE
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(len(level), generator=generator) * 1e-3
    return level * torch.sin(2 * torch.pi * 300 * time) + noise


def test_silence_at_the_ends_is_not_speech_and_pauses_within_are():
    first, last = speech_ends(tone((-99, 1), (-6, 0.5), (-99, 0.7), (-20, 0.3), (-99, 6)), RATE)
    assert first == pytest.approx((1 - BEFORE) * RATE, abs=0.02 * RATE)
    assert last == pytest.approx((2.5 + AFTER) * RATE, abs=0.02 * RATE)


def test_a_click_is_not_speech():
    first, _ = speech_ends(tone((-99, 0.5), (-3, 0.01), (-99, 0.5), (-6, 0.5), (-99, 1)), RATE)
    assert first == pytest.approx((1.01 - BEFORE) * RATE, abs=0.02 * RATE)


def test_a_silent_clip_has_no_speech():
    assert speech_ends(torch.zeros(RATE), RATE) == (0, 0)
    assert speech_ends(torch.zeros(3), RATE) == (0, 3)
