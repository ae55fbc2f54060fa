"""Texts to phonemes: by a table, by espeak, and what happens without espeak."""

# ruff: noqa: RUF001 - phonemes look like letters

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError
from audioldm2.prompt import espeak
from audioldm2.prompt.pronunciation import pronounce, pronounced_by
from tests.support.sizes import full_or

TABLE = {"three": "θɹˈiː", "seven": "sˈɛvən", "one": "wˈʌn"}
GOLDEN_VERSION = "espeak-ng 1.51"


def found() -> str | None:
    try:
        return espeak.version()
    except espeak.EspeakError:
        return None


needs_espeak = pytest.mark.skipif(found() is None, reason="no espeak library is installed")


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As in a process that has not read a text yet."""
    monkeypatch.setattr(espeak, "_found", None)
    yield monkeypatch


@pytest.fixture
def no_espeak(nothing_loaded: pytest.MonkeyPatch) -> None:
    nothing_loaded.delenv(espeak.VARIABLE, raising=False)
    nothing_loaded.setattr(espeak, "candidates", lambda: iter([("libnothing-of-this-name.so", None)]))


# ---- the table


def test_a_table_with_every_word_needs_no_espeak(no_espeak: None):
    assert pronounce("Three, SEVEN one!", TABLE) == "θɹˈiː, sˈɛvən wˈʌn!"
    assert pronounced_by("three seven one", TABLE) == "table"


@needs_espeak
def test_one_word_that_is_not_in_the_table_leaves_the_text_to_espeak():
    table = {**TABLE, "one": "never read"}
    assert pronounce("three one two", table) == pronounce("three one two")
    assert pronounced_by("three one two", table) == espeak.version()


def test_texts_without_words_need_no_espeak(no_espeak: None):
    assert pronounce("") == pronounce(" \n") == ""
    assert pronounce(" ?! ") == "?!"


def test_a_text_with_nothing_to_say_is_an_error(no_espeak: None):
    for text in ("😀", "()", "\x00"):
        with pytest.raises(ArgumentError, match="it has to have words or punctuation marks"):
            pronounce(text)
    with pytest.raises(ArgumentError, match="it has to be a text"):
        pronounce(3)  # type: ignore[arg-type]


# ---- espeak


GOLDEN = {
    "Hello, world!": "həlˈoʊ, wˈɜːld!",
    "The quick brown fox jumps over the lazy dog.": "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ.",
    "Mrs. Smith paid $3.50 for 1,000 apples.": "mˈɪsɪz smˈɪθ pˈeɪd"
    " θɹˈiː dˈɑːlɚz ænd fˈɪfti sˈɛnts fɔːɹ wˈʌn θˈaʊzənd ˈæpəlz.",
    "It costs 3.14, or so; I think: yes?": "ɪt kˈɔsts θɹˈiː pɔɪnt wˈʌn fˈoːɹ, ɔːɹ sˈoʊ; ˈaɪ θˈɪŋk: jˈɛs?",
    '"Don\'t go," he said (quietly).': '"dˈoʊnt ɡˈoʊ," hiː sˈɛd kwˈaɪətli.',
    "Wait -- what?": "wˈeɪt wˈʌt?",
    "the U.S. Army": "ðə jˈuː.ˈɛs. ˈɑːɹmi",
    "at 10:30, in 1999": "æt tˈɛn:θˈɜːɾi, ɪn nˈaɪntiːnhˈʌndɹɪd nˈaɪnti nˈaɪn",
}


@needs_espeak
@pytest.mark.parametrize(("text", "expected"), GOLDEN.items())
def test_phonemes_of_a_named_espeak(text: str, expected: str):
    if found() != GOLDEN_VERSION:
        pytest.skip(f"the phonemes are those of {GOLDEN_VERSION}; {found()} is installed")
    assert pronounce(text) == expected


@needs_espeak
def test_marks_stay_where_they_are_and_brackets_leave():
    assert pronounce("one,two (three); four...five") == (
        "{},{} {}; {}...{}".format(*map(pronounce, ("one", "two", "three", "four", "five")))
    )


@needs_espeak
def test_marks_between_digits_do_not_split():
    assert "pɔɪnt" in pronounce("3.14") and "." not in pronounce("3.14")
    assert pronounce("1,000.") == pronounce("one thousand") + "."
    assert pronounce("3,x") == f"{pronounce('three')},{pronounce('x')}"


@needs_espeak
def test_a_word_beyond_the_buffers_of_espeak_is_an_error():
    pronounce("a" * espeak.LONGEST_WORD)
    with pytest.raises(ArgumentError, match="contains a word of 101 characters, 'aaaaaaaaaaaaaaaaaaaa"):
        pronounce("b " + "a" * (espeak.LONGEST_WORD + 1))


@needs_espeak
@settings(max_examples=full_or(300, 100), deadline=None)
@given(
    st.one_of(st.text(), st.text(st.characters(codec="latin-1")), st.text(st.sampled_from("a1.,'-$%/&@ ")))
)
def test_any_text_gives_phonemes_or_a_sentence(text: str):
    try:
        phonemes = pronounce(text)
    except ArgumentError as error:
        assert str(error).startswith("transcription ")
        return
    assert phonemes == " ".join(phonemes.split())
    assert bool(phonemes) or not text.strip()
    assert pronounce(text) == phonemes


@needs_espeak
def test_threads_read_at_once():
    texts = ["one hundred sheep", "quick, brown foxes!", "I don't know.", "3.14 is pi"] * 10
    expected, seen = [pronounce(text) for text in texts], {}

    def read(first: int) -> None:
        for place in range(first, len(texts), 4):
            seen[place] = pronounce(texts[place])

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[place] for place in range(len(texts))] == expected


@needs_espeak
def test_espeak_leaves_the_locale_as_it_was(nothing_loaded: pytest.MonkeyPatch):
    import locale

    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        pronounce("hello")
        assert locale.setlocale(locale.LC_CTYPE) == "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


# ---- no espeak


def test_without_espeak_the_error_says_what_to_install(no_espeak: None):
    with pytest.raises(espeak.EspeakError) as caught:
        pronounce("hello")
    for words in (
        "needs espeak-ng",
        "pip install espeakng-loader",
        "apt",
        "brew",
        "Windows",
        "--phonemes",
    ):
        assert words in str(caught.value)


def test_a_library_that_the_environment_names_is_not_replaced_by_another(
    nothing_loaded: pytest.MonkeyPatch, tmp_path: Path
):
    nothing_loaded.setenv(espeak.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(espeak.EspeakError, match=r"PHONEMIZER_ESPEAK_LIBRARY names .*none\.so"):
        pronounce("hello")


def test_a_broken_library_is_named(nothing_loaded: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    nothing_loaded.delenv(espeak.VARIABLE, raising=False)
    nothing_loaded.setattr(espeak, "candidates", lambda: iter([(str(broken), None)]))
    with pytest.raises(
        espeak.EspeakError, match=r"No espeak can be used .*libespeak-ng\.so cannot be loaded"
    ):
        pronounce("hello")


@needs_espeak
def test_a_version_that_is_too_old_is_named(nothing_loaded: pytest.MonkeyPatch):
    nothing_loaded.setattr(espeak, "OLDEST", (99, 0))
    with pytest.raises(espeak.EspeakError, match=r"is version [\d.]+\S*, which is older than 99\.0"):
        pronounce("hello")
