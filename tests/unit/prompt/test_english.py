"""The cleaners: what a text becomes before a phonemiser reads it."""

# ruff: noqa: RUF001 - characters that look like ASCII are the subject

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError
from audioldm2.prompt.english import ABBREVIATIONS, clean
from tests.support.sizes import full_or

# Random text seldom has what the cleaners look for, so that half of the characters are of that kind.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=3),
        st.sampled_from([*"<>/$€£¥.,!'- \n1205½™", "mr.", "ft.", "ft", "co.", "<b>", "bn", "m", "million"]),
    ),
    max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\r\n\tWORLD!\u00a0 ", "hello, world!"),
        ("Café, naïve, Straße, Ærø, Łódź", "cafe, naive, strasse, aero, lodz"),
        ("“Don’t” «go» …", '"don\'t" "go" ...'),
        ("wait—what – no", "wait -- what - no"),
        ("Ｆｕｌｌ ﬁx ②", "full fix 2"),
        ("one\u200b word, so\u00adft", "one word, soft"),
        ("hi 😀 there ©", "hi there"),
        ("\ud800a\x00b\x01c", "a b c"),
        ("٣ or ३", "3 or 3"),
        ("α-rays and 2π", "alpha -rays and 2 pi"),
        ("20 °C, 3×4", "20 degrees c, 3 times 4"),
    ],
)
def test_any_text_becomes_lower_case_ascii(text: str, expected: str):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. and Mrs. Smith", "mister and misses smith"),
        ("Dr.Who, Jr.", "doctor who, junior"),
        ("St. John & Co., Ltd.", "saint john & company, limited"),
        ("first. mister. drs. Brown", "first. mister. doctors brown"),
        ("6 ft. tall, Ft. Worth", "6 feet tall, fort worth"),
    ],
)
def test_abbreviations_become_words(text: str, expected: str):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$5", "5 dollars"),
        ("$1, €1, £1 and ¥1", "1 dollar, 1 euro, 1 pound and 1 yen"),
        ("$3.50 or £1.05", "3 dollars and 50 cents or 1 pound and 5 pence"),
        ("$0.99, $7.00", "99 cents, 7 dollars"),
        ("$0.00", "0 cents"),
        ("$1,234,567.5", "1,234,567.5 dollars"),
        ("$3.5 million, €2bn, $4k", "3.5 million dollars, 2 billion euros, 4 thousand dollars"),
        ("5 € and 5$", "5 euros and 5 dollars"),
        ("US$20.", "us 20 dollars."),
        ("$x", "dollars x"),
    ],
)
def test_amounts_are_in_the_order_in_which_they_are_spoken(text: str, expected: str):
    assert clean(text) == expected


def test_tags_are_left_out_but_comparisons_are_not():
    assert clean("oh <laughs> no<br/>yes </i>x") == "oh no yes x"
    assert clean("1 < 2 and 3 > 2, <3") == "1 < 2 and 3 > 2, <3"


@pytest.mark.parametrize("text", ["你好", "hello Привет", "שלום", "ʃ"])
def test_letters_of_other_alphabets_are_named(text: str):
    with pytest.raises(
        ArgumentError, match=r"transcription contains '.*; it has to be English in Latin letters"
    ):
        clean(text)


def test_every_abbreviation_needs_its_dot():
    for short, full in ABBREVIATIONS.items():
        assert clean(f"a {short}. b") == f"a {full} b"
        assert clean(f"a {short} b") == f"a {short} b"


@settings(max_examples=full_or(300, 100), deadline=None)
@given(TEXTS)
def test_a_clean_text_is_printable_ascii_and_cleaning_it_changes_nothing(text: str):
    try:
        found = clean(text)
    except ArgumentError as error:
        assert str(error).startswith("transcription contains ")
        return
    assert found.isascii() and found.isprintable() and found == found.lower() == " ".join(found.split())
    assert clean(found) == found
