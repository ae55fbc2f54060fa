"""A prompt to what the denoiser is told about it.

CLAP reads the whole prompt as one vector, T5 reads it token by token; both, projected, are what GPT-2
continues by eight vectors. The denoiser attends to GPT-2's vectors and to T5's. (Other models of the family
hear less: see `Conditioning`.)

Trap: what GPT-2 makes depends on the padded length (see `models.projection`). Every prompt is therefore
encoded at its own length, so that it gives the same sound alone and in a batch; its negative prompt is padded
to the prompt's length, as in the reference, but never cut to it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer, Tokens, pad
from audioldm2.runtime.placement import Networks


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
) -> Conditioning:
    """Encode prompts and, where given, the negative prompt of each, for what the denoiser hears.

    padded: to how many tokens of T5 a prompt of so many is padded; as it is, unless training wants few
            different lengths.
    Returns a batch in the order of `prompts`. Warns once (TruncationWarning) of each text that is too long;
    raises ValueError for one beyond GPT-2's positions, of which the published models have plenty.
    """
    hears = networks.configs["unet"]
    clap_tokenizer = clap_tokenizer if hears.film_dim or GPT2 in hears.roles else None
    t5_tokenizer = t5_tokenizer if {GPT2, T5} & hears.roles else None
    everything = [*prompts, *(negatives or [])]
    lengths = {text: len(t5_tokenizer.encode(text)) if t5_tokenizer else 0 for text in everything}
    wanted = [(text, padded(lengths[text])) for text in prompts]
    if negatives is not None:
        wanted += [
            (negative, max(lengths[negative], padded(lengths[prompt])))
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    if GPT2 in hears.roles:
        _demand_positions(max(length for _, length in wanted), networks.configs["gpt2"])
    for text in lengths:
        _warn_if_cut(text, t5_tokenizer, clap_tokenizer)

    rows: dict[tuple[str, int], Conditioning] = {}  # by text and padded length: nothing is encoded twice
    for length in sorted({length for _, length in wanted}):
        texts = list(dict.fromkeys(text for text, padded in wanted if padded == length))
        clap = t5 = None
        if clap_tokenizer:
            clap = pad([clap_tokenizer.encode(text) for text in texts], clap_tokenizer.pad_id)
        if t5_tokenizer:
            t5 = pad([t5_tokenizer.encode(text) for text in texts], t5_tokenizer.pad_id, length)
        batch = _encode_batch(networks, clap, t5)
        rows |= {(text, length): row for text, row in zip(texts, batch, strict=True)}

    found = [rows[each] for each in wanted]
    if negatives is None:
        return Conditioning.cat(found)
    pairs = zip(found[: len(prompts)], found[len(prompts) :], strict=True)
    return Conditioning.cat([replace(positive, negative=negative) for positive, negative in pairs])


def _encode_batch(networks: Networks, clap: Tokens | None, t5: Tokens | None) -> Conditioning:
    """Texts of one padded T5 length through the text networks, in the order of the paper's figure 2."""
    device, hears = networks.device, networks.configs["unet"]
    clap_vector = text_context = t5_mask = gpt2_context = None
    if clap is not None:
        with networks.running("clap_text") as clap_text:
            clap_vector = clap_text(clap.ids.to(device), clap.mask.to(device))  # (batch, clap_dim)
    if t5 is not None:
        t5_mask = t5.mask.to(device)
        with networks.running("t5") as t5_encoder:
            text_context = t5_encoder(t5.ids.to(device), t5_mask)  # (batch, seq, t5_dim)
    if GPT2 in hears.roles:
        with networks.running("projection") as projection:
            vectors, mask = projection(clap_vector, text_context, t5_mask)  # (batch, seq + 5, gpt2_dim)
        with networks.running("gpt2") as gpt2:
            gpt2_context = gpt2.generate(vectors, mask)  # (batch, new_vectors, gpt2_dim)
    return Conditioning(
        gpt2_context,
        text_context if T5 in hears.roles else None,
        t5_mask if T5 in hears.roles else None,
        clap_vector=clap_vector if hears.film_dim else None,
    )


def _demand_positions(length: int, gpt2: GPT2Config) -> None:
    room = gpt2.max_positions - gpt2.new_vectors - 5  # CLAP's vector and the four that frame it and T5's
    if length > room:
        raise ValueError(
            f"a prompt has {length} T5 tokens; GPT-2 of this checkpoint has positions for {room}. Shorten it."
        )


def _warn_if_cut(text: str, t5_tokenizer: T5Tokenizer | None, clap_tokenizer: ClapTokenizer | None) -> None:
    """T5 reads less than CLAP, so its loss is the one to tell; CLAP's is told only where T5 lost nothing."""
    for tokenizer, name in ((t5_tokenizer, "T5"), (clap_tokenizer, "CLAP")):
        cut = tokenizer and tokenizer.truncated_part(text)
        if cut:
            warnings.warn(
                f"a text is longer than the {tokenizer.max_length} tokens that {name} reads; "
                f"this part is not heard: {cut!r}",
                TruncationWarning,
                stacklevel=2,
            )
            return
