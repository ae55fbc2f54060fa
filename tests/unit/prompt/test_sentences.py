"""Long texts in parts: where they are cut, and that nothing is lost."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError
from audioldm2.prompt.sentences import pause_after, split

TEXTS = st.lists(
    st.sampled_from(
        [
            *("Dr. Smith", "3.14", "U.S.", "hello", "I", "go", "Yes", "No. 5", "x", "é"),
            *(", ", ". ", "! ", "? ", "... ", "; ", " -- ", "—", '" ', " (", ") ", "\n\n", "\t", " "),
        ]
    ),
    max_size=40,
).map("".join)


def cut(text: str, most: int = 1) -> list[str]:
    """Parts of at most `most` words, without the spaces between them."""
    return [part.strip() for part in split(text, words, most)]


def words(text: str) -> int:
    return len(text.split())


def test_a_text_that_fits_is_one_part_untouched():
    text = "  One. Two.\r\n\r\nThree, four!  "
    assert split(text, words, 4) == [text]
    assert split("", words, 4) == [""]


def test_sentences_stay_whole_and_share_a_part_where_they_fit():
    assert cut("One two. Three! Four five six? Seven", 3) == ["One two. Three!", "Four five six?", "Seven"]
    assert cut("hello there. how are you", 3) == ["hello there.", "how are you"]


def test_a_sentence_that_does_not_fit_is_cut_at_commas_then_between_words():
    assert cut("One two, three; four five -- six. Seven eight.", 3) == [
        *("One two, three;", "four five --", "six.", "Seven eight.")
    ]
    assert cut("One two three four five, six.", 2) == ["One two", "three four", "five,", "six."]
    assert cut("either—or", 1) == ["either—or"]


def test_a_paragraph_ends_a_sentence_and_a_line_does_not():
    assert cut("A title\n\nOne line\nand two", 4) == ["A title", "One line\nand two"]


@pytest.mark.parametrize(
    "whole",
    [
        "Dr. Smith",
        "Mrs. Smith",
        "J. R. R. Tolkien",
        "U.S. Army",
        "3.14",
        "1,000,000",
        "No. 5",
        "10 a.m. today",
        "St. Paul's",
    ],
)
def test_what_belongs_together_is_not_cut_at_its_dots(whole: str):
    text = f"We saw {whole} again. Then we left"
    parts = cut(text, len(whole.split()) + 4)
    assert parts == [f"We saw {whole} again.", "Then we left"] or len(parts) == 1


@pytest.mark.parametrize("whole", ["Dr. Smith", "Mrs. Smith", "J. R. R. Tolkien", "No. 5"])
def test_an_abbreviation_stays_with_its_word_where_words_are_parted(whole: str):
    assert cut(f"We {whole}", len(whole.split())) == ["We", whole]


def test_no_is_an_answer_unless_a_number_follows():
    assert cut("I said no. Then yes", 3) == ["I said no.", "Then yes"]
    assert cut("See no. 5 there. Then", 4) == ["See no. 5 there.", "Then"]


def test_quotes_and_ellipses_go_on_in_lower_case():
    assert cut('"Stop now!" she cried. He went', 4) == ['"Stop now!" she cried.', "He went"]
    assert cut('He said "no." Then he left', 3) == ['He said "no."', "Then he left"]
    assert cut("Well... maybe so. Yes", 3) == ["Well... maybe so.", "Yes"]


def test_a_word_that_does_not_fit_is_an_error():
    with pytest.raises(
        ArgumentError, match="contains 'bbbbbb', which has 6 phonemes; it has to have words that"
    ):
        split("a bbbbbb", lambda text: len(text.strip()), 3)


def test_what_counts_nothing_is_no_part_of_its_own():
    def letters(text: str) -> int:
        return sum(map(str.isalpha, text))

    assert split("😀 abc def 😀 ghi 😀", letters, 3) == ["😀 abc ", "def 😀 ", "ghi 😀"]
    assert split("😀. abc. def. 😀", letters, 3) == ["😀. abc. ", "def. 😀"]


@pytest.mark.parametrize(
    ("part", "ends"),
    [
        ("One. ", "sentence"),
        ('"One?" ', "sentence"),
        ("One…", "sentence"),
        ("one, ", "clause"),
        ("one -- ", "clause"),
        ("one—", "clause"),
        ("one ", "word"),
        ("One.\r\n \r\n", "paragraph"),
        ("", "word"),
    ],
)
def test_what_a_part_ends(part: str, ends: str):
    assert pause_after(part) == ends


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(3, 30))
def test_parts_fit_and_give_the_text_back(text: str, most: int):
    def count(part: str) -> int:
        return len("".join(part.split()))

    try:
        parts = split(text, count, most)
    except ArgumentError as error:
        assert str(error).startswith("transcription contains ")
        return
    assert "".join(parts) == text
    assert all(count(part) <= most for part in parts)
    assert (len(parts) == 1) == (count(text) <= most)
    assert len(parts) == 1 or all(count(part) > 0 for part in parts)
    for first, second in pairwise(parts):
        assert not re.search(r"\bDr\.\s*$", first) and not (first[-1:].isalnum() and second[:1].isalnum())


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 10))
def test_any_text_is_cut_without_loss(text: str, most: int):
    assert "".join(split(text, words, most)) == text
