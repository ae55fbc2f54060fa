"""What the denoiser is told about a prompt, as plain tensors: kept, joined, mixed, weighed, saved.

`encoding` makes it.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audioldm2.errors import some
from audioldm2.files import atomic_write

TENSORS = (
    "gpt2_context",
    "text_context",
    "t5_mask",
    "clap_vector",
)  # of a Conditioning, here and in its file
NEGATIVE = "negative."  # before the names of the negative part's, in the file


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """A batch of encoded prompts; `negative` holds what guidance leads away from, row by row.

    It has what the model's denoiser hears, and None for the rest: the AudioLDM 2 models hear both contexts,
    the 16 kHz T5 model that of T5, the 48 kHz model CLAP's vector.
    Raises ValueError unless the tensors fit each other.
    """

    gpt2_context: Tensor | None  # (batch, new_vectors, gpt2_dim)
    text_context: Tensor | None  # (batch, seq, t5_dim)
    t5_mask: Tensor | None  # (batch, seq) bool, True = real token
    negative: "Conditioning | None" = None
    clap_vector: Tensor | None = None  # (batch, clap_dim)

    def __post_init__(self) -> None:
        found = self.tensors
        seen = ", ".join(f"{name} is {each.dtype} {tuple(each.shape)}" for name, each in found.items())
        if not found or (self.text_context is None) != (self.t5_mask is None):
            raise ValueError(
                f"{seen or 'nothing is given'}; needed are a context or a vector, and T5's with its mask."
            )
        dims = {"gpt2_context": 3, "text_context": 3, "t5_mask": 2, "clap_vector": 2}
        if any(each.ndim != dims[name] for name, each in found.items()) or (
            self.t5_mask is not None and self.text_context.shape[:2] != self.t5_mask.shape
        ):
            raise ValueError(
                f"{seen}; needed are contexts (batch, vectors, dim), (batch, seq, dim) with a mask (batch, "
                "seq), and a vector (batch, dim)."
            )
        if len({len(each) for each in found.values()}) > 1:
            raise ValueError(f"{seen}; all need the same batch.")
        if any((name == "t5_mask") == each.is_floating_point() for name, each in found.items()) or (
            self.t5_mask is not None and self.t5_mask.dtype != torch.bool
        ):
            raise ValueError(f"{seen}; needed are contexts and a vector of floats, and a mask of bool.")
        # Elsewhere values are not read back, which would wait for the device: what is there was made by us.
        here = self.t5_mask is not None and self.t5_mask.device.type == "cpu"
        if here and not self.t5_mask.any(dim=1).all():
            raise ValueError("t5_mask has a row without a real token (True); each has to have one.")
        against = self.negative
        if against is not None and (len(against) != len(self) or against.negative is not None):
            raise ValueError(
                f"negative has {len(against)} rows for {len(self)}; it has to have as many, "
                "and no negative part of its own."
            )
        if against is not None and against.tensors.keys() != found.keys():
            raise ValueError(
                f"negative has {some(against.tensors)}, not {some(found)}; it has to have the same."
            )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is there of TENSORS, by name, without the negative part."""
        return {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}

    @property
    def dtype(self) -> torch.dtype:
        """Of its contexts and vectors."""
        return next(each.dtype for each in self.tensors.values() if each.is_floating_point())

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in self.tensors.items())
        return f"<Conditioning: {shapes}, {'with' if self.negative else 'no'} negative part>"

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: int | slice) -> "Conditioning":
        """Some of the rows, as a batch; of one row too."""
        return self._each(lambda tensor: tensor[rows if isinstance(rows, slice) else [rows]])

    def repeat(self, times: int) -> "Conditioning":
        """Every row `times` times, in place: a a b b for a b."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditioning":
        """On a device, the contexts in a dtype."""
        return self._each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        changed = {name: change(each) for name, each in self.tensors.items()}
        return replace(
            self, **changed, negative=None if self.negative is None else self.negative._each(change)
        )

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Join batches, the T5 contexts padded to the longest; `negative` is joined where all have one."""
        negatives = [part.negative for part in parts]
        rows = [part._t5_padded(max(part._t5_length for part in parts)).tensors for part in parts]
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return Conditioning(
            *(joined.get(name) for name in TENSORS[:3]),
            negative=None if None in negatives else Conditioning.cat(negatives),
            clap_vector=joined.get("clap_vector"),
        )

    @property
    def _t5_length(self) -> int:
        return 0 if self.t5_mask is None else self.t5_mask.shape[1]

    def _t5_padded(self, seq: int) -> "Conditioning":
        """The T5 context filled up to `seq` with what the mask hides; the negative part as it is."""
        if self.t5_mask is None:
            return self
        more = seq - self._t5_length
        return replace(
            self,
            text_context=F.pad(self.text_context, (0, 0, 0, more)),
            t5_mask=F.pad(self.t5_mask, (0, more)),
        )

    def mix(self, other: "Conditioning", amount: float) -> "Conditioning":
        """What lies between two prompts, row by row: at 0 this one, at 1 the other, both exactly.

        GPT-2's vectors are interpolated linearly; CLAP's too, and brought back to length 1. So are T5's, the
        first with the first and the last with the last: those of the shorter prompt are repeated evenly until
        there are as many. The denoiser's attention has no order and shares itself among equals, so it hardly
        notices; zeros in their place would draw it away from the shorter prompt, however little the other
        counts. Negative parts are mixed likewise.

        amount: 0 to 1. Returns tensors where this one's are, in their dtype.
        Raises ValueError for two of different batch or width, or of which only one has a negative part.
        """
        if not isinstance(amount, Real) or not 0 <= amount <= 1:
            raise ValueError(f"amount is {amount!r}; it has to be from 0 (this prompt) to 1 (the other).")
        if (self.negative is None) != (other.negative is None):
            raise ValueError(
                "only one of the two has a negative part; encode both with guided=True, or neither."
            )
        ours, theirs = (each._sizes for each in (self, other))
        if ours != theirs:
            raise ValueError(
                f"the two are {ours} and {theirs}; "
                "only as many prompts, encoded by the same model, can be mixed."
            )
        mixed = self._towards(other, amount)
        if self.negative is None:
            return mixed
        return replace(mixed, negative=self.negative._towards(other.negative, amount))

    def weighted(self, factor: float) -> "Conditioning":
        """The prompts made to differ more (factor above 1) or less (below) from their negative prompts.

        The way by `mix` from the negative part to the prompt, and beyond: at 0 the prompt is the negative
        one, at 1 itself, both exactly. The negative part stays; where none was given it is the empty
        prompt's. The guidance scale amplifies what the denoiser answers, this what it is told.

        factor: 0 or more. Raises ValueError for another, and without a negative part.
        """
        if not isinstance(factor, Real) or not 0 <= factor < math.inf:
            raise ValueError(f"factor is {factor!r}; it has to be a finite number of at least 0.")
        if self.negative is None:
            raise ValueError(
                "there is no negative part to weigh against; encode the prompt with guided=True."
            )
        return replace(self.negative._towards(self, factor), negative=self.negative)

    @property
    def _sizes(self) -> str:
        """All but the number of T5 tokens."""
        sizes = {name: list(each.shape) for name, each in self.tensors.items() if name != "t5_mask"}
        if "text_context" in sizes:
            del sizes["text_context"][1]
        return ", ".join(f"{name} {tuple(size)}" for name, size in sizes.items())

    def _towards(self, other: "Conditioning", amount: float) -> "Conditioning":
        """this + amount * (other - this), without negative parts."""
        this = replace(self, negative=None)
        device = next(iter(this.tensors.values())).device
        other = replace(other, negative=None).to(device, this.dtype)
        if amount in (0, 1):
            return other if amount else this
        return Conditioning.cat([a._row_towards(b, amount) for a, b in zip(this, other, strict=True)])

    def _row_towards(self, other: "Conditioning", amount: float) -> "Conditioning":
        mixed: dict[str, Tensor] = {}
        if self.gpt2_context is not None:
            mixed["gpt2_context"] = _interpolate(self.gpt2_context, other.gpt2_context, amount)
        if self.t5_mask is not None:
            tokens = max(int(each.t5_mask.sum()) for each in (self, other))
            mixed["text_context"] = _interpolate(
                self._t5_repeated(tokens), other._t5_repeated(tokens), amount
            )
            mixed["t5_mask"] = self.t5_mask.new_ones(1, tokens)
        if self.clap_vector is not None:  # it has length 1, as CLAP's vectors have; a sum has not
            vector = _interpolate(self.clap_vector, other.clap_vector, amount)
            mixed["clap_vector"] = F.normalize(vector, dim=-1)
        return replace(self, **mixed)

    def _t5_repeated(self, tokens: int) -> Tensor:
        """The real T5 vectors of the only row, in order, each as often as the others or once more."""
        vectors = self.text_context[self.t5_mask]  # (real tokens, t5_dim)
        place = torch.arange(tokens, device=vectors.device) * len(vectors) // tokens
        return vectors[place][None]  # (1, tokens, t5_dim)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError from the system as it comes."""
        tensors = self.tensors
        if self.negative is not None:
            tensors |= {NEGATIVE + name: each for name, each in self.negative.tensors.items()}
        # Copies, because the format refuses tensors that share memory.
        tensors = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))

    @staticmethod
    def load(path: str | os.PathLike) -> "Conditioning":
        """What `save` has written, on the CPU.

        Raises OSError when the file cannot be opened, ValueError when it is of another kind or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                odd = sorted(names - {*TENSORS, *(NEGATIVE + name for name in TENSORS)})
                if odd:
                    raise ValueError(f"it should not have {some(odd)}")
                found = {name: file.get_tensor(name).clone() for name in names}  # the file may change later

            def part(prefix: str, **more: Any) -> Conditioning:
                return Conditioning(**{name: found.get(prefix + name) for name in TENSORS}, **more)

            has_negative = any(name.startswith(NEGATIVE) for name in names)
            return part("", negative=part(NEGATIVE) if has_negative else None)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a saved conditioning: {error}") from error


def _interpolate(a: Tensor, b: Tensor, amount: float) -> Tensor:
    return torch.lerp(a.float(), b.float(), float(amount)).to(a.dtype)
