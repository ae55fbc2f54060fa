"""A prompt to the denoiser's conditioning.

CLAP reads the whole prompt as one vector, T5 reads it token by token. Both are projected, and GPT-2 continues
them by eight vectors. The denoiser attends to GPT-2's vectors and to T5's. (Other models of the family use
fewer of these: see `Conditioning`.) In a speech model the prompt describes the voice and CLAP alone reads it;
phonemes, which are what the voice says, stand in T5's place.

Guidance without a negative prompt leads away from the unconditional conditioning, of which there are two
readings (UNCONDITIONAL). The reference pipeline (diffusers) sends the empty text through all text networks.
Upstream trained, and samples, with zeros in place of GPT-2's vectors, and with T5's vectors of the empty text
unpadded (haoheliu/AudioLDM2, latent_diffusion/modules/encoders/modules.py, `get_unconditional_condition`).
In a speech model, diffusers reads CLAP's vector of the empty text and no phonemes. A negative prompt that is
not empty is read so in both: it describes a voice that says nothing, and guidance leads away from that voice
towards the words.

Trap: GPT-2's output depends on the padded length (see `models.projection`). So each prompt is encoded at its
own length, and gives the same sound alone and in a batch. Its negative prompt is padded to the prompt's
length, as in the reference, but never cut to it. Phonemes are always padded to the positions that the
projection has learnt for them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.errors import ArgumentError, shown
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer, pad
from audioldm2.prompt.words import Word, for_clap, ids_of, stacked
from audioldm2.runtime.placement import Networks

UNCONDITIONAL = ("reference", "trained")


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoders read."""


class Row(NamedTuple):
    """What one row of a batch is encoded from."""

    text: str  # what T5 reads
    clap_text: str  # what CLAP reads: the same text, but where training drops CLAP's alone
    length: int  # of the text in T5 tokens, or of the phonemes, with padding
    has_gpt2: bool = True  # False: zeros in place of GPT-2's vectors
    phonemes: tuple[int, ...] = ()  # of a speech model: what the phoneme encoder reads in T5's place


class TextVectors(NamedTuple):
    """The output of the text encoders; None for those that a model does not use."""

    clap: Tensor | None  # (batch, clap_dim)
    t5: Tensor | None  # (batch, seq, t5_dim), or of phonemes in a speech model
    t5_mask: Tensor | None  # (batch, seq) bool, True = real token


