"""Timelines: how they are given, what is wrong with them, and how much each prompt counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError
from audioldm2.prompt.timeline import FADE, Span, described, parts, read_timelines, seconds, shares
from tests.support.sizes import full_or

RAIN = [("rain", 0, 10), ("thunder", 8, 14)]
SPANS = (Span("rain", 0.0, 10.0), Span("thunder", 8.0, 14.0))


def read(prompt: object) -> object:
    return read_timelines(prompt, 0.04, 86400)


def test_a_timeline_and_a_list_of_them():
    assert read(RAIN) == read(tuple(RAIN)) == read([list(entry) for entry in RAIN]) == read(SPANS) == [SPANS]
    other = [("wind", 0, 14)]
    assert read([RAIN, other]) == [SPANS, (Span("wind", 0.0, 14.0),)]
    assert seconds(SPANS) == 14 and described(SPANS) == "rain (0 to 10 s), thunder (8 to 14 s)"


@pytest.mark.parametrize(
    "prompt", ["rain", ["rain"], ["rain", ("a", 0, 1)], ("rain", 0, 10), [], None, 3, {}]
)
def test_texts_are_no_timelines(prompt: object):
    assert read(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([("rain", 0)], "prompt[0] is ('rain', 0); it has to be (text, start, end), with times in seconds."),
        ([("rain", 0, 1), "a"], "prompt[1] is 'a'; it has to be (text, start, end), with times in seconds."),
        ([(3, 0, 1)], "prompt[0][0] is 3; it has to be a text."),
        ([("rain", "0", 1)], "prompt[0][1] is '0'; it has to be a number from 0 to 86400."),
        ([("rain", -1, 1)], "prompt[0][1] is -1; it has to be a number from 0 to 86400."),
        ([("rain", 0, math.nan)], "prompt[0][2] is nan; it has to be a number from 0 to 86400."),
        ([("rain", 0, math.inf)], "prompt[0][2] is inf; it has to be a number from 0 to 86400."),
        ([("rain", 0, True)], "prompt[0][2] is True; it has to be a number from 0 to 86400."),
        ([("rain", 2, 2)],
         "prompt[0][2] is 2.0; it has to be at least 0.04 s after the start, which is 2."),
        ([("rain", 2, 1)],
         "prompt[0][2] is 1.0; it has to be at least 0.04 s after the start, which is 2."),
        ([("rain", 0, 3), ("wind", 5, 9)], "prompt has no text from 3 to 5 s; it has to leave no gap."),
        ([("rain", 1, 3)], "prompt has no text from 0 to 1 s; it has to leave no gap."),
        ([("wind", 0, 9), ("rain", 0, 3), ("wind", 10, 11)],
         "prompt has no text from 9 to 10 s; it has to leave no gap."),
        ([[]], "prompt[0] is []; it has to be a list of (text, start, end)."),
        ([[("rain", 0, 1)], "wind"], "prompt[1] is 'wind'; it has to be a list of (text, start, end)."),
        ([[("rain", 0, 1)], [("rain", 0, 1), ("wind", 3, 4)]],
         "prompt[1] has no text from 1 to 3 s; it has to leave no gap."),
        ([[("rain", 0, 1)], [("rain", 0, 2)]],
         "prompt[1] ends at 2 s; it has to end at 1 s, as prompt[0] does."),
    ],
)  # fmt: skip
def test_sentences_of_mistakes(prompt: object, sentence: str):
    with pytest.raises(ArgumentError) as caught:
        read(prompt)
    assert str(caught.value) == sentence


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.text(max_size=2)
    | st.just(torch.zeros(3)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner, inner) | st.tuples(st.text(), inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=full_or(300, 100), deadline=None)
@given(st.lists(ANYTHING, max_size=3))
def test_anything_is_read_or_refused_by_name(prompt: list):
    try:
        found = read(prompt)
    except ArgumentError as error:
        assert error.name.startswith("prompt")
    else:
        assert found is None or all(isinstance(span, Span) for timeline in found for span in timeline)


def test_prompts_fade_where_they_meet():
    frames, cell = 100, 0.05  # 5 s
    first, second = shares((Span("a", 0, 2), Span("b", 2, 5)), frames, cell)
    centres = (torch.arange(frames) + 0.5) * cell
    expected = ((centres - 2) / FADE + 0.5).clamp(0, 1)
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(first + second, torch.ones(frames))
    assert first[0] == 1 and second[-1] == 1, "the ends of the sound do not fade"


def test_prompts_share_where_they_overlap():
    first, second, third = shares((Span("a", 0, 8), Span("b", 2, 4), Span("c", 6, 10)), 200, 0.05)
    assert torch.equal(first[:35], torch.ones(35)) and not second[:35].any(), "a alone until 2 s - FADE / 2"
    torch.testing.assert_close(second[50:70], torch.full((20,), 0.5))
    torch.testing.assert_close(third[130:150], torch.full((20,), 0.5))
    assert torch.equal(third[165:], torch.ones(35))


@settings(max_examples=100, deadline=None)
@given(
    ends=st.lists(st.floats(0.1, 3), min_size=1, max_size=5),
    more=st.floats(0, 1),
    cell=st.floats(0.01, 0.2),
    loop=st.booleans(),
)
def test_shares_of_each_frame_add_up_to_one(ends: list[float], more: float, cell: float, loop: bool):
    starts = [sum(ends[:i]) for i in range(len(ends))]
    timeline = tuple(Span("a", s, s + e + more) for s, e in zip(starts, ends, strict=True))
    found = shares(timeline, math.ceil(seconds(timeline) / cell), cell, loop)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(found.shape[1]))
    assert (found >= 0).all()


@pytest.mark.parametrize("loop", [False, True])
def test_a_single_prompt_has_every_frame(loop: bool):
    assert torch.equal(shares((Span("a", 0, 1.03),), 26, 0.04, loop), torch.ones(1, 26))


def test_prompts_of_a_loop_fade_over_its_ends():
    first, second = shares((Span("a", 0, 2), Span("b", 2, 4)), 80, 0.05, loop=True)
    torch.testing.assert_close(first.roll(40), second)
    torch.testing.assert_close(first[0] + first[-1], torch.tensor(1.0))
    assert second[0] > 0.4


def test_parts_are_what_belongs_to_each_text():
    audio = torch.arange(2 * 1400.0).reshape(2, 1400)
    texts, waves, counts = parts([SPANS, (Span("wind", 0, 14),)], audio, 100)
    assert (texts, counts) == (["rain", "thunder", "wind"], [2, 1])
    assert torch.equal(waves[0], audio[0, :1000]) and torch.equal(waves[1], audio[0, 800:])
    assert torch.equal(waves[2], audio[1])
