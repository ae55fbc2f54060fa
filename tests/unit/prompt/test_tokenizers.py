"""Prompt -> ids with small vocabularies: special tokens, padding, truncation, damaged files."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer, pad
from tests.support.sizes import full_or

CORPUS = [
    "Techno music with a strong beat",
    "A hammer hitting a wooden surface, again and again",
    "a dog barks while the rain falls on the roof",
    "A man speaks; birds sing 12 songs (live) & the crowd cheers! Don't stop.",
    "Ünïcödé: 日本の音楽 and שלום",
]
LSTRIP_MASK = {
    "content": "<mask>",
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("t5"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module")
def clap(clap_folder: Path) -> ClapTokenizer:
    return ClapTokenizer.from_folder(clap_folder)


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> T5Tokenizer:
    return T5Tokenizer.from_folder(t5_folder)


@pytest.fixture(scope="module", params=["clap", "t5"])
def tokenizer(request: pytest.FixtureRequest) -> ClapTokenizer | T5Tokenizer:
    return request.getfixturevalue(request.param)


def copy_of(folder: Path, tmp_path: Path, **files: str) -> Path:
    """The folder again, with more files: `name_json="..."` is written to name.json."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name, content in files.items():
        (copy / f"{name.removesuffix('_json')}.json").write_text(content, "utf-8")
    return copy


# ---- padding


def test_pad_shapes_and_mask():
    tokens = pad([[0, 7, 2], [0, 2]], pad_id=1)
    assert tokens.ids.tolist() == [[0, 7, 2], [0, 2, 1]]
    assert tokens.mask.tolist() == [[True, True, True], [True, True, False]]
    assert tokens.ids.dtype == torch.int64 and tokens.mask.dtype == torch.bool


def test_pad_to_a_length():
    tokens = pad([[5, 1]], pad_id=0, length=6)
    assert tokens.ids.tolist() == [[5, 1, 0, 0, 0, 0]]
    assert tokens.mask.sum() == 2


def test_pad_keeps_a_typed_pad_token(clap: ClapTokenizer):
    ids = clap.encode("a<pad>b")
    assert clap.pad_id in ids
    assert pad([ids], clap.pad_id, length=512).mask.sum() == len(ids)


def test_pad_rejects_arguments():
    with pytest.raises(ValueError, match="length is 2; it has to be at least 3"):
        pad([[1], [1, 2, 3]], pad_id=0, length=2)
    with pytest.raises(ValueError, match=r"sequences is \[\]; it has to contain at least one"):
        pad([], pad_id=0)


def test_pad_ignores_the_default_device():
    with torch.device("meta"):
        tokens = pad([[0, 7, 2], [0, 2]], pad_id=1)
    assert tokens.ids.device.type == tokens.mask.device.type == "cpu"


# ---- ids


def test_special_tokens_at_both_ends(clap: ClapTokenizer, t5: T5Tokenizer):
    assert clap.encode("") == [0, 2]
    assert t5.encode("") == [1] == t5.encode(" \n\t ")
    ids = clap.encode("a dog barks")
    assert (ids[0], ids[-1], ids.count(0), ids.count(2)) == (0, 2, 1, 1)
    assert t5.encode("a dog barks")[-1] == 1


def test_clap_ids_decode_to_the_text(clap: ClapTokenizer):
    text = " Zoë\x00 ﬁ  日\n"
    tokens = [clap.splitter.id_to_token(i) for i in clap.encode(text)[1:-1]]
    assert decoders.ByteLevel().decode(tokens) == text


def test_typed_special_tokens_get_their_ids(clap: ClapTokenizer, t5: T5Tokenizer):
    assert clap.encode("<s></s><pad><unk>") == [0, 0, 2, 1, 3, 2]
    assert t5.encode("</s><pad><unk>") == [1, 0, 2, 1]
    size = t5.splitter.get_vocab_size()
    assert t5.encode("<extra_id_0><extra_id_99>") == [size - 1, size - 100, 1]
    assert t5.encode("\uff1c/s\uff1e")[-2:] == [1, 1]  # NFKC makes it </s>


def test_flags_of_special_tokens_come_from_the_folder(clap_folder: Path, clap: ClapTokenizer, tmp_path: Path):
    mask = clap.splitter.token_to_id("<mask>")
    space = clap.encode(" ")[1]
    assert clap.encode("a <mask>")[1:-1] == [*clap.encode("a")[1:-1], space, mask]
    folder = copy_of(clap_folder, tmp_path, special_tokens_map_json=json.dumps({"mask_token": LSTRIP_MASK}))
    assert ClapTokenizer.from_folder(folder).encode("a <mask>")[1:-1] == [*clap.encode("a")[1:-1], mask]