class TextEncoders:
    """CLAP's, T5's and the phoneme encoder, with the tokenizers of texts, as far as a denoiser uses them.

    Args:
        networks: those of the model.
        clap_tokenizer: None if the model has none.
        t5_tokenizer: None if the model has none.
        words: new ones that texts may contain.
    """

    def __init__(
        self,
        networks: Networks,
        clap_tokenizer: ClapTokenizer | None,
        t5_tokenizer: T5Tokenizer | None,
        words: Sequence[Word] = (),
    ) -> None:
        unet = networks.configs["unet"]
        self.networks, self.words = networks, words
        self.clap_tokenizer = clap_tokenizer if unet.film_dim or GPT2 in unet.roles else None
        self.t5_tokenizer = t5_tokenizer if {GPT2, T5} & unet.roles else None
        self.positions = networks.configs["projection"].positions if "phonemes" in networks.configs else None
        if self.t5_tokenizer and words:
            ids = ids_of(words, networks.configs["t5"].vocabulary)
            self.t5_tokenizer = replace(self.t5_tokenizer, words=ids)

    def length(self, text: str) -> int:
        """The number of T5 tokens of a text; of a speech model, what phonemes are padded to; else 0."""
        if self.positions is not None:
            return self.positions
        return len(self.t5_tokenizer.encode(text)) if self.t5_tokenizer else 0

    def read(self, rows: Sequence[Row], for_gpt2: bool = True) -> TextVectors:
        """Run the encoders on rows of the same length.

        Args:
            rows: what to read.
            for_gpt2: False leaves out those whose output the denoiser does not read itself.
        """
        unet, clap, second = self.networks.configs["unet"], None, (None, None)
        if self.clap_tokenizer and (for_gpt2 or unet.film_dim):
            clap = self.read_clap([row.clap_text for row in rows])
        if for_gpt2 or T5 in unet.roles:
            second = self.read_second(rows)
        return TextVectors(clap, *second)

    def read_second(self, rows: Sequence[Row]) -> tuple[Tensor | None, Tensor | None]:
        """The vectors of T5, or of the phoneme encoder, and their mask; None without both."""
        if self.positions is not None:
            return self.read_phonemes([row.phonemes for row in rows], self.positions)
        if self.t5_tokenizer:
            return self.read_t5([row.text for row in rows], rows[0].length)
        return None, None

    def read_clap(self, texts: Sequence[str]) -> Tensor:
        """CLAP's vectors of some texts, (batch, clap_dim)."""
        assert self.clap_tokenizer is not None
        ids = [self.clap_tokenizer.encode(for_clap(text, self.words)) for text in texts]
        tokens = pad(ids, self.clap_tokenizer.pad_id)
        device = self.networks.device
        with self.networks.running("clap_text") as clap_text:
            return clap_text(tokens.ids.to(device), tokens.mask.to(device))

    def read_t5(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """T5's vectors of some texts, (batch, length, t5_dim), and their mask (batch, length)."""
        assert self.t5_tokenizer is not None
        tokenizer, device = self.t5_tokenizer, self.networks.device
        tokens = pad([tokenizer.encode(text) for text in texts], tokenizer.pad_id, length)
        mask = tokens.mask.to(device)
        words = stacked(self.words)
        with self.networks.running("t5") as t5_encoder:
            return t5_encoder(tokens.ids.to(device), mask, None if words is None else words.to(device)), mask

    def read_phonemes(self, rows: Sequence[tuple[int, ...]], length: int) -> tuple[Tensor, Tensor]:
        """The vectors of phonemes, (batch, length, phonemes_dim), and their mask (batch, length).

        A row may be empty. The encoder then reads a symbol that pads, as its softmax over nothing would be
        NaN, and zeros replace the vector. They also stand for what pads all rows: the encoder knows distances
        alone, and its output is zero there.
        """
        device = self.networks.device
        tokens = pad([list(ids) or [0] for ids in rows], 0)
        lengths = torch.tensor([len(ids) for ids in rows], device="cpu")
        mask = (torch.arange(length, device="cpu") < lengths[:, None]).to(device)
        with self.networks.running("phonemes") as encoder:
            vectors = encoder(tokens.ids.to(device), tokens.mask.to(device))  # (batch, longest, dim)
        padding = (0, 0, 0, length - vectors.shape[1])
        return F.pad(vectors, padding) * mask[..., None], mask

    def warn_if_cut(self, text: str) -> None:
        """Warn of what T5 cuts, or CLAP if T5 cuts nothing: T5 reads less, so its loss is the larger."""
        for_t5, read_by_clap = text, for_clap(text, self.words)
        readers = ((self.t5_tokenizer, "T5", for_t5), (self.clap_tokenizer, "CLAP", read_by_clap))
        for tokenizer, name, read in readers:
            cut = tokenizer.truncated_part(read) if tokenizer else ""
            if tokenizer and cut:
                warnings.warn(
                    f"a text is longer than the {tokenizer.max_length} tokens that {name} reads; "
                    f"this part is ignored: {shown(cut)}",
                    TruncationWarning,
                    stacklevel=3,
                )
                return


def encode(
    networks: Networks,
    clap_tokenizer: ClapTokenizer | None,
    t5_tokenizer: T5Tokenizer | None,
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    *,
    unconditional: str = "reference",
    words: Sequence[Word] = (),
    phonemes: Sequence[Sequence[int]] | None = None,
) -> Conditioning:
    """Encode prompts, and their negative prompts if given, into the tensors that the denoiser needs.

    Args:
        networks:       those of the model; the configs decide which text networks run.
        clap_tokenizer: None if the model has none.
        t5_tokenizer:   None if the model has none.
        prompts:        the texts.
        negatives:      one for each prompt, or None for no negative part.
        unconditional:  how an empty negative prompt is encoded, one of UNCONDITIONAL.
        words:          new ones that texts may contain.
        phonemes:       of a speech model: the ids of what each prompt's voice says.

    Returns:
        A batch in the order of `prompts`.

    Raises:
        ArgumentError: a prompt exceeds GPT-2's positions (no published model's tokenizer lets it).

    Warns once per text (TruncationWarning) if a text is cut.
    """
    encoders = TextEncoders(networks, clap_tokenizer, t5_tokenizer, words)
    spoken = [()] * len(prompts) if phonemes is None else [tuple(ids) for ids in phonemes]
    rows = [
        Row(text, text, encoders.length(text), phonemes=ids)
        for text, ids in zip(prompts, spoken, strict=True)
    ]
    if negatives is not None:
        beside = zip(list(rows), negatives, strict=True)
        rows += [negative_row(encoders, text, row.length, unconditional) for row, text in beside]
    for text in dict.fromkeys(row.text for row in rows):
        encoders.warn_if_cut(text)
    found = encode_rows(networks, encoders, rows)
    if negatives is None:
        return Conditioning.cat(found)
    pairs = zip(found[: len(prompts)], found[len(prompts) :], strict=True)
    return Conditioning.cat([replace(positive, negative=negative) for positive, negative in pairs])


def negative_row(encoders: TextEncoders, text: str, length: int, unconditional: str) -> Row:
    """What a negative prompt is encoded from.

    Args:
        encoders: those of the model.
        text: the negative prompt; it may be empty.
        length: of the prompt beside it, with padding.
        unconditional: how an empty text is encoded, one of UNCONDITIONAL.
    """
    own = encoders.length(text)
    if unconditional == "trained" and not text:
        return Row(text, text, own, has_gpt2=False)
    return Row(text, text, max(own, length))


def encode_rows(networks: Networks, encoders: TextEncoders, rows: Sequence[Row]) -> list[Conditioning]:
    """Encode each row, as a batch of one; equal rows are encoded once.

    Args:
        networks: those of the model.
        encoders: of the texts.
        rows: what to encode.

    Raises:
        ArgumentError: a text exceeds GPT-2's positions.
    """
    if GPT2 in networks.configs["unet"].roles:
        _require_positions(max(row.length for row in rows), networks.configs["gpt2"])
    encoded: dict[Row, Conditioning] = {}
    for length, has_gpt2 in sorted({(row.length, row.has_gpt2) for row in rows}):
        alike = list(dict.fromkeys(row for row in rows if (row.length, row.has_gpt2) == (length, has_gpt2)))
        encoded.update(zip(alike, _encode_alike(networks, encoders, alike, has_gpt2), strict=True))
    return [encoded[row] for row in rows]


def _encode_alike(
    networks: Networks, encoders: TextEncoders, rows: Sequence[Row], has_gpt2: bool
) -> Conditioning:
    """Encode rows of the same length as a batch, as in the paper's figure 2; zeros replace GPT-2's vectors
    in rows that have none.
    """
    unet, gpt2_context = networks.configs["unet"], None
    vectors = encoders.read(rows, for_gpt2=has_gpt2)
    if GPT2 in unet.roles and has_gpt2:
        with networks.running("projection") as projection:
            sequence, mask = projection(*vectors)  # (batch, seq + 5, gpt2_dim)
        with networks.running("gpt2") as gpt2:
            gpt2_context = gpt2.generate(sequence, mask)  # (batch, new_vectors, gpt2_dim)
    elif GPT2 in unet.roles:
        config, dtype = networks.configs["gpt2"], networks.dtypes["gpt2"]
        shape = len(rows), config.new_vectors, config.dim
        gpt2_context = torch.zeros(shape, dtype=dtype, device=networks.device)
    return Conditioning(
        gpt2_context,
        vectors.t5 if T5 in unet.roles else None,
        vectors.t5_mask if T5 in unet.roles else None,
        clap_vector=vectors.clap if unet.film_dim else None,
    )


def _require_positions(length: int, gpt2: GPT2Config) -> None:
    room = gpt2.max_positions - gpt2.new_vectors - 5  # CLAP's vector, and two that frame each of CLAP and T5
    if length > room:
        allowed = f"be shorter: GPT-2 of this checkpoint has positions for {room}"
        raise ArgumentError("prompt", length, allowed, given=f"has {length} T5 tokens")
