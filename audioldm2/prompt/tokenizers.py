"""Prompt -> token ids and mask, for the two text encoders of AudioLDM 2.

    CLAP    RoBERTa's byte-level BPE      <s> ... </s>    at most 512
    T5      SentencePiece unigrams            ... </s>    at most 128

The ids equal those of transformers 5 (`tokenization_roberta.py`, `tokenization_t5.py`). It reads the
vocabulary from whichever file the folder contains and builds its own `tokenizers` pipeline around it; so do
we. For T5, the package `sentencepiece` only reads `spiece.model`. It does not split the text, because its
results differ from transformers':
  - A typed `</s>` is four characters to sentencepiece. Here it is the token, and so is full-width `＜/s＞`,
    after NFKC.
  - sentencepiece's NFKC takes the longest match everywhere. Here, a grapheme of under six bytes becomes
    whatever its beginning maps to (a mark after `Ａ` is lost), and a longer one is mapped character by
    character (e + accent + mark stays apart).
  - U+0085 is a character to sentencepiece, white space here.
  - "kkk" may become "kk k" there and "k kk" here: the scores tie, and sentencepiece adds them in float32, we
    in float64.

Trap: the folder's small JSON files decide whether a typed `<mask>` or `<extra_id_0>` absorbs the spaces
beside it; without them it does not. Keep all of `FILES` that exist together.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from torch import Tensor

from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.prompt.tokenizer_files import (
    bytes_field,
    charsmap_of_json,
    find_vocabulary,
    parsing,
    read_json,
)


@dataclass(frozen=True)
class Tokens:
    """A padded batch of prompts."""

    ids: Tensor  # int64 (batch, seq)
    mask: Tensor  # bool (batch, seq), True = real token


def pad(sequences: list[list[int]], pad_id: int, length: int | None = None) -> Tokens:
    """Stack token lists, each padded on the right.

    Trap: the mask comes from the lengths, not the ids: a prompt may spell `<pad>`, which is a real token.

    Args:
        sequences: token ids, one list per prompt.
        pad_id:    the id to pad with.
        length:    tokens per row; None pads to the longest list.

    Returns:
        Tokens (batch, length), on the CPU.

    Raises:
        ArgumentError: there are no lists, or one is longer than `length`.
    """
    if not sequences:
        raise ArgumentError("sequences", sequences, "contain at least one")
    longest = max(map(len, sequences))
    length = longest if length is None else length
    if longest > length:
        raise ArgumentError("length", length, f"be at least {longest}, the longest of the sequences")
    rows = [ids + [pad_id] * (length - len(ids)) for ids in sequences]
    lengths = torch.tensor([len(ids) for ids in sequences], device="cpu")
    return Tokens(
        ids=torch.tensor(rows, dtype=torch.int64, device="cpu"),  # (batch, seq)
        mask=torch.arange(length, device="cpu") < lengths[:, None],  # (batch, seq)
    )


# transformers' JSON files: the flags of a special token, and the keys under which one may stand.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class _PromptTokenizer:
    """The part that both tokenizers share. A row is `before`, the text, `after`; the text is cut to fit."""

    splitter: Tokenizer = field(repr=False)
    max_length: int  # tokens, with the special ones
    words: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # new ones, and the ids of each

    from_folder: ClassVar[Callable[..., Any]]
    FILES: ClassVar[tuple[str, ...]]  # every file that `from_folder` may read
    SPECIALS: ClassVar[dict[str, int | None]]  # token -> its id in the vocabulary (None: any)
    before: ClassVar[list[int]]
    after: ClassVar[list[int]]
    pad_id: ClassVar[int]

    def __post_init__(self) -> None:
        if self._room < 1:
            allowed = f"be at least {self.max_length - self._room + 1}, to leave room beside special tokens"
            raise ArgumentError("max_length", self.max_length, allowed)

    def encode(self, text: str) -> list[int]:
        """Turn a prompt into token ids, at most `max_length`. A cut leaves the special tokens at its ends.

        Raises:
            ArgumentError: the prompt is not a str, or not valid Unicode (it contains a lone surrogate).
        """
        ids = [index for index, _ in self._split(text)]
        return [*self.before, *ids[: self._room], *self.after]

    def truncated_part(self, text: str) -> str:
        """Return the end of `text` that `encode` cuts, or "". A character that is cut in half belongs to it.

        Raises:
            ArgumentError: as `encode` does.
        """
        split = self._split(text)
        return text[split[self._room][1] :] if len(split) > self._room else ""

    @property
    def _room(self) -> int:
        """Tokens of text that fit."""
        return self.max_length - len(self.before) - len(self.after)

    def _split(self, text: str) -> list[tuple[int, int]]:
        """The ids of a text, each with its place in the text; what lies between new words is split alone."""
        if not isinstance(text, str):
            raise ArgumentError("prompt", text, "be a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            given = f"has a lone surrogate, U+{ord(text[error.start]):04X} at position {error.start}"
            raise ArgumentError("prompt", text, "be valid Unicode", given=given) from None
        names = "|".join(map(re.escape, self.words))
        found: list[tuple[int, int]] = []
        place = 0
        for part in re.split(f"({names})", text) if names else [text]:
            if part in self.words:
                found += [(index, place) for index in self.words[part]]
            else:
                split = self.splitter.encode(part, add_special_tokens=False)
                starts = [place + start for start, _ in split.offsets]
                found += list(zip(split.ids, starts, strict=True))
            place += len(part)
        return found

    @classmethod
    def _read_max_length(cls, config: Path, max_length: int) -> int:
        """`max_length`, or fewer tokens if tokenizer_config.json says so; check its other settings."""
        settings = read_json(config)
        for side in ("padding_side", "truncation_side"):
            if settings.get(side, "right") != "right":
                raise WeightsError(
                    f"{config} says {side} = {settings[side]!r}; only 'right' is supported. This is not a "
                    "tokenizer of AudioLDM 2."
                )
        most, least = settings.get("model_max_length"), len(cls.before) + len(cls.after) + 1
        if most is None:
            return max_length
        if isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= least:
            raise WeightsError(
                f"{config} says model_max_length = {most!r:.80}; it has to be a number from {least} up, "
                "to leave room beside the special tokens."
            )
        return int(min(max_length, most))

    @classmethod
    def _require_specials(cls, splitter: Tokenizer) -> None:
        for token, index in cls.SPECIALS.items():
            found = splitter.token_to_id(token)
            if found is None or index not in (None, found):
                where = "in the vocabulary" if index is None else f"token {index}, not {found}"
                raise ValueError(f"{token} must be {where}")

    @classmethod
    def _add_special_tokens(cls, splitter: Tokenizer, folder: Path, extra: list[str]) -> None:
        """Make `splitter` find special tokens in a raw prompt, with the same flags as in the reference.

        The first file that names a token decides its flags (transformers, `tokenization_utils_base.py`,
        `_from_pretrained`): `added_tokens_decoder` of tokenizer_config.json; only without that, the list in
        tokenizer.json and special_tokens_map.json; then the rest of tokenizer_config.json; then plain names.
        """
        config = read_json(folder / "tokenizer_config.json")
        with parsing(folder, "a folder whose JSON files describe the special tokens"):
            if "added_tokens_decoder" in config:
                by_id = {int(index): token for index, token in config["added_tokens_decoder"].items()}
            else:
                listed = read_json(folder / "tokenizer.json").get("added_tokens", [])
                by_id = {token["id"]: token for token in listed}
                config |= read_json(folder / "special_tokens_map.json")
            named = [config[role] for role in ROLES if config.get(role)] + list(cls.SPECIALS)
            named += config.get("extra_special_tokens") or config.get("additional_special_tokens") or extra
            tokens: dict[str, AddedToken] = {}
            for token in [by_id[index] for index in sorted(by_id)] + named:
                entry = token if isinstance(token, dict) else {"content": token}
                flags = {name: entry.get(name, False) for name in FLAGS}
                tokens.setdefault(entry["content"], AddedToken(entry["content"], special=True, **flags))
            splitter.add_special_tokens(list(tokens.values()))


class ClapTokenizer(_PromptTokenizer):
    """RoBERTa's byte-level BPE. Any text can be encoded; a space belongs to the word after it."""

    FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    SPECIALS: ClassVar = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": None}
    before: ClassVar = [0]
    after: ClassVar = [2]
    pad_id = 1

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 512) -> "ClapTokenizer":
        """Read tokenizer.json, or else vocab.json with merges.txt.

        Args:
            folder:     one that contains some of `FILES`.
            max_length: tokens, with the special ones; tokenizer_config.json may lower it.

        Raises:
            WeightsError: a file is missing, damaged, or of another tokenizer.
        """
        file = find_vocabulary(folder, "tokenizer.json", "merges.txt", also="vocab.json")
        with parsing(file, "the merges of CLAP's byte-level BPE"):
            if file.suffix == ".json":
                model = read_json(file)["model"]
                vocab, lines = model["vocab"], model["merges"]
            else:
                vocab, lines = read_json(file.with_name("vocab.json")), file.read_text("utf-8").split("\n")
                lines = [line for line in lines if line and not line.startswith("#version")]
            merges = [tuple(line.split(" ") if isinstance(line, str) else line) for line in lines]
            # A file that was cut at the end of a line parses. But every token is a byte, a merge, or one of
            # a few special ones (RoBERTa has 9).
            if len(merges) + 256 + 32 < len(vocab):
                reason = "the file is incomplete"
                raise ValueError(f"{len(merges)} merges cannot make {len(vocab)} tokens: {reason}")
            splitter = Tokenizer(BPE(vocab=vocab, merges=merges))
            cls._require_specials(splitter)
        prefix = read_json(file.with_name("tokenizer_config.json")).get("add_prefix_space", False)
        splitter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        cls._add_special_tokens(splitter, file.parent, extra=[])
        return cls(splitter, cls._read_max_length(file.with_name("tokenizer_config.json"), max_length))


