"""A prompt to the denoiser's conditioning.

CLAP reads the whole prompt as one vector, T5 reads it token by token. Both are projected, and GPT-2 continues
them by eight vectors. The denoiser attends to GPT-2's vectors and to T5's. (Other models of the family use
fewer of these: see `Conditioning`.)

Guidance without a negative prompt leads away from the unconditional conditioning, of which there are two
readings (UNCONDITIONAL). The reference pipeline (diffusers) sends the empty text through all text networks.
Upstream trained, and samples, with zeros in place of GPT-2's vectors, and with T5's vectors of the empty text
unpadded (haoheliu/AudioLDM2, latent_diffusion/modules/encoders/modules.py, `get_unconditional_condition`).

Trap: GPT-2's output depends on the padded length (see `models.projection`). So each prompt is encoded at its
own length, and gives the same sound alone and in a batch. Its negative prompt is padded to the prompt's
length, as in the reference, but never cut to it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError, shown
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer, Tokens, pad
from audioldm2.prompt.words import Word, for_clap, ids_of, stacked
from audioldm2.runtime.placement import Networks

UNCONDITIONAL = ("reference", "trained")


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoders read."""


def encode(
    networks: Networks,
    clap_tokenizer: ClapTokenizer | None,
    t5_tokenizer: T5Tokenizer | None,
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    *,
    padded: Callable[[int], int] = int,
    unconditional: str = "reference",
    words: Sequence[Word] = (),
) -> Conditioning:
    """Encode prompts, and their negative prompts if given, into the tensors that the denoiser needs.

    Args:
        networks:       those of the model; the configs decide which text networks run.
        clap_tokenizer: None if the model has none.
        t5_tokenizer:   None if the model has none.
        prompts:        the texts.
        negatives:      one for each prompt, or None for no negative part.
        padded:         maps a prompt's number of T5 tokens to its padded length. Training rounds up, to have
                        fewer different lengths.
        unconditional:  how an empty negative prompt is encoded, one of UNCONDITIONAL.
        words:          new ones that texts may contain.

    Returns:
        A batch in the order of `prompts`.

    Raises:
        ArgumentError: a prompt exceeds GPT-2's positions (no published model's tokenizer lets it).

    Warns once per text (TruncationWarning) if a text is cut.
    """
    unet = networks.configs["unet"]
    clap_tokenizer = clap_tokenizer if unet.film_dim or GPT2 in unet.roles else None
    t5_tokenizer = t5_tokenizer if {GPT2, T5} & unet.roles else None
    if t5_tokenizer and words:
        t5_tokenizer = replace(t5_tokenizer, words=ids_of(words, networks.configs["t5"].vocabulary))
    texts = [*prompts, *(negatives or [])]

    def as_trained(negative: str) -> bool:
        return unconditional == "trained" and not negative

    lengths = {text: len(t5_tokenizer.encode(text)) if t5_tokenizer else 0 for text in texts}
    wanted = [(text, padded(lengths[text])) for text in prompts]
    if negatives is not None:
        wanted += [
            (
                negative,
                lengths[negative]
                if as_trained(negative)
                else max(lengths[negative], padded(lengths[prompt])),
            )
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    if GPT2 in unet.roles:
        _require_positions(max(length for _, length in wanted), networks.configs["gpt2"])
    for text in lengths:
        _warn_if_cut(text, t5_tokenizer, clap_tokenizer, words)

    rows: dict[tuple[str, int], Conditioning] = {}  # by text and padded length; each pair is encoded once
    for length in sorted({length for _, length in wanted}):
        texts = list(dict.fromkeys(text for text, wanted_length in wanted if wanted_length == length))
        clap = t5 = None
        if clap_tokenizer:
            clap = pad(
                [clap_tokenizer.encode(for_clap(text, words)) for text in texts], clap_tokenizer.pad_id
            )
        if t5_tokenizer:
            t5 = pad([t5_tokenizer.encode(text) for text in texts], t5_tokenizer.pad_id, length)
        batch = _encode_batch(networks, clap, t5, stacked(words))
        rows |= {(text, length): row for text, row in zip(texts, batch, strict=True)}

    found = [rows[pair] for pair in wanted]
    if negatives is None:
        return Conditioning.cat(found)
    encoded = [
        _without_gpt2(row) if as_trained(negative) else row
        for row, negative in zip(found[len(prompts) :], negatives, strict=True)
    ]
    pairs = zip(found, encoded, strict=False)
    return Conditioning.cat([replace(positive, negative=negative) for positive, negative in pairs])


def _without_gpt2(row: Conditioning) -> Conditioning:
    """A row with zeros in place of GPT-2's vectors, if it has any."""
    vectors = row.gpt2_context
    return row if vectors is None else replace(row, gpt2_context=torch.zeros_like(vectors))


def _encode_batch(
    networks: Networks, clap: Tokens | None, t5: Tokens | None, words: Tensor | None
) -> Conditioning:
    """Texts of one padded T5 length through the text networks, in the order of the paper's figure 2."""
    device, unet = networks.device, networks.configs["unet"]
    clap_vector = text_context = t5_mask = gpt2_context = None
    if clap is not None:
        with networks.running("clap_text") as clap_text:
            clap_vector = clap_text(clap.ids.to(device), clap.mask.to(device))  # (batch, clap_dim)
    if t5 is not None:
        t5_mask = t5.mask.to(device)
        with networks.running("t5") as t5_encoder:
            words = None if words is None else words.to(device)
            text_context = t5_encoder(t5.ids.to(device), t5_mask, words)  # (batch, seq, t5_dim)
    if GPT2 in unet.roles:
        with networks.running("projection") as projection:
            vectors, mask = projection(clap_vector, text_context, t5_mask)  # (batch, seq + 5, gpt2_dim)
        with networks.running("gpt2") as gpt2:
            gpt2_context = gpt2.generate(vectors, mask)  # (batch, new_vectors, gpt2_dim)
    return Conditioning(
        gpt2_context,
        text_context if T5 in unet.roles else None,
        t5_mask if T5 in unet.roles else None,
        clap_vector=clap_vector if unet.film_dim else None,
    )


def _require_positions(length: int, gpt2: GPT2Config) -> None:
    room = gpt2.max_positions - gpt2.new_vectors - 5  # CLAP's vector, and two that frame each of CLAP and T5
    if length > room:
        allowed = f"be shorter: GPT-2 of this checkpoint has positions for {room}"
        raise ArgumentError("prompt", length, allowed, given=f"has {length} T5 tokens")


def _warn_if_cut(
    text: str, t5_tokenizer: T5Tokenizer | None, clap_tokenizer: ClapTokenizer | None, words: Sequence[Word]
) -> None:
    """Warn of the text that T5 cuts, or CLAP if T5 cuts none: T5 reads less, so its loss is the larger."""
    read_by_clap = for_clap(text, words)
    for tokenizer, name, read in ((t5_tokenizer, "T5", text), (clap_tokenizer, "CLAP", read_by_clap)):
        if tokenizer is None:
            continue
        cut = tokenizer.truncated_part(read)
        if cut:
            warnings.warn(
                f"a text is longer than the {tokenizer.max_length} tokens that {name} reads; "
                f"this part is ignored: {shown(cut)}",
                TruncationWarning,
                stacklevel=2,
            )
            return
