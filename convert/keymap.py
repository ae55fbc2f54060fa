"""Rows, not code: how the keys of a checkpoint become ours, and how ours become the checkpoint's again.

A `Row` maps a module of the source, with everything below it, to a module of ours. `*` stands for one number
in the path (usually a layer's) and is carried over, in order. The most specific row wins, so a general row
may stand beside its exceptions. A key that no row matches, a row that matches no key, two sources for one
target, and any difference from what the networks expect are errors that name the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from torch import Tensor

from audioldm2.errors import WeightsError, some


@dataclass(frozen=True)
class Transform:
    """A change of a tensor's layout, and the inverse if there is one.

    Both are module-level functions or partials of one, so that an open checkpoint can be pickled. A tensor of
    a shape that the change is not for passes unchanged: it is a bias, or the comparison of shapes reports it.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None = None


def _transposed(w: Tensor) -> Tensor:
    return w.t() if w.ndim == 2 else w


def _flat(w: Tensor) -> Tensor:
    return w.flatten(1) if w.ndim > 2 else w


def _as_image(w: Tensor) -> Tensor:
    return w[:, :, None, None] if w.ndim == 2 else w


def _unchanged(w: Tensor) -> Tensor:
    return w


def _share(w: Tensor, *, index: int, count: int) -> Tensor:
    return w.chunk(count)[index] if w.ndim and len(w) % count == 0 else w


def _row(w: Tensor, *, index: int) -> Tensor:
    return w[index] if w.ndim == 2 and index < len(w) else w


transpose = Transform("transposed", _transposed, _transposed)
pointwise = Transform("1x1 convolution to linear", _flat, _as_image)
once_pointwise = Transform("1x1 convolution to linear", _flat, _unchanged)  # newer sources store it linear


def share(index: int, count: int) -> Transform:
    """Take one of `count` equal shares that the source stacks in one tensor."""
    return Transform("cut from a stack", partial(_share, index=index, count=count))


def row(index: int) -> Transform:
    """Take one row of a table in the source."""
    return Transform("row of a table", partial(_row, index=index))


@dataclass(frozen=True)
class Row:
    """Where a module or tensor of the source goes."""

    source: str  # its dotted path there
    target: str | None  # its path here; None drops it on purpose
    transform: Transform | None = None
    note: str = ""  # why it is dropped or changed
    optional: bool = False  # some checkpoints of the same kind lack it, or name it differently


@dataclass(frozen=True)
class Move:
    """Where one tensor goes."""

    source: str  # its key there
    target: str | None  # its key here; None if it is dropped
    row: Row  # which says so


def nest(source: str, target: str, rows: Iterable[Row]) -> list[Row]:
    """Return the same rows one level deeper: below the module `source` there and `target` here."""
    return [
        replace(
            row,
            source=_join(source, row.source),
            target=None if row.target is None else _join(target, row.target),
        )
        for row in rows
    ]


def plan(keys: Iterable[str], rows: list[Row], where: str = "the checkpoint") -> list[Move]:
    """Return where every key goes.

    Args:
        keys: the source's keys.
        rows: the rows for all of them.
        where: the file or folder with the keys, which errors name.

    Raises:
        WeightsError: a key has no row, a row that is not optional has no key, or two keys share a target.
    """
    table: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        table.setdefault(tuple(row.source.split(".")), []).append(row)

    moves, unmatched, used = [], [], set()
    origin: dict[str | None, str] = {}
    for key in keys:
        pattern = _most_specific(key, table)
        if pattern is None:
            unmatched.append(key)
            continue
        used.add(pattern)
        for row in table[pattern]:
            target = None if row.target is None else _carry_over(key, pattern, row.target)
            if target is not None and target in origin:
                raise WeightsError(
                    f"{where}: two tensors would become '{target}': '{origin[target]}' and '{key}'. "
                    "Remove the wrong one."
                )
            origin[target] = key
            moves.append(Move(key, target, row))

    if unmatched:
        raise WeightsError(
            f"{where} holds {some(unmatched)}, not part of this architecture. "
            "Is this another kind of checkpoint, or does its config.json belong to another one?"
        )
    idle = [
        row.source
        for pattern, group in table.items()
        for row in group
        if pattern not in used and not row.optional
    ]
    if idle:
        raise WeightsError(
            f"{where} lacks {some(idle)}. Is the file complete, and does its config.json belong to it?"
        )
    return moves


def convert(source: Mapping[str, Tensor], moves: Iterable[Move]) -> dict[str, Tensor]:
    """Return the tensors under our keys, transformed as the rows say; views wherever a view suffices."""
    return {
        move.target: source[move.source]
        if move.row.transform is None
        else move.row.transform.forward(source[move.source])
        for move in moves
        if move.target is not None
    }


def reverse(rows: list[Row]) -> list[Row]:
    """Return the rows read backwards, from our keys to the source's; of several sources the first counts.

    Raises:
        ValueError: a transform has no inverse.
    """
    backwards: dict[str, Row] = {}
    for row in rows:
        if row.target is None or row.target in backwards:
            continue
        change = row.transform
        if change is not None:
            if change.backward is None:
                raise ValueError(f"{row.target} is '{change.name}' of {row.source}, which has no inverse.")
            change = Transform(change.name, change.backward, change.forward)
        backwards[row.target] = Row(row.target, row.source, change, row.note, row.optional)
    return list(backwards.values())


def _most_specific(key: str, table: Mapping[tuple[str, ...], list[Row]]) -> tuple[str, ...] | None:
    """Return the longest pattern in the table that is the key or a module above it, numbers before `*`."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        choices = [(part, "*") if part.isdecimal() else (part,) for part in parts[:length]]
        for pattern in product(*choices):
            if pattern in table:
                return pattern
    return None


def _carry_over(key: str, pattern: tuple[str, ...], target: str) -> str:
    parts = key.split(".")
    numbers = iter([part for part, shape in zip(parts, pattern, strict=False) if shape == "*"])
    filled = [next(numbers) if part == "*" else part for part in target.split(".")]
    return _join(*filled, *parts[len(pattern) :])


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