class T5Tokenizer(_PromptTokenizer):
    """SentencePiece's unigrams: NFKC, a split at white space, `▁` before each word, its likeliest pieces."""

    FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
    SPECIALS: ClassVar = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    before: ClassVar = []
    after: ClassVar = [1]
    pad_id = 0

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 128) -> "T5Tokenizer":
        """Read tokenizer.json, which takes precedence as in the reference, or else spiece.model.

        Args:
            folder:     one that contains some of `FILES`.
            max_length: tokens, with the special one; tokenizer_config.json may lower it.

        Raises:
            WeightsError: a file is missing, damaged, or of another tokenizer.
        """
        file = find_vocabulary(folder, "tokenizer.json", "spiece.model")
        extra_ids = read_json(file.with_name("tokenizer_config.json")).get("extra_ids", 100)
        sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
        with parsing(file, "T5's unigram vocabulary"):
            if file.suffix == ".json":
                serialized = read_json(file)
                vocab = [(piece, score) for piece, score in serialized["model"]["vocab"]]
                charsmap = charsmap_of_json(serialized)
            else:
                proto = file.read_bytes()
                model = SentencePieceProcessor(model_proto=proto)
                vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
                vocab += [(token, 0.0) for token in reversed(sentinels)]  # <extra_id_0> has the highest id
                charsmap = bytes_field(bytes_field(proto, 3), 2)  # normalizer_spec, precompiled_charsmap
            splitter = Tokenizer(Unigram(vocab, unk_id=2, byte_fallback=False))
            if charsmap:
                splitter.normalizer = normalizers.Precompiled(charsmap)
            cls._require_specials(splitter)
        words, marks = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")
        splitter.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
        cls._add_special_tokens(splitter, file.parent, extra=sentinels)
        return cls(splitter, cls._read_max_length(file.with_name("tokenizer_config.json"), max_length))
