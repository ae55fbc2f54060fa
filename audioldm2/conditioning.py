"""What the denoiser is told about a prompt, as plain tensors, and how a prompt becomes that.

CLAP reads the whole prompt as one vector, T5 reads it token by token; both, projected, are what GPT-2
continues by eight vectors. The denoiser attends to GPT-2's vectors and to T5's.

Trap: what GPT-2 makes depends on the padded length (see `models.projection`). Every prompt is therefore
encoded at its own length, so that it gives the same sound alone and in a batch; its negative prompt is padded
to the prompt's length, as in the reference, but never cut to it.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audioldm2.errors import some
from audioldm2.files import written_whole
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.text import ClapTokenizer, T5Tokenizer, Tokens, pad
from audioldm2.weights import Networks

TENSORS = ("gpt2_context", "t5_context", "t5_mask")  # of a Conditioning, here and in its file
NEGATIVE = "negative."  # before the names of the negative part's, in the file


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """A batch of encoded prompts; `negative` holds what guidance leads away from, row by row.

    Raises ValueError unless the tensors fit each other.
    """

    gpt2_context: Tensor  # (batch, new_vectors, gpt2_dim)
    t5_context: Tensor  # (batch, seq, t5_dim)
    t5_mask: Tensor  # (batch, seq) bool, True = real token
    negative: "Conditioning | None" = None

    def __post_init__(self) -> None:
        gpt2, t5, mask = (getattr(self, name) for name in TENSORS)
        seen = ", ".join(
            f"{name} is {each.dtype} {tuple(each.shape)}"
            for name, each in zip(TENSORS, (gpt2, t5, mask), strict=True)
        )
        if (gpt2.ndim, t5.ndim, mask.ndim) != (3, 3, 2) or t5.shape[:2] != mask.shape or len(gpt2) != len(t5):
            raise ValueError(f"{seen}; needed are (batch, vectors, dim), (batch, seq, dim) and (batch, seq).")
        if not (gpt2.is_floating_point() and t5.is_floating_point() and mask.dtype == torch.bool):
            raise ValueError(f"{seen}; needed are two contexts of floats and a mask of bool.")
        if not mask.any(dim=1).all():
            raise ValueError("t5_mask has a row without a real token (True); each has to have one.")
        against = self.negative
        if against is not None and (len(against) != len(self) or against.negative is not None):
            raise ValueError(
                f"negative has {len(against)} rows for {len(self)}; it has to have as many, "
                "and no negative part of its own."
            )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in TENSORS)
        return f"<Conditioning: {shapes}, {'with' if self.negative else 'no'} negative part>"

    def __len__(self) -> int:
        return self.gpt2_context.shape[0]

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
        return Conditioning(
            change(self.gpt2_context),
            change(self.t5_context),
            change(self.t5_mask),
            None if self.negative is None else self.negative._each(change),
        )

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Join batches, the T5 contexts padded to the longest; `negative` is joined where all have one."""
        seq = max(part.t5_mask.shape[1] for part in parts)
        negatives = [part.negative for part in parts]
        return Conditioning(
            torch.cat([part.gpt2_context for part in parts]),
            torch.cat([F.pad(part.t5_context, (0, 0, 0, seq - part.t5_context.shape[1])) for part in parts]),
            torch.cat([F.pad(part.t5_mask, (0, seq - part.t5_mask.shape[1])) for part in parts]),
            None if None in negatives else Conditioning.cat(negatives),
        )

    def mix(self, other: "Conditioning", amount: float) -> "Conditioning":
        """What lies between two prompts, row by row: at 0 this one, at 1 the other, both exactly.

        GPT-2's vectors are interpolated linearly. So are T5's, the first with the first and the last with the
        last: those of the shorter prompt are repeated evenly until there are as many. The denoiser's
        attention has no order and shares itself among equals, so it hardly notices; zeros in their place
        would draw it away from the shorter prompt, however little the other counts. Negative parts are mixed
        likewise.

        amount: 0 to 1. Returns tensors where this one's are, in their dtype.
        Raises ValueError for two of different batch or width, or of which only one has a negative part.
        """
        if not isinstance(amount, Real) or not 0 <= amount <= 1:
            raise ValueError(f"amount is {amount!r}; it has to be from 0 (this prompt) to 1 (the other).")
        if (self.negative is None) != (other.negative is None):
            raise ValueError(
                "only one of the two has a negative part; encode both with guided=True, or neither."
            )
        ours, theirs = (
            (len(each), *each.gpt2_context.shape[1:], each.t5_context.shape[2]) for each in (self, other)
        )
        if ours != theirs:
            raise ValueError(
                f"(rows, vectors, gpt2_dim, t5_dim) are {ours} and {theirs}; "
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

    def _towards(self, other: "Conditioning", amount: float) -> "Conditioning":
        """this + amount * (other - this), without negative parts."""
        this = replace(self, negative=None)
        other = replace(other, negative=None).to(this.t5_context.device, this.t5_context.dtype)
        if amount in (0, 1):
            return other if amount else this
        rows = []
        for a, b in zip(this, other, strict=True):
            tokens = max(int(a.t5_mask.sum()), int(b.t5_mask.sum()))
            gpt2 = _interpolate(a.gpt2_context, b.gpt2_context, amount)
            t5 = _interpolate(a._t5_repeated(tokens), b._t5_repeated(tokens), amount)
            rows.append(Conditioning(gpt2, t5, t5.new_ones(1, tokens, dtype=torch.bool)))
        return Conditioning.cat(rows)

    def _t5_repeated(self, tokens: int) -> Tensor:
        """The real T5 vectors of the only row, in order, each as often as the others or once more."""
        vectors = self.t5_context[self.t5_mask]  # (real tokens, t5_dim)
        place = torch.arange(tokens, device=vectors.device) * len(vectors) // tokens
        return vectors[place][None]  # (1, tokens, t5_dim)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError from the system as it comes."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        if self.negative is not None:
            tensors |= {NEGATIVE + name: getattr(self.negative, name) for name in TENSORS}
        # Copies, because the format refuses tensors that share memory.
        tensors = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        with written_whole(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))

    @staticmethod
    def load(path: str | os.PathLike) -> "Conditioning":
        """What `save` has written, on the CPU.

        Raises OSError when the file cannot be opened, ValueError when it is of another kind or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                own, against = list(TENSORS), [NEGATIVE + name for name in TENSORS]
                odd = sorted(names ^ {*own, *(against if names & set(against) else ())})
                if odd:
                    raise ValueError(f"it lacks, or should not have, {some(odd)}")
                found = {name: file.get_tensor(name).clone() for name in names}  # the file may change later
            negative = Conditioning(*map(found.get, against)) if names & set(against) else None
            return Conditioning(*map(found.get, own), negative)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a saved conditioning: {error}") from error


def _interpolate(a: Tensor, b: Tensor, amount: float) -> Tensor:
    return torch.lerp(a.float(), b.float(), float(amount)).to(a.dtype)


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoders read."""