def test_added_tokens_decoder_takes_precedence(clap_folder: Path, clap: ClapTokenizer, tmp_path: Path):
    config = {
        "added_tokens_decoder": {str(clap.splitter.token_to_id("<mask>")): LSTRIP_MASK | {"lstrip": False}}
    }
    folder = copy_of(
        clap_folder,
        tmp_path,
        special_tokens_map_json=json.dumps({"mask_token": LSTRIP_MASK}),
        tokenizer_config_json=json.dumps(config),
    )
    assert ClapTokenizer.from_folder(folder).encode("a <mask>") == clap.encode("a <mask>")


@pytest.mark.parametrize("kind", [ClapTokenizer, T5Tokenizer])
def test_tokenizer_json_gives_the_same_ids(kind: type, request: pytest.FixtureRequest, tmp_path: Path):
    first = request.getfixturevalue("clap" if kind is ClapTokenizer else "t5")
    first.splitter.save(str(tmp_path / "tokenizer.json"))
    again = kind.from_folder(str(tmp_path))
    for text in [*CORPUS, "", " x <mask> y <extra_id_3> z</s>", "\uff21\uff22 ½ ﬁ e\u0301"]:
        assert again.encode(text) == first.encode(text)


def test_nfkc_table_comes_from_the_model_file(t5_folder: Path, t5: T5Tokenizer):
    """Our protobuf parser extracts the table; sentencepiece reads the same file and has to agree."""
    theirs = sentencepiece.SentencePieceNormalizer(
        model_file=str(t5_folder / "spiece.model"),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    assert isinstance(t5.splitter.normalizer, normalizers.Precompiled)
    characters = [chr(i) for i in [*range(1, 0x500), *range(0x2000, 0x3400), *range(0xF900, 0x10000)]]
    changed = [c for c in characters if theirs.normalize(c) != c]
    assert len(changed) > 1000
    assert all(t5.splitter.normalizer.normalize_str(c) == theirs.normalize(c) for c in characters)


def test_model_file_without_nfkc(tmp_path: Path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    plain = T5Tokenizer.from_folder(tmp_path)
    assert plain.encode("\uff41") != plain.encode("a")


# ---- truncation


def test_truncation_keeps_special_tokens_and_returns_the_cut_part(tokenizer: ClapTokenizer | T5Tokenizer):
    text = "a dog barks " * 500
    ids = tokenizer.encode(text)
    assert len(ids) == tokenizer.max_length == (512 if isinstance(tokenizer, ClapTokenizer) else 128)
    assert ids[-1:] == tokenizer.after and ids[: len(tokenizer.before)] == tokenizer.before
    cut = tokenizer.truncated_part(text)
    assert cut and text.endswith(cut)
    kept = text.removesuffix(cut)
    assert tokenizer.encode(kept) == ids and tokenizer.truncated_part(kept) == ""


def test_text_of_exactly_max_length_is_not_cut(
    clap_folder: Path, t5_folder: Path, clap: ClapTokenizer, t5: T5Tokenizer
):
    for kind, folder, whole in ((ClapTokenizer, clap_folder, clap), (T5Tokenizer, t5_folder, t5)):
        text = "the rain falls on 日本"
        exact = len(whole.encode(text))
        assert kind.from_folder(folder, max_length=exact).truncated_part(text) == ""
        short = kind.from_folder(folder, max_length=exact - 1)
        assert len(short.encode(text)) == exact - 1
        assert short.truncated_part(text) and text.endswith(short.truncated_part(text))


def test_rejects_a_max_length_without_room_for_text(clap_folder: Path, t5_folder: Path):
    with pytest.raises(ValueError, match="max_length is 2; it has to be at least 3"):
        ClapTokenizer.from_folder(clap_folder, max_length=2)
    with pytest.raises(ValueError, match="max_length is 1; it has to be at least 2"):
        T5Tokenizer.from_folder(t5_folder, max_length=1)


# ---- prompts


@pytest.mark.parametrize("prompt", [None, 3, ["a"], b"a"])
def test_rejects_prompts_that_are_not_texts(tokenizer: ClapTokenizer | T5Tokenizer, prompt: object):
    for method in (tokenizer.encode, tokenizer.truncated_part):
        with pytest.raises(
            ArgumentError, match=rf"^prompt is {re.escape(repr(prompt))}; it has to be a text"
        ):
            method(prompt)


def test_rejects_a_lone_surrogate(tokenizer: ClapTokenizer | T5Tokenizer):
    with pytest.raises(
        ValueError, match=r"lone surrogate, U\+D83D at position 2; it has to be valid Unicode"
    ):
        tokenizer.encode("ab\ud83d")


PIECES = [
    "<s>",
    "</s>",
    "<pad>",
    "<mask>",
    "<unk>",
    "<extra_id_0>",
    "\uff1c/s\uff1e",
    "▁",
    " ",
    "\x00",
    "\u200d",
    "\x85",
    "dog",
]
PROMPTS = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=()), max_size=8), max_size=8
).map("".join)


