"""What the stage `ldm` adds for a model that speaks: phonemes of captions, the loss that teaches GPT-2."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint, phoneme_tokenizer_of
from audioldm2.errors import ArgumentError
from audioldm2.models.layers import Linear
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import Row, TextEncoders, encode_rows
from audioldm2.runtime.placement import Networks
from audioldm2.training.spoken import Spoken

KEPT_BYTES = 1 << 30  # of encoded rows
PAD, END = "_", "~"  # the first and the last symbol of a new model, as the published ones have them


class FrameHead(nn.Module):
    """Predicts the frames of a latent from GPT-2's vectors, linearly.

    Args:
        gpt2_dim: width of GPT-2's vectors.
        channels: of a latent.
        mel: bands of a latent.
    """

    def __init__(self, gpt2_dim: int, channels: int, mel: int) -> None:
        super().__init__()
        self.channels, self.mel = channels, mel
        self.linear = Linear(gpt2_dim, channels * mel)

    def forward(self, vectors: Tensor, frames: int) -> Tensor:
        """Predicts (batch, channels, frames, mel) from (batch, new_vectors, gpt2_dim).

        As many vectors as frames stand for a frame each. Of more or fewer, a frame is the mean of those that
        it overlaps.
        """
        each = self.linear(vectors).transpose(1, 2)  # (batch, channels * mel, new_vectors)
        by_frame = F.adaptive_avg_pool1d(each, frames)  # (batch, channels * mel, frames)
        return by_frame.unflatten(1, (self.channels, self.mel)).transpose(2, 3)


def auxiliary_loss(head: FrameHead, vectors: Tensor, latents: Tensor, dropped: Tensor) -> Tensor:
    """Computes the mean squared error of the latents that a head predicts, over clips with a caption.

    Args:
        head: predicts them.
        vectors: GPT-2's, (batch, new_vectors, gpt2_dim).
        latents: (batch, channels, time, mel), the means of the VAE: in silence, samples are noise.
        dropped: (batch,) bool, True where the caption is dropped; the error counts as 0 there.
    """
    error = (head(vectors, latents.shape[2]).float() - latents).square().mean(dim=(1, 2, 3))  # (batch,)
    return (error * ~dropped.to(error.device)).mean()


def spelled(caption: str, pronunciations: Mapping[str, str] | None = None) -> str:
    """Returns the phonemes of what the voice of a caption says, as IPA.

    Raises:
        ArgumentError: the caption carries no transcription, or it cannot be pronounced.
    """
    transcription, phonemes = _words_of(caption)
    if phonemes:
        return phonemes
    from audioldm2.prompt.pronunciation import pronounce  # which looks for espeak

    return pronounce(transcription, pronunciations)


def _words_of(caption: str) -> tuple[str, str]:
    if not isinstance(caption, Spoken):
        raise ArgumentError("caption", str(caption), "have a transcription: the model speaks")
    return caption.transcription, caption.phonemes


def phoneme_symbols(captions: Sequence[str], model: str) -> tuple[str, ...]:
    """Lists the symbols of a new model: what pads, every character of the captions' phonemes, what ends.

    Args:
        captions: of the data.
        model: its name in messages.

    Raises:
        ArgumentError: a caption carries no transcription, or it cannot be pronounced.
    """
    require_spoken(captions, True, model)
    words = dict.fromkeys(map(_words_of, captions))
    return (PAD, *sorted({symbol for each in words for symbol in spelled(Spoken("", *each))}), END)


class PhonemeIds:
    """The phoneme ids of captions, each found once.

    Args:
        checkpoint: a model that speaks.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        tokenizer = phoneme_tokenizer_of(checkpoint)
        assert tokenizer is not None, f"{checkpoint.source} does not speak"
        self.tokenizer, self.pronunciations = tokenizer, checkpoint.pronunciations
        self._found: dict[tuple[str, str], tuple[int, ...]] = {}

    def __call__(self, caption: str) -> tuple[int, ...]:
        """Returns the ids of what the voice of a caption says; ArgumentError as `spelled`."""
        key = _words_of(caption)
        if key not in self._found:
            self._found[key] = tuple(self.tokenizer.encode(self.spelled(caption)))
        return self._found[key]

    def spelled(self, caption: str) -> str:
        """Returns the phonemes of what the voice of a caption says, as IPA; ArgumentError as `spelled`."""
        return spelled(caption, self.pronunciations)


class KeptRows:
    """Encodes rows that no learning network changes, each once; keeps what it finds, up to `KEPT_BYTES`."""

    def __init__(self) -> None:
        self.found: dict[Row, Conditioning] = {}
        self.bytes = 0

    @torch.no_grad()
    def __call__(self, networks: Networks, encoders: TextEncoders, rows: Sequence[Row]) -> list[Conditioning]:
        """Returns what `encode_rows` returns for these."""
        missing = list(dict.fromkeys(row for row in rows if row not in self.found))
        encoded = encode_rows(networks, encoders, missing) if missing else []
        new = dict(zip(missing, encoded, strict=True))
        found = [new[row] if row in new else self.found[row] for row in rows]
        for row, cond in new.items():
            size = sum(tensor.nbytes for tensor in cond.tensors.values())
            if self.bytes + size <= KEPT_BYTES:
                self.found[row], self.bytes = cond, self.bytes + size
        return found


def require_spoken(captions: Sequence[str], speaks: bool, source: str) -> None:
    """Raises ArgumentError where a model speaks and captions say no words, or the other way round.

    Args:
        captions: of the data.
        speaks: whether the model does.
        source: of the model, for messages.
    """
    silent = [caption for caption in captions if not isinstance(caption, Spoken)]
    if speaks and silent:
        allowed = f"have a column 'transcription' (or 'phonemes'): {source} speaks"
        given = "has a clip that says nothing" if len(silent) < len(captions) else "says no words"
        raise ArgumentError("data", None, allowed, given=given)
    if not speaks and len(silent) < len(captions):
        allowed = f"have no column 'transcription' or 'phonemes': {source} cannot speak"
        raise ArgumentError("data", None, allowed, given="says words")