def encode(
    networks: Networks,
    clap_tokenizer: ClapTokenizer,
    t5_tokenizer: T5Tokenizer,
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
) -> Conditioning:
    """Encode prompts and, where given, the negative prompt of each.

    Returns a batch in the order of `prompts`. Warns once (TruncationWarning) of each text that is too long;
    raises ValueError for one beyond GPT-2's positions, of which the published models have plenty.
    """
    lengths = {text: len(t5_tokenizer.encode(text)) for text in [*prompts, *(negatives or [])]}
    wanted = [(text, lengths[text]) for text in prompts]
    if negatives is not None:
        wanted += [
            (negative, max(lengths[negative], lengths[prompt]))
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    _demand_positions(max(lengths.values()), networks.configs["gpt2"])
    for text in lengths:
        _warn_if_cut(text, t5_tokenizer, clap_tokenizer)

    rows: dict[tuple[str, int], Conditioning] = {}  # by text and padded length: nothing is encoded twice
    for length in sorted({length for _, length in wanted}):
        texts = list(dict.fromkeys(text for text, padded in wanted if padded == length))
        clap = pad([clap_tokenizer.encode(text) for text in texts], clap_tokenizer.pad_id)
        t5 = pad([t5_tokenizer.encode(text) for text in texts], t5_tokenizer.pad_id, length)
        batch = _encode_batch(networks, clap, t5)
        rows |= {(text, length): row for text, row in zip(texts, batch, strict=True)}

    found = [rows[each] for each in wanted]
    if negatives is None:
        return Conditioning.cat(found)
    pairs = zip(found[: len(prompts)], found[len(prompts) :], strict=True)
    return Conditioning.cat([replace(positive, negative=negative) for positive, negative in pairs])


def _encode_batch(networks: Networks, clap: Tokens, t5: Tokens) -> Conditioning:
    """Texts of one padded T5 length through the four text networks, in the order of the paper's figure 2."""
    device = networks.device
    t5_mask = t5.mask.to(device)
    with networks.running("clap_text") as clap_text:
        clap_vector = clap_text(clap.ids.to(device), clap.mask.to(device))  # (batch, clap_dim)
    with networks.running("t5") as t5_encoder:
        t5_context = t5_encoder(t5.ids.to(device), t5_mask)  # (batch, seq, t5_dim)
    with networks.running("projection") as projection:
        vectors, mask = projection(clap_vector, t5_context, t5_mask)  # (batch, seq + 5, gpt2_dim)
    with networks.running("gpt2") as gpt2:
        gpt2_context = gpt2.generate(vectors, mask)  # (batch, new_vectors, gpt2_dim)
    return Conditioning(gpt2_context, t5_context, t5_mask)


def _demand_positions(length: int, gpt2: GPT2Config) -> None:
    room = gpt2.max_positions - gpt2.new_vectors - 5  # CLAP's vector and the four that frame it and T5's
    if length > room:
        raise ValueError(
            f"a prompt has {length} T5 tokens; GPT-2 of this checkpoint has positions for {room}. Shorten it."
        )


def _warn_if_cut(text: str, t5_tokenizer: T5Tokenizer, clap_tokenizer: ClapTokenizer) -> None:
    """T5 reads less than CLAP, so its loss is the one to tell; CLAP's is told only where T5 lost nothing."""
    for tokenizer, name in ((t5_tokenizer, "T5"), (clap_tokenizer, "CLAP")):
        cut = tokenizer.truncated_part(text)
        if cut:
            warnings.warn(
                f"a text is longer than the {tokenizer.max_length} tokens that {name} reads; "
                f"this part is not heard: {cut!r}",
                TruncationWarning,
                stacklevel=2,
            )
            return
