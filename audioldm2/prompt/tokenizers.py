"""Prompt -> token ids and mask, for the two text encoders of AudioLDM 2.

    CLAP    RoBERTa's byte-level BPE      <s> ... </s>    at most 512
    T5      SentencePiece unigrams            ... </s>    at most 128

The ids are those of transformers 5 (`tokenization_roberta.py`, `tokenization_t5.py`): it takes the vocabulary
out of whichever file the folder holds and builds its own `tokenizers` pipeline round it, and so do we. For T5
the package `sentencepiece` reads `spiece.model` but does not split the text, for there it differs:
  - a typed `</s>` is four characters to it; here it is the token, and so is full-width `＜/s＞` after NFKC;
  - NFKC: it takes the longest match everywhere; here a grapheme of under six bytes becomes what its beginning
    maps to (a mark after `Ａ` is lost), and a longer one goes by characters (e + accent + mark stays apart);
  - U+0085 is a character to it, white space here;
  - "kkk" may be "kk k" to it and "k kk" here: the scores tie, and it adds in float32, not in float64.

Trap: what a typed `<mask>` or `<extra_id_0>` does to the spaces beside it stands in the small JSON files of
the folder, and without them it does nothing. Keep whatever there is of `FILES` together.
"""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Encoding, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from torch import Tensor

from audioldm2.errors import WeightsError


@dataclass(frozen=True)
class Tokens:
    """A padded batch of prompts."""

    ids: Tensor  # int64 (batch, seq)
    mask: Tensor  # bool (batch, seq), True = real token


def pad(sequences: list[list[int]], pad_id: int, length: int | None = None) -> Tokens:
    """Stacks token lists, each filled on its right with `pad_id` up to `length` (None: the longest).

    Raises ValueError where there is nothing to stack, or a list is longer than `length`.
    Trap: the mask comes from the lengths, for a prompt may spell `<pad>` itself, and that is a real token.
    """
    if not sequences:
        raise ValueError("sequences=[] holds no prompt, but pad needs at least one")
    longest = max(map(len, sequences))
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"length={length} must be at least {longest}, the longest of the sequences")
    ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids in sequences], dtype=torch.int64)
    lengths = torch.tensor([len(ids) for ids in sequences])
    return Tokens(ids, mask=torch.arange(length) < lengths[:, None])  # (batch, seq) both


