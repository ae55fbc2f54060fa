"""Long sounds and loops: the noise in a whole latent, predicted a window at a time.

Neighbouring windows overlap, and there the frames of the prediction come from the windows in turns, at every
step (SaFa, Dai et al. 2025, arXiv 2502.05130). The average of two predictions, as in MultiDiffusion, is
smoother than either: it loses high frequencies, and needs far more overlap.

A loop is a ring of frames. Its windows run over its end into its start, so nothing marks where it begins. A
network that halves time depends on whether a window starts at an odd or an even frame, so windows lie
relative to an anchor that belongs to the noise, the frame with the most energy: rolling the noise rolls them.

The cost grows linearly with length. Memory is that of one batch of windows and of a few whole latents.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from audioldm2.sampling.samplers import Noise

# predict(x, t, conditions): the noise in x (rows, channels, time, mel), once for each of the conditions.
# These come in blocks of `rows`: the first block has one condition for each row, and so has the next.
Predict = Callable[[Tensor, float, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Windows:
    """Where windows lie over the frames of a latent, evenly."""

    frames: int  # of the latent
    length: int  # frames of a window; that of a loop may be longer than the loop, and overlap itself
    starts: tuple[int, ...]  # of a loop: counted from its anchor
    loop: bool = False

    @staticmethod
    def over(frames: int, length: int, overlap: int, loop: bool = False) -> "Windows":
        """The fewest windows that cover a latent; the last one ends where the latent ends.

        Args:
            frames: of the latent; those of a loop have to be at least `2 * overlap`.
            length: frames of a window. A window as long as the latent is the latent.
            overlap: frames that neighbours share at least, 1 to `length - 1`.
            loop: the last window overlaps the first.
        """
        stride = length - overlap
        if loop:
            count = math.ceil(frames / stride)
            starts = tuple(i * frames // count for i in range(count))
            return Windows(frames, length if count > 1 else frames + overlap, starts, loop=True)
        if length >= frames:
            return Windows(frames, frames, (0,))
        last = math.ceil((frames - length) / stride)
        return Windows(frames, length, tuple(i * (frames - length) // last for i in range(last + 1)))

    @property
    def whole(self) -> bool:
        """Whether the only window is the latent itself."""
        return not self.loop and len(self.starts) == 1

    def turns(self) -> list[tuple[list[int], list[int]]]:
        """Which frames come from which window: for each window the frames, and their places in it.

        Of the windows that cover a frame, the one whose turn it is: frame by frame the next.
        """
        covering: list[list[tuple[int, int]]] = [[] for _ in range(self.frames)]
        for window, start in enumerate(self.starts):
            for place in range(self.length):
                covering[(start + place) % self.frames].append((window, place))
        found: list[tuple[list[int], list[int]]] = [([], []) for _ in self.starts]
        for frame, candidates in enumerate(covering):
            window, place = candidates[frame % len(candidates)]
            found[window][0].append(frame)
            found[window][1].append(place)
        return found


def anchors(x: Tensor) -> list[int]:
    """The frame with the most energy in each row of x (batch, channels, time, mel)."""
    return x.double().square().sum(dim=(1, 3)).argmax(dim=1).tolist()


def noise_from(noise: Noise, anchors: Sequence[int]) -> Noise:
    """Noise whose first frame falls on the anchor of its row: rolling a loop rolls the noise of its steps."""

    def rolled(x: Tensor, step: int) -> Tensor:
        rows = zip(noise(x, step), anchors, strict=True)
        return torch.stack([row.roll(anchor, dims=1) for row, anchor in rows])

    return rolled


@dataclass(frozen=True, eq=False)
class _Window:
    """A window over one sound."""

    seen: Tensor  # frames of the sound that the network sees, (length,)
    frames: Tensor  # those of them whose prediction comes from this window
    places: Tensor  # their places in the window
    conditions: tuple[int, ...]  # that have a share in these frames


def in_windows(
    predict: Predict, windows: Windows, shares: Tensor, most_rows: int, anchor: int = 0
) -> Callable[[Tensor, float], Tensor]:
    """Several predictions of the noise in one sound, each mixed from those by some conditions.

    Args:
        predict: predicts the noise in windows.
        windows: where they lie.
        shares: (outputs, conditions, frames). Output o at frame f is the sum over conditions c of
            `shares[o, c, f]` times the prediction by c. A window leaves out conditions without a share in it.
        most_rows: predictions that `predict` may compute in one call.
        anchor: the frame of a loop at which its first window starts.

    Returns:
        A function of x (1, channels, time, mel) and the time; it returns (outputs, channels, time, mel).
    """
    batches = list(_batches(_placed(windows, shares, anchor), most_rows))

    def predict_all(x: Tensor, t: float) -> Tensor:
        found = x.new_zeros(len(shares), *x.shape[1:])
        for batch in batches:
            seen = torch.cat([x[:, :, window.seen] for window in batch])  # (windows, channels, length, mel)
            each = max(most_rows // len(batch), 1)  # conditions in a call
            for first in range(0, len(batch[0].conditions), each):
                asked = [window.conditions[first : first + each] for window in batch]
                blocks = tuple(condition for block in zip(*asked, strict=True) for condition in block)
                predicted = predict(seen, t, blocks).unflatten(0, (-1, len(batch)))
                for row, window in enumerate(batch):
                    for eps, condition in zip(predicted[:, row], asked[row], strict=True):
                        share = shares[:, condition, window.frames][:, None, :, None]
                        found[:, :, window.frames] += share * eps[:, window.places]
        return found

    return predict_all


def _placed(windows: Windows, shares: Tensor, anchor: int) -> list[_Window]:
    def indices(of: list[int]) -> Tensor:
        return torch.tensor(of, device=shares.device)

    placed = []
    for start, (frames, places) in zip(windows.starts, windows.turns(), strict=True):
        seen = [(anchor + start + place) % windows.frames for place in range(windows.length)]
        own = indices([(anchor + frame) % windows.frames for frame in frames])
        active = (shares[:, :, own] != 0).any(dim=2).any(dim=0).nonzero().flatten().tolist()
        placed.append(_Window(indices(seen), own, indices(places), tuple(active)))
    return placed


def _batches(windows: list[_Window], most_rows: int) -> Iterator[list[_Window]]:
    """Windows with as many conditions each, so that a batch fills whole blocks."""

    def count(window: _Window) -> int:
        return len(window.conditions)

    for conditions, group in groupby(sorted(windows, key=count), key=count):
        alike, size = list(group), max(most_rows // conditions, 1)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))