@pytest.mark.slow
@settings(max_examples=full_or(1000, 250), deadline=None)
@given(text=PROMPTS)
def test_any_text_is_encoded_or_rejected(tokenizer: ClapTokenizer | T5Tokenizer, text: str):
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        assert any("\ud800" <= c <= "\udfff" for c in text) and "lone surrogate" in str(error)
        return
    assert ids[-1:] == tokenizer.after and ids[: len(tokenizer.before)] == tokenizer.before
    assert all(0 <= i < tokenizer.splitter.get_vocab_size() for i in ids)
    assert ids == tokenizer.encode(text)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=8).map("".join))
def test_truncated_part_is_the_end_of_the_text(
    clap_folder: Path, t5_folder: Path, clap: ClapTokenizer, t5: T5Tokenizer, text: str
):
    for whole in (clap, t5):
        short = type(whole)(whole.splitter, max_length=5)
        assert len(short.encode(text)) <= 5
        assert text.endswith(short.truncated_part(text))
        assert bool(short.truncated_part(text)) == (len(whole.encode(text)) > 5)


# ---- files


def test_empty_folder_names_the_missing_files(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"must hold tokenizer.json, or merges.txt and vocab.json: copy"):
        ClapTokenizer.from_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"must hold tokenizer.json, or spiece.model: copy"):
        T5Tokenizer.from_folder(tmp_path / "nowhere")


def test_merges_need_a_vocabulary(clap_folder: Path, tmp_path: Path):
    shutil.copy(clap_folder / "merges.txt", tmp_path)
    with pytest.raises(WeightsError, match=r"must hold .*vocab.json"):
        ClapTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_truncated_clap_file_is_named(clap_folder: Path, tmp_path: Path, name: str, keep: float):
    content = (clap_folder / name).read_bytes()
    folder = copy_of(clap_folder, tmp_path)
    cut = content[: int(len(content) * keep)]
    (folder / name).write_bytes(cut if name == "vocab.json" else cut[: cut.rfind(b" ") + 1])
    with pytest.raises(WeightsError, match=rf"{name} is not .*copy the tokenizer's files"):
        ClapTokenizer.from_folder(folder)


def test_merges_truncated_at_the_end_of_a_line_are_rejected(clap_folder: Path, tmp_path: Path):
    folder = copy_of(clap_folder, tmp_path)
    lines = (folder / "merges.txt").read_text("utf-8").splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(lines[: len(lines) // 2]), "utf-8")
    with pytest.raises(WeightsError, match=r"merges.txt is not .*cannot make 400 tokens"):
        ClapTokenizer.from_folder(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100, "half"])
def test_damaged_spiece_model_is_named(t5_folder: Path, tmp_path: Path, content: bytes | str):
    model = (t5_folder / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(model[: len(model) // 2] if content == "half" else content)
    with pytest.raises(WeightsError, match=r"spiece.model is not T5's unigram vocabulary"):
        T5Tokenizer.from_folder(tmp_path)


def test_git_lfs_pointer_is_recognised(tmp_path: Path):
    for name, kind in (("spiece.model", T5Tokenizer), ("tokenizer.json", ClapTokenizer)):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(WeightsError, match=rf"{name} is not .* \(it is a Git LFS pointer, .*\): copy"):
            kind.from_folder(tmp_path)


@pytest.mark.parametrize("kind", [ClapTokenizer, T5Tokenizer])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model": {}}', '{"model": {"vocab": 3, "merges": [1]}}']
)
def test_damaged_tokenizer_json_is_named(kind: type, tmp_path: Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match=r"tokenizer.json is not "):
        kind.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["[", '{"added_tokens_decoder": {"4": {"lstrip": true}}}'])
def test_damaged_config_is_named(clap_folder: Path, tmp_path: Path, content: str):
    with pytest.raises(
        WeightsError, match=r"tokenizer_config.json is not a JSON|describe the special tokens"
    ):
        ClapTokenizer.from_folder(copy_of(clap_folder, tmp_path, tokenizer_config_json=content))


@pytest.mark.parametrize("token", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
def test_rejects_a_vocabulary_without_a_special_token(clap_folder: Path, tmp_path: Path, token: str):
    vocab = json.loads((clap_folder / "vocab.json").read_text("utf-8"))
    vocab["other"] = vocab.pop(token)
    folder = copy_of(clap_folder, tmp_path, vocab_json=json.dumps(vocab))
    with pytest.raises(WeightsError, match=f"{token} must be "):
        ClapTokenizer.from_folder(folder)


def test_rejects_special_tokens_in_another_order(tmp_path: Path):
    sentencepiece.SentencePieceTrainer.train(  # sentencepiece's own order: unk 0, bos 1, eos 2
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(WeightsError, match=r"spiece.model is not .*<pad> must be token 0, not None"):
        T5Tokenizer.from_folder(tmp_path)


def test_files_lists_every_file_that_is_read(clap_folder: Path, t5_folder: Path):
    for kind, folder in ((ClapTokenizer, clap_folder), (T5Tokenizer, t5_folder)):
        assert {path.name for path in folder.iterdir()} <= set(kind.FILES)
