"""Windows: where they lie, whose turn a frame is, what is computed, and how loops are anchored."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from audioldm2.sampling.windows import Windows, anchors, in_windows, noise_from

CHANNELS, MEL = 2, 3


def covered(windows: Windows) -> list[list[int]]:
    """The windows over each frame."""
    found: list[list[int]] = [[] for _ in range(windows.frames)]
    for number, start in enumerate(windows.starts):
        for place in range(windows.length):
            found[(start + place) % windows.frames].append(number)
    return found


def sources(windows: Windows) -> list[int]:
    """The window that each frame comes from."""
    found = [-1] * windows.frames
    for number, (frames, _) in enumerate(windows.turns()):
        for frame in frames:
            assert found[frame] == -1, "a frame comes from two windows"
            found[frame] = number
    return found


sizes = st.tuples(st.integers(1, 300), st.integers(2, 80), st.floats(0.01, 0.5))


@settings(max_examples=200, deadline=None)
@given(sizes, st.booleans())
def test_windows_cover_every_frame_once_and_neighbours_overlap(size: tuple[int, int, float], loop: bool):
    frames, length, share = size
    overlap = max(1, int(share * length))
    assume(not loop or frames >= 2 * overlap)
    windows = Windows.over(frames, length, overlap, loop)
    assert -1 not in sources(windows)
    for number, (given_frames, places) in enumerate(windows.turns()):
        start = windows.starts[number]
        assert [(start + place) % frames for place in places] == given_frames
    ends = [start + windows.length for start in windows.starts]
    following = [*windows.starts[1:], *([frames + windows.starts[0]] if loop else [])]
    assert all(end - start >= overlap for end, start in zip(ends, following, strict=False))
    if not loop:
        assert windows.starts[0] == 0 and ends[-1] == frames, "the last window ends with the sound"
        assert all(start >= 0 and end <= frames for start, end in zip(windows.starts, ends, strict=True))


@pytest.mark.parametrize("length", [10, 11, 1000])
def test_window_as_long_as_the_sound_is_the_sound(length: int):
    assert Windows.over(10, length, 2) == Windows(10, 10, (0,))
    assert Windows.over(10, length, 2).whole
    assert not Windows.over(11, 10, 2).whole
    assert not Windows.over(10, 100, 2, loop=True).whole


@pytest.mark.parametrize("loop", [False, True])
def test_frames_of_an_overlap_alternate(loop: bool):
    windows = Windows.over(80, 25, 5, loop)  # at 0, 18, 36, 55, or a loop at 0, 20, 40, 60
    for frame, (source, over) in enumerate(zip(sources(windows), covered(windows), strict=True)):
        assert source == over[frame % len(over)]
    for one, other in itertools.pairwise(range(len(windows.starts))):
        shared = [frame for frame, over in enumerate(covered(windows)) if over == [one, other]]
        turns = [sources(windows)[frame] for frame in shared]
        assert len(turns) >= 5 and all(a != b for a, b in itertools.pairwise(turns))


def test_short_loop_has_one_window_that_overlaps_itself():
    windows = Windows.over(12, 15, 3, loop=True)
    assert windows == Windows(12, 15, (0,), loop=True)
    (frames, places), *_ = windows.turns()
    assert frames == list(range(12))
    assert places == [0, 13, 2, *range(3, 12)], "frames 0 to 2 come from its start and its end in turns"


def recognising(windows: Windows, calls: list[tuple[int, ...]]):
    """Predicts, in every cell, 1000 * condition + 100 * window + place; x holds the number of its frame."""

    def predict(x: Tensor, t: float, conditions: tuple[int, ...]) -> Tensor:
        calls.append(conditions)
        assert len(conditions) % len(x) == 0
        found = []
        for row, condition in enumerate(conditions):
            seen = x[row % len(x), 0, :, 0]
            number = windows.starts.index(int(seen[0]))
            assert seen.tolist() == [
                (number_of(windows, number) + i) % windows.frames for i in range(len(seen))
            ]
            values = 1000 * condition + 100 * number + torch.arange(len(seen))
            found.append(values[None, :, None].expand(CHANNELS, -1, MEL).float())
        return torch.stack(found)

    return predict


def number_of(windows: Windows, number: int) -> int:
    return windows.starts[number]


def frame_numbers(frames: int) -> Tensor:
    return torch.arange(frames).float()[None, None, :, None].expand(1, CHANNELS, -1, MEL)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("most_rows", [1, 2, 3, 50])
def test_each_frame_is_the_prediction_of_its_window(loop: bool, most_rows: int):
    windows = Windows.over(40, 12, 3, loop)
    calls: list[tuple[int, ...]] = []
    shares = torch.ones(1, 1, 40)
    found = in_windows(recognising(windows, calls), windows, shares, most_rows)(frame_numbers(40), 1.0)
    assert found.shape == (1, CHANNELS, 40, MEL)
    for number, (frames, places) in enumerate(windows.turns()):
        expected = torch.tensor([100.0 * number + place for place in places])
        assert torch.equal(found[0, 0, frames, 0], expected)
    assert (found == found[:, :1, :, :1]).all()
    assert max(map(len, calls)) == min(most_rows, len(windows.starts))


@pytest.mark.parametrize("most_rows", [1, 2, 5, 50])
def test_outputs_are_sums_of_shares_and_only_conditions_with_a_share_are_computed(most_rows: int):
    windows = Windows.over(40, 12, 3)
    shares = torch.zeros(2, 3, 40)
    shares[0, 0] = 1
    shares[1, 1, :20] = 1
    shares[1, 1, 14:20], shares[1, 2, 14:20], shares[1, 2, 20:] = 0.25, 0.75, 1
    calls: list[tuple[int, ...]] = []
    found = in_windows(recognising(windows, calls), windows, shares, most_rows)(frame_numbers(40), 1.0)
    own = found[0, 0, :, 0]
    mixed = own + 1000 * shares[1, 1] + 2000 * shares[1, 2]
    torch.testing.assert_close(found[1, 0, :, 0], mixed)
    assert max(map(len, calls)) <= most_rows
    expected = sum(int((shares[:, :, frames] != 0).any(2).any(0).sum()) for frames, _ in windows.turns())
    assert sum(map(len, calls)) == expected < 3 * len(windows.starts)


def test_anchor_of_a_loop_follows_its_noise():
    noise = torch.randn(3, CHANNELS, 17, MEL)
    first = anchors(noise)
    energy = noise.square().sum(dim=(1, 3))
    assert first == energy.argmax(dim=1).tolist()
    for turn in (1, 5, 16):
        assert anchors(noise.roll(turn, 2)) == [(frame + turn) % 17 for frame in first]


def test_noise_of_the_steps_starts_at_the_anchor():
    drawn = torch.randn(2, CHANNELS, 9, MEL)
    found = noise_from(lambda x, step: drawn * step, [0, 4])(drawn, 3)
    assert torch.equal(found[0], 3 * drawn[0])
    assert torch.equal(found[1, :, 4:], 3 * drawn[1, :, :5]) and torch.equal(
        found[1, :, :4], 3 * drawn[1, :, 5:]
    )


@pytest.mark.parametrize("loop", [False, True])
def test_cost_is_linear(loop: bool):
    for frames in range(60, 400):
        counts = [len(Windows.over(times * frames, 25, 5, loop).starts) for times in (1, 4)]
        assert counts[1] <= 4.4 * counts[0]
        assert counts[0] <= math.ceil(frames / 20)
