"""What the denoiser is told about a prompt, as plain tensors, and how a prompt becomes that.

CLAP reads the whole prompt as one vector, T5 reads it token by token; both, projected, are what GPT-2 continues by eight
vectors. The denoiser attends to GPT-2's vectors and to T5's.

Trap: what GPT-2 makes depends on the padded length (see `models.projection`). Every prompt is therefore encoded at its own
length, so that it gives the same sound alone and in a batch; its negative prompt is padded to the prompt's length, as
in the reference, but never cut to it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.text import ClapTokenizer, T5Tokenizer, Tokens, pad
from audioldm2.weights import Networks


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts; `negative` holds what guidance leads away from, row by row."""

    gpt2_context: Tensor  # (batch, new_vectors, gpt2_dim)
    t5_context: Tensor  # (batch, seq, t5_dim)
    t5_mask: Tensor  # (batch, seq) bool, True = real token
    negative: "Conditioning | None" = None

    def __len__(self) -> int:
        return self.gpt2_context.shape[0]

    def __getitem__(self, rows: slice) -> "Conditioning":
        """Some of the rows."""
        return self._each(lambda tensor: tensor[rows])

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
            self.negative and self.negative._each(change),
        )

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Join batches, the T5 contexts padded to the longest; `negative` is joined where every part has one."""
        seq = max(part.t5_mask.shape[1] for part in parts)
        negatives = [part.negative for part in parts]
        return Conditioning(
            torch.cat([part.gpt2_context for part in parts]),
            torch.cat([F.pad(part.t5_context, (0, 0, 0, seq - part.t5_context.shape[1])) for part in parts]),
            torch.cat([F.pad(part.t5_mask, (0, seq - part.t5_mask.shape[1])) for part in parts]),
            None if None in negatives else Conditioning.cat(negatives),
        )


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

    Returns a batch in the order of `prompts`. Warns once (TruncationWarning) about each text that is too long.
    """
    lengths = {text: len(t5_tokenizer.encode(text)) for text in [*prompts, *(negatives or [])]}
    wanted = [(text, lengths[text]) for text in prompts]
    if negatives is not None:
        wanted += [
            (negative, max(lengths[negative], lengths[prompt]))
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    for text in lengths:
        _warn_if_cut(text, t5_tokenizer, clap_tokenizer)

    rows: dict[tuple[str, int], Conditioning] = {}  # by text and padded length: nothing is encoded twice
    for length in sorted({length for _, length in wanted}):
        texts = list(dict.fromkeys(text for text, padded in wanted if padded == length))
        clap = pad([clap_tokenizer.encode(text) for text in texts], clap_tokenizer.pad_id)
        t5 = pad([t5_tokenizer.encode(text) for text in texts], t5_tokenizer.pad_id, length)
        batch = _encode_batch(networks, clap, t5)
        rows |= {(text, length): row for text, row in zip(texts, _split(batch), strict=True)}

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


def _split(batch: Conditioning) -> Iterator[Conditioning]:
    for row in range(len(batch)):
        yield batch[row : row + 1]


def _warn_if_cut(text: str, t5_tokenizer: T5Tokenizer, clap_tokenizer: ClapTokenizer) -> None:
    """T5 reads less than CLAP, so its loss is the one to tell; CLAP's is told only where T5 lost nothing."""
    for tokenizer, name in ((t5_tokenizer, "T5"), (clap_tokenizer, "CLAP")):
        cut = tokenizer.truncated_part(text)
        if cut:
            warnings.warn(
                f"the prompt is longer than the {tokenizer.max_length} tokens that {name} reads; "
                f"this part is not heard: {cut!r}",
                TruncationWarning,
                stacklevel=2,
            )
            return