# How transformers' JSON files speak of special tokens: the flags of one, and the keys that name one.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class _PromptTokenizer:
    """What both share: `before`, then the text cut to what is left of `max_length`, then `after`."""

    splitter: Tokenizer = field(repr=False)
    max_length: int

    FILES: ClassVar[tuple[str, ...]]  # all that `from_folder` looks at
    SPECIALS: ClassVar[dict[str, int | None]]  # what the vocabulary must hold, and where (None: anywhere)
    before: ClassVar[list[int]]
    after: ClassVar[list[int]]
    pad_id: ClassVar[int]

    def __post_init__(self) -> None:
        if self._room < 1:
            raise ValueError(f"max_length={self.max_length} must leave room beside the special tokens")

    def encode(self, text: str) -> list[int]:
        """Token ids of one prompt. The special tokens at its ends stay when it is cut at `max_length`.

        Raises ValueError for what is not a str, or is no valid Unicode (a lone surrogate).
        """
        return [*self.before, *self._split(text).ids[: self._room], *self.after]

    def truncated_part(self, text: str) -> str:
        """The end of `text` that `encode` cuts, "" when nothing is cut. Half a character counts as cut."""
        split = self._split(text)
        return text[split.offsets[self._room][0] :] if len(split.ids) > self._room else ""

    @property
    def _room(self) -> int:
        return self.max_length - len(self.before) - len(self.after)

    def _split(self, text: str) -> Encoding:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be a str, not {type(text).__name__}: {text!r:.80}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            lone = f"U+{ord(text[error.start]):04X} at position {error.start}"
            raise ValueError(f"a prompt must be valid Unicode, without a lone surrogate: {lone}") from None
        return self.splitter.encode(text, add_special_tokens=False)

    @classmethod
    def _most(cls, config: Path, max_length: int) -> int:
        """How many tokens to read: `max_length`, or fewer where tokenizer_config.json says so."""
        settings = _read_json(config)
        for side in ("padding_side", "truncation_side"):
            if settings.get(side, "right") != "right":
                raise WeightsError(
                    f"{config} says {side} = {settings[side]!r}; only 'right' is supported. This is another "
                    "tokenizer than AudioLDM 2's."
                )
        most, least = settings.get("model_max_length"), len(cls.before) + len(cls.after) + 1
        if most is None:
            return max_length
        if isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= least:
            raise WeightsError(
                f"{config} says model_max_length = {most!r:.80}; it has to be a number from {least} on, for "
                "the special tokens have to fit."
            )
        return int(min(max_length, most))

    @classmethod
    def _check(cls, splitter: Tokenizer) -> None:
        for token, index in cls.SPECIALS.items():
            found = splitter.token_to_id(token)
            if found is None or index not in (None, found):
                where = "in the vocabulary" if index is None else f"token {index}, not {found}"
                raise ValueError(f"{token} must be {where}")

    @classmethod
    def _add_special_tokens(cls, splitter: Tokenizer, folder: Path, extra: list[str]) -> None:
        """Has `splitter` find special tokens in a raw prompt, with the flags that the reference gives them.

        The first to name a token decides (transformers, `tokenization_utils_base.py`, `_from_pretrained`):
        `added_tokens_decoder` of tokenizer_config.json; only without that, the list of tokenizer.json and
        special_tokens_map.json; then the rest of tokenizer_config.json; then the plain names.
        """
        config = _read_json(folder / "tokenizer_config.json")
        with _reading(folder, "a folder whose JSON files describe the special tokens"):
            if "added_tokens_decoder" in config:
                by_id = {int(index): token for index, token in config["added_tokens_decoder"].items()}
            else:
                listed = _read_json(folder / "tokenizer.json").get("added_tokens", [])
                by_id = {token["id"]: token for token in listed}
                config |= _read_json(folder / "special_tokens_map.json")
            named = [config[role] for role in ROLES if config.get(role)] + list(cls.SPECIALS)
            named += config.get("extra_special_tokens") or config.get("additional_special_tokens") or extra
            tokens: dict[str, AddedToken] = {}
            for token in [by_id[index] for index in sorted(by_id)] + named:
                entry = token if isinstance(token, dict) else {"content": token}
                flags = {name: entry.get(name, False) for name in FLAGS}
                tokens.setdefault(entry["content"], AddedToken(entry["content"], special=True, **flags))
            splitter.add_special_tokens(list(tokens.values()))


class ClapTokenizer(_PromptTokenizer):
    """RoBERTa's byte-level BPE: every text has tokens, and a space belongs to the word after it."""

    FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    SPECIALS: ClassVar = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": None}
    before: ClassVar = [0]
    after: ClassVar = [2]
    pad_id = 1

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 512) -> "ClapTokenizer":
        """Reads tokenizer.json, or else vocab.json with merges.txt. Raises WeightsError.

        max_length: of tokens with the special ones, at most; fewer where tokenizer_config.json says so.
        """
        file = _find(folder, "tokenizer.json", "merges.txt", also="vocab.json")
        with _reading(file, "the merges of CLAP's byte-level BPE"):
            if file.suffix == ".json":
                model = _read_json(file)["model"]
                vocab, lines = model["vocab"], model["merges"]
            else:
                vocab, lines = _read_json(file.with_name("vocab.json")), file.read_text("utf-8").split("\n")
                lines = [line for line in lines if line and not line.startswith("#version")]
            merges = [tuple(line.split(" ") if isinstance(line, str) else line) for line in lines]
            # A file cut at a line's end parses. But a token is a byte, or merged, or of a few (RoBERTa: 9).
            if len(merges) + 256 + 32 < len(vocab):
                raise ValueError(f"{len(merges)} merges cannot make {len(vocab)} tokens: it was cut")
            splitter = Tokenizer(BPE(vocab=vocab, merges=merges))
            cls._check(splitter)
        prefix = _read_json(file.with_name("tokenizer_config.json")).get("add_prefix_space", False)
        splitter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        cls._add_special_tokens(splitter, file.parent, extra=[])
        return cls(splitter, cls._most(file.with_name("tokenizer_config.json"), max_length))


