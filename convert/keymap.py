"""Rows, not code: how the keys of a checkpoint become ours, and how ours become the checkpoint's again.

A `Row` maps a module of the source, with everything below it, to a module of ours. `*` stands for one number
in the path (mostly a layer's) and is carried over in order. The most specific row wins, so a general row may
stand beside its exceptions. Nothing happens silently: a key that no row matches, a row that matches no key,
two sources for one target, and any difference from what the networks expect, are errors that name the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from audioldm2.errors import WeightsError, some


@dataclass(frozen=True)
class Transform:
    """A change of a tensor's layout, and the way back where there is one."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None = None


def _transposed(w: Tensor) -> Tensor:
    return w.t() if w.ndim == 2 else w


def _flat(w: Tensor) -> Tensor:
    return w.flatten(1) if w.ndim > 2 else w


# What is not of the shape that a transform is for passes: a bias, or a fault that comparing shapes will tell.
transpose = Transform("transposed", _transposed, _transposed)
pointwise = Transform("1x1 convolution to linear", _flat, lambda w: w[:, :, None, None] if w.ndim == 2 else w)
once_pointwise = Transform("1x1 convolution to linear", _flat, lambda w: w)  # newer sources have it linear


def share(index: int, count: int) -> Transform:
    """One of so many equal shares, stacked in the source."""
    return Transform(
        "cut from a stack", lambda w: w.chunk(count)[index] if w.ndim and len(w) % count == 0 else w
    )


def row(index: int) -> Transform:
    """One row of a table in the source."""
    return Transform("row of a table", lambda w: w[index] if w.ndim == 2 and index < len(w) else w)


@dataclass(frozen=True)
class Row:
    """source: dotted path of a module or tensor there; target: its path here, None to drop it on purpose."""

    source: str
    target: str | None
    transform: Transform | None = None
    note: str = ""  # why it is dropped or changed
    optional: bool = False  # some checkpoints of the same kind lack it, or call it otherwise


@dataclass(frozen=True)
class Move:
    """One tensor's way: its key in the source, its key here (None = dropped), and the row that says so."""

    source: str
    target: str | None
    row: Row


def nest(source: str, target: str, rows: Iterable[Row]) -> list[Row]:
    """The same rows one floor down: under the module `source` there and `target` here."""
    return [
        replace(
            row,
            source=_join(source, row.source),
            target=None if row.target is None else _join(target, row.target),
        )
        for row in rows
    ]


def plan(keys: Iterable[str], rows: list[Row], where: str = "the checkpoint") -> list[Move]:
    """Where every key goes.

    Raises WeightsError on a key without a row, a row without a key (unless optional), two keys for a target.
    """
    table: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        table.setdefault(tuple(row.source.split(".")), []).append(row)

    moves, unmatched, used, origin = [], [], set(), {}
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
                    "Remove the one that is not meant."
                )
            origin[target] = key
            moves.append(Move(key, target, row))

    if unmatched:
        raise WeightsError(
            f"{where}: {some(unmatched)} not part of this architecture. "
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
            f"{where}: nothing found for {some(idle)} expected there. "
            "Is the file complete, and does its config.json belong to it?"
        )
    return moves


def convert(source: Mapping[str, Tensor], moves: Iterable[Move]) -> dict[str, Tensor]:
    """The tensors under our keys, transformed as the rows say; views wherever a view will do."""
    return {
        move.target: source[move.source]
        if move.row.transform is None
        else move.row.transform.forward(source[move.source])
        for move in moves
        if move.target is not None
    }


def reverse(rows: list[Row]) -> list[Row]:
    """The rows read backwards: from our keys to the source's. Of several sources the first counts.

    Raises ValueError where a transform has no way back.
    """
    backwards: dict[str, Row] = {}
    for row in rows:
        if row.target is None or row.target in backwards:
            continue
        change = row.transform
        if change is not None:
            if change.backward is None:
                raise ValueError(f"{row.target} is '{change.name}' of {row.source}, which has no way back.")
            change = Transform(change.name, change.backward, change.forward)
        backwards[row.target] = Row(row.target, row.source, change, row.note, row.optional)
    return list(backwards.values())


def _most_specific(key: str, table: Mapping[tuple[str, ...], list[Row]]) -> tuple[str, ...] | None:
    """The longest pattern in the table that is the key or a module above it; literal numbers before `*`."""
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
