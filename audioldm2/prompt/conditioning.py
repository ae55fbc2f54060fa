"""An encoded prompt as plain tensors: the denoiser's conditioning, to keep, join, mix, weight and save.

`encode` computes it from texts.

The file is a little long because all that can be done with a conditioning is a method of its one class.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError, require_number, some
from audioldm2.prompt.conditioning_files import (
    NEGATIVE,
    TENSORS,
    not_a_conditioning,
    read_tensors,
    write_tensors,
)


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """A batch of encoded prompts; `negative` is what guidance leads away from, row by row.

    It contains the tensors that the model's denoiser attends to, and None for the others. The AudioLDM 2
    models use both contexts, the 16 kHz T5 model the text context alone, the 48 kHz model CLAP's vector.

    Raises:
        ArgumentError: the tensors do not fit each other.
    """

    gpt2_context: Tensor | None  # (batch, new_vectors, gpt2_dim)
    text_context: Tensor | None  # (batch, seq, text_dim), one vector per token
    t5_mask: Tensor | None  # (batch, seq) bool, True = real token
    negative: "Conditioning | None" = None
    clap_vector: Tensor | None = None  # (batch, clap_dim)

    def __post_init__(self) -> None:
        found = self.tensors
        for name, tensor in found.items():
            if not isinstance(tensor, Tensor):
                raise ArgumentError(
                    name, tensor, "be a tensor or None", given=f"is a {type(tensor).__name__}"
                )
        if not found or (self.text_context is None) != (self.t5_mask is None):
            raise self._misfit("have a context or a vector, and text_context with t5_mask")
        dims = {"gpt2_context": 3, "text_context": 3, "t5_mask": 2, "clap_vector": 2}
        if any(tensor.ndim != dims[name] for name, tensor in found.items()) or (
            "t5_mask" in found and found["text_context"].shape[:2] != found["t5_mask"].shape
        ):
            raise self._misfit(
                "have gpt2_context (batch, vectors, dim), text_context (batch, seq, dim), "
                "t5_mask (batch, seq) and clap_vector (batch, dim)"
            )
        if len({len(tensor) for tensor in found.values()}) > 1:
            raise self._misfit("have the same batch everywhere")
        if any((name == "t5_mask") == tensor.is_floating_point() for name, tensor in found.items()) or (
            self.t5_mask is not None and self.t5_mask.dtype != torch.bool
        ):
            raise self._misfit("have floats in contexts and vectors, and bools in t5_mask")
        # Only on the CPU: reading values from an accelerator waits for it, and those come from our own code.
        mask = self.t5_mask
        if mask is not None and mask.device.type == "cpu" and not mask.any(dim=1).all():
            given = "has a row without a real token (True)"
            raise ArgumentError("t5_mask", mask, "have one in each row", given=given)
        if self.negative is not None:
            self._check_negative(self.negative)

    def _check_negative(self, negative: "Conditioning") -> None:
        def reject(given: str, allowed: str) -> ArgumentError:
            return ArgumentError("negative", negative, allowed, given=given)

        if not isinstance(negative, Conditioning):
            raise reject(f"is a {type(negative).__name__}", "be a Conditioning or None")
        if len(negative) != len(self):
            raise reject(f"has {len(negative)} rows for {len(self)} prompts", "have as many rows as prompts")
        if negative.negative is not None:
            raise reject("has a negative part", "have none of its own")
        if negative.tensors.keys() != self.tensors.keys():
            raise reject(f"has {some(list(negative.tensors))}", f"have {some(list(self.tensors))}")

    def _misfit(self, allowed: str) -> ArgumentError:
        shapes = ", ".join(f"{name} {each.dtype} {tuple(each.shape)}" for name, each in self.tensors.items())
        return ArgumentError("conditioning", self, allowed, given=f"has {shapes or 'no tensors'}")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of TENSORS that are not None, by name, without the negative part."""
        return {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of contexts and vectors."""
        return next(tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point())

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"<Conditioning: {shapes}, {'with' if self.negative else 'no'} negative part>"

    def __len__(self) -> int:
        """The number of prompts."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: int | slice | list[int]) -> "Conditioning":
        """Select rows, as a batch; an index selects a batch of one."""
        return self._map(lambda tensor: tensor[rows if isinstance(rows, (slice, list)) else [rows]])

    def __iter__(self) -> Iterator["Conditioning"]:
        """The rows, each a batch of one."""
        return (self[row] for row in range(len(self)))

    def repeat(self, times: int) -> "Conditioning":
        """Repeat each row `times` times in a row: a a b b from a b."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditioning":
        """Move all tensors to a device, and cast contexts and vectors to a dtype."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply `change` to every tensor, in the negative part too."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors.items()}
        if self.negative is not None:
            changed["negative"] = self.negative._map(change)
        return replace(self, **changed)

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Join batches, padding text contexts to the longest. `negative` is joined if all parts have one."""
        negatives = [part.negative for part in parts if part.negative is not None]
        longest = max(part._text_length for part in parts)
        rows = [part._pad_text(longest).tensors for part in parts]
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        negative = Conditioning.cat(negatives) if len(negatives) == len(parts) else None
        return _of_tensors(joined, negative=negative)

    @property
    def _text_length(self) -> int:
        return 0 if self.t5_mask is None else self.t5_mask.shape[1]

    def _pad_text(self, seq: int) -> "Conditioning":
        """Pad the text context to `seq` with zeros that the mask hides; leave the negative part alone."""
        if self.text_context is None or self.t5_mask is None:
            return self
        more = seq - self._text_length
        return replace(
            self,
            text_context=F.pad(self.text_context, (0, 0, 0, more)),
            t5_mask=F.pad(self.t5_mask, (0, more)),
        )

    def mix(self, other: "Conditioning", amount: float) -> "Conditioning":
        """Interpolate between two prompts, row by row: 0 gives this one, 1 the other, both exactly.

        GPT-2's vectors are interpolated linearly; so are CLAP's, which are then scaled back to length 1. Text
        vectors are interpolated first with first and last with last: those of the shorter prompt are repeated
        evenly until there are as many. Attention ignores order and divides its weight among equal vectors, so
        the denoiser hardly notices the repetition; zero padding would draw attention away from the shorter
        prompt however small the other's share. Negative parts are mixed the same way.

        Args:
            other:  as many prompts, encoded by the same model.
            amount: 0 to 1.

        Returns:
            A batch on this one's device, in its dtype.

        Raises:
            ArgumentError: the two differ in batch or widths, or only one has a negative part.
        """
        amount = require_number("amount", amount, 0, 1)
        if not isinstance(other, Conditioning):
            given = f"is a {type(other).__name__}"
            raise ArgumentError("other", other, "be a Conditioning", given=given)
        if (self.negative is None) != (other.negative is None):
            given = "has no negative part" if other.negative is None else "has a negative part"
            allowed = "match this conditioning: encode both with guided=True, or neither"
            raise ArgumentError("other", other, allowed, given=given)
        if self._shapes != other._shapes:
            allowed = f"have {self._shapes}: as many prompts, encoded by the same model"
            raise ArgumentError("other", other, allowed, given=f"has {other._shapes}")
        mixed = self._move_towards(other, amount)
        if self.negative is None or other.negative is None:
            return mixed
        return replace(mixed, negative=self.negative._move_towards(other.negative, amount))

    def weighted(self, factor: float) -> "Conditioning":
        """Move the prompts away from their negative prompts (factor above 1) or towards them (below 1).

        This extrapolates the path of `mix` from the negative part to the prompt: 0 gives the negative prompt,
        1 the prompt itself, both exactly. The negative part stays; if none was given it is the empty
        prompt's. The guidance scale amplifies the denoiser's output, this factor its input.

        Args:
            factor: a finite number of at least 0.

        Raises:
            ArgumentError: another factor, or there is no negative part.
        """
        factor = require_number("factor", factor, 0)
        if self.negative is None:
            allowed = "have one to be weighted against: encode the prompt with guided=True"
            raise ArgumentError("conditioning", self, allowed, given="has no negative part")
        return replace(self.negative._move_towards(self, factor), negative=self.negative)

    @property
    def _shapes(self) -> str:
        """Batch and widths, without the number of text tokens."""
        sizes = {name: list(tensor.shape) for name, tensor in self.tensors.items() if name != "t5_mask"}
        if "text_context" in sizes:
            del sizes["text_context"][1]
        return ", ".join(f"{name} {tuple(size)}" for name, size in sizes.items())

    def _move_towards(self, other: "Conditioning", amount: float) -> "Conditioning":
        """self + amount * (other - self), without negative parts."""
        start = replace(self, negative=None)
        device = next(iter(start.tensors.values())).device
        end = replace(other, negative=None).to(device, start.dtype)
        if amount in (0, 1):
            return end if amount else start
        return Conditioning.cat([a._move_row_towards(b, amount) for a, b in zip(start, end, strict=True)])

    def _move_row_towards(self, other: "Conditioning", amount: float) -> "Conditioning":
        a, b = self.tensors, other.tensors
        moved: dict[str, Any] = {}
        if "gpt2_context" in a:
            moved["gpt2_context"] = _interpolate(a["gpt2_context"], b["gpt2_context"], amount)
        if "t5_mask" in a:
            tokens = max(int(row["t5_mask"].sum()) for row in (a, b))
            moved["text_context"] = _interpolate(
                self._spread_tokens(tokens), other._spread_tokens(tokens), amount
            )
            moved["t5_mask"] = a["t5_mask"].new_ones(1, tokens)
        if "clap_vector" in a:  # CLAP's vectors have length 1; their sum does not
            vector = _interpolate(a["clap_vector"], b["clap_vector"], amount)
            moved["clap_vector"] = F.normalize(vector, dim=-1)
        return replace(self, **moved)

    def _spread_tokens(self, tokens: int) -> Tensor:
        """The real text vectors of a single row, in order, each repeated equally often, give or take one."""
        vectors = self.tensors["text_context"][self.tensors["t5_mask"]]  # (real tokens, text_dim)
        place = torch.arange(tokens, device=vectors.device) * len(vectors) // tokens
        return vectors[place][None]  # (1, tokens, text_dim)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, completely or not at all.

        Raises:
            OSError: from the system, unchanged.
        """
        tensors = self.tensors
        if self.negative is not None:
            tensors |= {NEGATIVE + name: tensor for name, tensor in self.negative.tensors.items()}
        write_tensors(path, tensors)

    @staticmethod
    def load(path: str | os.PathLike) -> "Conditioning":
        """Read a file that `save` wrote, in this version or in 0.1.

        Returns:
            The conditioning, on the CPU.

        Raises:
            ArgumentError: the file is damaged or of another kind.
            OSError: from the system, unchanged.
        """
        found = read_tensors(path)
        try:
            negative = None
            if any(name.startswith(NEGATIVE) for name in found):
                negative = _of_tensors({name: found.get(NEGATIVE + name) for name in TENSORS})
            return _of_tensors(found, negative)
        except ArgumentError as error:
            raise not_a_conditioning(path, str(error)) from error


def _of_tensors(tensors: Mapping[str, Tensor | None], negative: Conditioning | None = None) -> Conditioning:
    """The conditioning of tensors by name; those that are absent are None."""
    fields: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
    return Conditioning(**fields, negative=negative)


def _interpolate(a: Tensor, b: Tensor, amount: float) -> Tensor:
    return torch.lerp(a.float(), b.float(), amount).to(a.dtype)