class T5Tokenizer(_PromptTokenizer):
    """SentencePiece's unigrams: NFKC, words at white space, `▁` before each, then its likeliest pieces."""

    FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
    SPECIALS: ClassVar = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    before: ClassVar = []
    after: ClassVar = [1]
    pad_id = 0

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 128) -> "T5Tokenizer":
        """Reads tokenizer.json, which wins as in the reference, or else spiece.model. Raises WeightsError.

        max_length: of tokens with the special one, at most; fewer where tokenizer_config.json says so.
        """
        file = _find(folder, "tokenizer.json", "spiece.model")
        extra_ids = _read_json(file.with_name("tokenizer_config.json")).get("extra_ids", 100)
        sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
        with _reading(file, "T5's unigram vocabulary"):
            if file.suffix == ".json":
                serialized = _read_json(file)
                vocab = [(piece, score) for piece, score in serialized["model"]["vocab"]]
                charsmap = _charsmap_of_json(serialized)
            else:
                proto = file.read_bytes()
                model = SentencePieceProcessor(model_proto=proto)
                vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
                vocab += [(token, 0.0) for token in reversed(sentinels)]  # <extra_id_0> has the highest id
                charsmap = _bytes_field(_bytes_field(proto, 3), 2)  # normalizer_spec, precompiled_charsmap
            splitter = Tokenizer(Unigram(vocab, unk_id=2, byte_fallback=False))
            if charsmap:
                splitter.normalizer = normalizers.Precompiled(charsmap)
            cls._check(splitter)
        words, marks = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")
        splitter.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
        cls._add_special_tokens(splitter, file.parent, extra=sentinels)
        return cls(splitter, cls._most(file.with_name("tokenizer_config.json"), max_length))


_REPAIR = "copy the tokenizer's files from the checkpoint again, or convert it again"


def _find(folder: str | Path, first: str, second: str, also: str | None = None) -> Path:
    """`first` in the folder; or else `second`, beside which `also` must lie."""
    folder = Path(folder)
    if (folder / first).is_file():
        return folder / first
    if (folder / second).is_file() and (also is None or (folder / also).is_file()):
        return folder / second
    names = f"{first}, or {second}" + (f" and {also}" if also else "")
    raise WeightsError(f"{folder} must hold {names}: {_REPAIR}")


@contextmanager
def _reading(file: Path, expected: str) -> Iterator[None]:
    """Turns whatever a parser raises into a WeightsError; `tokenizers` raises the bare class Exception."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{file} is not {expected} ({reason}): {_REPAIR}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file."""
    with _reading(file, "a JSON object"):
        return {**json.loads(file.read_text("utf-8"))} if file.is_file() else {}


def _charsmap_of_json(serialized: dict) -> bytes:
    """The NFKC table of a tokenizer.json, b"" where it has none."""
    normalizer = serialized.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    tables = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    return base64.b64decode(tables[0]) if tables else b""


def _bytes_field(message: bytes, wanted: int) -> bytes:
    """The bytes of one field of a well-formed protobuf message, b"" where it is absent.

    Why by hand: `sentencepiece` shows the pieces of a model but not its NFKC table, and needs no protobuf.
    """
    stream, found = io.BytesIO(message), b""

    def varint() -> int:
        byte = stream.read(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * varint()

    while stream.tell() < len(message):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
        else:  # fixed 64 bits, bytes, fixed 32 bits
            value = stream.read({1: 8, 2: None, 5: 4}[kind] or varint())
            found = value if field == wanted else found
    return found
