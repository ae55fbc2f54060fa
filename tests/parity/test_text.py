"""Token ids against transformers, for every layout of tokenizer folders in published checkpoints.

The vocabularies are trained here. If the published ones lie beside the repository, they are tested too.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from audioldm2.prompt.tokenizer_files import bytes_field
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer, pad
from tests.support.sizes import full_or

CORPUS = [
    "Techno music with a strong beat",
    "A hammer hitting a wooden surface, again and again",
    "a dog barks while the rain falls on the roof",
    "A man speaks; birds sing 12 songs (live) & the crowd cheers! Don't stop. kkk lll aaa",
    "Ünïcödé: 日本の音楽 and שלום e\u0301 1\u20442 \u0f80",
]
# fmt: off
SPECIALS = [
    "<s>", "</s>", "<pad>", "<mask>", "<unk>", "<extra_id_0>", "<extra_id_7>", "<extra_id_99>",
    "<extra_id_100>", "\uff1c/s\uff1e", "\uff1cpad\uff1e", "<", "</", "s>", "<mask", "<MASK>",
    "<|endoftext|>",
]
SPACES = [
    " ", "  ", "\n", "\t", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\u200b", "\u200d", "\u2581",
    "\u0301", "\x00",
]
TRICKY = [
    "", " ", "   ", "\n", "\t \r\n", "a", " a", "a ", "  a  b  ", "a\nb\tc", "\x00", "a\x00b", "\x85",
    "a\x85b", "x <mask> y", "x<mask>y", "x  <mask>  y", "\n<mask>", "\u3000<mask>", "<mask><mask>",
    "x <extra_id_0> y", "x<extra_id_1>y", "<extra_id_0> <extra_id_1>", "a </s> b", "a</s>b", " <s> ",
    "<pad>", "<unk>", "<<s>>", "</s", "<extra_id_", "<extra_id_0", "\u2581", "\u2581a", "a\u2581b",
    "\u2581\u2581", "a \u2581 b", "\u2581<s>", "\uff1c/s\uff1e", "<\uff53>", "\uff21\uff22\uff23\u0359",
    "\xbd\u0f80a", "a\xa0\u1cd6", "e\u0301", "e\u0301\u1ab5", "\u212b \ufb01 \u338f \u2460 \u3392",
    "\uff76\uff9e", "\u1100\u1161\u11a8", "\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f467\u200d\U0001f466", "日本語の音", "שלום עולם", "مرحبا", "\u202eabc\u202c",
    "\u200b", "a\u200bb", "\ufeffa", "a\u00adb", "\u2028", "a\u2003b", "\u180e", "\x7f\x1b[0m",
    "\ud7ff\ue000\uffff\U0010ffff", "kkkk lllll", "don't we'll I'm", "3.14 12345", "a" * 3000,
    "a dog barks " * 300, "日" * 700, "a <mask> </s>" * 200, "\x00" * 600,
]
CLAP_CONFIG = {  # as published with AudioLDM 2
    "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>", "add_prefix_space": False, "errors": "replace",
    "model_max_length": 512, "tokenizer_class": "RobertaTokenizer", "trim_offsets": True,
}
T5_CONFIG = {
    "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 100,
    "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
}
# fmt: on
PROMPTS = st.lists(st.sampled_from(SPECIALS + SPACES + TRICKY[1:60]) | st.text(max_size=12), max_size=10).map(
    "".join
)


def flags(content: str, **changed: bool) -> dict:
    return dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False) | changed


def write(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content), "utf-8")


# ---- vocabularies: each function fills a folder with the plain vocabulary files

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"


def small_clap(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))


def small_t5(folder: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    (folder / "spiece.model").write_bytes(model.getvalue())


def copied(*names: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in names:
            shutil.copy(REAL / name, folder)

    return fill


CLAP_VOCABULARIES = {"small": small_clap}
T5_VOCABULARIES = {"small": small_t5}
if REAL.is_dir():
    CLAP_VOCABULARIES["published"] = copied("roberta/vocab.json", "roberta/merges.txt")
    T5_VOCABULARIES["published"] = copied("t5/spiece.model")

# ---- layouts: each function turns such a folder into one that a checkpoint may contain


def clap_reference(folder: Path) -> transformers.RobertaTokenizerFast:
    return transformers.RobertaTokenizerFast.from_pretrained(folder)


def t5_reference(folder: Path) -> transformers.T5TokenizerFast:
    """from_pretrained, or its equivalent for spiece.model alone if the package protobuf is missing."""
    if (folder / "tokenizer.json").exists() or transformers.utils.is_protobuf_available():
        return transformers.T5TokenizerFast.from_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"spiece.model"}
    proto = (folder / "spiece.model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    charsmap = bytes_field(bytes_field(proto, 3), 2)  # the unit tests compare it with sentencepiece
    return transformers.T5TokenizerFast(vocab=vocab, _spm_precompiled_charsmap=charsmap)


def one_file(folder: Path, tokenizer: transformers.PreTrainedTokenizerFast, **flagged: dict) -> None:
    """Write tokenizer.json, with changed flags for some of its tokens."""
    serialized = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in serialized["added_tokens"]:
        token.update(flagged.get(token["content"].strip("<>").split("_")[0], {}))  # "<extra_id_0>": extra
    write(folder, "tokenizer.json", serialized)


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def clap_plain(folder: Path) -> None:
    """vocab.json and merges.txt alone."""


def clap_published(folder: Path) -> None:
    one_file(folder, clap_reference(folder), mask={"lstrip": True})
    write(folder, "tokenizer_config.json", CLAP_CONFIG)
    write(folder, "special_tokens_map.json", {"mask_token": flags("<mask>", lstrip=True), "bos_token": "<s>"})


def clap_slow(folder: Path) -> None:
    write(folder, "tokenizer_config.json", CLAP_CONFIG)
    write(folder, "special_tokens_map.json", {"mask_token": flags("<mask>", lstrip=True)})


def clap_old_config(folder: Path) -> None:
    mask = flags("<mask>", lstrip=True, normalized=True) | {"__type": "AddedToken"}
    write(folder, "tokenizer_config.json", CLAP_CONFIG | {"mask_token": mask, "add_prefix_space": True})


def clap_decoder(folder: Path) -> None:
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    one_file(folder, clap_reference(folder), mask={"rstrip": True})
    tokens = [flags("<s>", normalized=True), flags("<pad>", rstrip=True), flags("<mask>", lstrip=True)]
    decoder = {str(vocab[token["content"]]): token | {"special": True} for token in tokens}
    write(folder, "tokenizer_config.json", CLAP_CONFIG | {"added_tokens_decoder": decoder})
    write(folder, "special_tokens_map.json", {"mask_token": flags("<mask>", single_word=True)})


def clap_one_file(folder: Path) -> None:
    one_file(folder, clap_reference(folder), mask={"lstrip": True})
    without(folder, "vocab.json", "merges.txt")


def clap_resaved(folder: Path) -> None:
    clap_slow(folder)
    tokenizer = clap_reference(folder)
    without(folder, *(path.name for path in folder.iterdir()))
    tokenizer.save_pretrained(folder)


def t5_plain(folder: Path) -> None:
    """spiece.model alone."""


def t5_published(folder: Path) -> None:
    one_file(folder, t5_reference(folder), extra={"lstrip": True, "rstrip": True})
    write(folder, "tokenizer_config.json", T5_CONFIG)
    extra = {"additional_special_tokens": T5_CONFIG["additional_special_tokens"]}
    write(folder, "special_tokens_map.json", {"eos_token": flags("</s>", rstrip=True)} | extra)


def t5_both(folder: Path) -> None:
    """Two files that disagree; tokenizer.json takes precedence."""
    one_file(folder, t5_reference(folder), extra={"rstrip": True})
    serialized = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    serialized["model"]["vocab"][3:] = serialized["model"]["vocab"][:2:-1]
    write(folder, "tokenizer.json", serialized)


def t5_one_file(folder: Path) -> None:
    one_file(folder, t5_reference(folder), extra={"lstrip": True, "rstrip": True})
    without(folder, "spiece.model")


def t5_decoder(folder: Path) -> None:
    tokenizer = t5_reference(folder)
    one_file(folder, tokenizer)
    tokens = [
        flags("</s>", normalized=True),
        flags("<unk>", lstrip=True),
        flags("<extra_id_0>", single_word=True),
    ]
    decoder = {str(tokenizer.convert_tokens_to_ids(t["content"])): t | {"special": True} for t in tokens}
    write(folder, "tokenizer_config.json", T5_CONFIG | {"added_tokens_decoder": decoder})


def t5_resaved(folder: Path) -> None:
    t5_published(folder)
    tokenizer = t5_reference(folder)
    without(folder, *(path.name for path in folder.iterdir()))
    tokenizer.save_pretrained(folder)


CLAP_LAYOUTS = [
    clap_plain,
    clap_published,
    clap_slow,
    clap_old_config,
    clap_decoder,
    clap_one_file,
    clap_resaved,
]
T5_LAYOUTS = [t5_plain, t5_published, t5_both, t5_one_file, t5_decoder, t5_resaved]
# Files beside the vocabulary are about special tokens: the small vocabularies show it as well. Those of the
# published files are read in the two forms that a vocabulary has, and as published.
WHOLE_VOCABULARY = (clap_plain, clap_one_file, t5_plain, t5_one_file)
CASES = [
    pytest.param((kind, reference, fill, layout), id=f"{layout.__name__}-{name}")
    for kind, reference, vocabularies, layouts in (
        (ClapTokenizer, clap_reference, CLAP_VOCABULARIES, CLAP_LAYOUTS),
        (T5Tokenizer, t5_reference, T5_VOCABULARIES, T5_LAYOUTS),
    )
    for name, fill in vocabularies.items()
    for layout in layouts
    if name == "small" or layout in (*WHOLE_VOCABULARY, clap_published, t5_published)
]
if REAL.is_dir():
    fill = copied(*(f"t5/{path.name}" for path in (REAL / "t5").iterdir()))
    CASES.append(pytest.param((T5Tokenizer, t5_reference, fill, t5_plain), id="t5_all_files-published"))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    kind, reference, fill, layout = request.param
    folder = tmp_path_factory.mktemp("tokenizer")
    fill(folder)
    layout(folder)
    return kind.from_folder(folder), reference(folder)


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """The stride of a sweep over all characters with this case; 1 takes all of them, as the full tests do.

    Characters are read by the vocabulary, in either of its forms; other files are about special tokens.
    """
    _, _, fill, layout = request.node.callspec.params["pair"]
    best = [vocabularies.get("published", vocabularies["small"])
            for vocabularies in (CLAP_VOCABULARIES, T5_VOCABULARIES)]  # fmt: skip
    return full_or(1, 5) if layout in WHOLE_VOCABULARY and fill in best else 29


def assert_equal(pair: tuple, text: str) -> None:
    ours, reference = pair
    expected = reference(text, max_length=ours.max_length, truncation=True).input_ids
    assert ours.encode(text) == expected, ascii(text)


def test_ids_of_difficult_prompts(pair: tuple):
    for text in [*CORPUS, *SPECIALS, *TRICKY, *(f"a {s} b{s}c  {s}{s}" for s in SPECIALS + SPACES)]:
        assert_equal(pair, text)


@settings(max_examples=full_or(60, 25), deadline=None)
@given(text=PROMPTS)
def test_ids_of_any_prompt(pair: tuple, text: str):
    assert_equal(pair, text)


def test_ids_of_every_character(pair: tuple, stride: int):
    """Every character between letters, 60 to a prompt; beyond U+FFFF, every 29th."""
    characters = [chr(i) for i in [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 29)]]
    for start in range(0, len(characters), 60 * stride):
        assert_equal(pair, " a".join(f"{c}b" for c in characters[start : start + 60]))


def test_ids_and_mask_of_a_padded_batch(pair: tuple):
    ours, reference = pair
    texts = ["a", "", "a<pad>b <pad>", "a dog barks while the rain falls " * 100]
    batch = reference(texts, padding="max_length", max_length=600, return_tensors="pt", truncation=True)
    long = type(ours)(ours.splitter, max_length=600)
    tokens = pad([long.encode(text) for text in texts], ours.pad_id, length=600)
    assert tokens.ids.equal(batch.input_ids)
    assert tokens.mask.equal(batch.attention_mask.bool())


def test_truncated_part_is_what_the_reference_cuts(pair: tuple):
    ours, reference = pair
    text = "a dog barks <pad> while </s> it rains " * 100
    assert len(reference(text).input_ids) > ours.max_length
    kept = text.removesuffix(ours.truncated_part(text))
    assert reference(kept).input_ids == ours.encode(text)
