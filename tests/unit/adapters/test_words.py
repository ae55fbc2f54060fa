"""A loaded model with new words: prompts with and without them, and files that are refused."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2
from audioldm2.adapters import words
from audioldm2.adapters.model import BaseWarning
from audioldm2.errors import WeightsError
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.words import Word

SETTINGS: dict[str, Any] = dict(seed=3, num_inference_steps=1, audio_length_in_s=0.32)


@pytest.fixture
def model(tiny_folder: Path) -> AudioLDM2:
    return audioldm2.load(tiny_folder, device="cpu", dtype="float32", ops="reference")


@pytest.fixture(scope="module")
def files(tiny_model: AudioLDM2, tmp_path_factory) -> dict[str, Path]:
    """<zorp>, two vectors that CLAP reads as "a bell", and <oud>, one."""
    folder, dim = tmp_path_factory.mktemp("words"), tiny_model.networks.configs["t5"].dim
    for text, like, count in (("zorp", "a bell", 2), ("oud", "a lute", 1)):
        vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(count))
        words.write(Word(f"<{text}>", like, vectors, metadata={"license": "free"}), folder / text)
    return {name: folder / name for name in ("zorp", "oud")}


def row(conditioning: Conditioning, place: int) -> dict[str, Tensor]:
    """The tensors of one prompt, without padding."""
    one = conditioning[place : place + 1]
    kept = one.t5_mask[0]
    return one.tensors | {"t5_mask": one.t5_mask[:, kept], "text_context": one.text_context[:, kept]}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_prompts_without_the_word_and_unloaded_models_are_as_before(model: AudioLDM2, files):
    before = model.generate("a dog barks", negative_prompt="zorp", **SETTINGS)
    unknown = model.generate("a <zorp>", **SETTINGS)
    assert model.load_word(files["zorp"]) == "<zorp>"
    after = model.generate("a dog barks", negative_prompt="zorp", **SETTINGS)
    assert torch.equal(after.audio, before.audio)
    with_word = model.generate("a <zorp>", **SETTINGS)
    assert not torch.equal(with_word.audio, unknown.audio)
    model.unload_word("<zorp>")
    assert torch.equal(model.generate("a <zorp>", **SETTINGS).audio, unknown.audio) and not model.words


def test_ids_of_a_word_stand_where_the_word_does(model: AudioLDM2):
    plain = model.t5_tokenizer
    assert plain is not None
    tokenizer = type(plain)(plain.splitter, plain.max_length, {"<zorp>": (900, 901)})
    assert tokenizer.encode("a bell") == plain.encode("a bell")
    a, end = plain.encode("a")
    for text in ("a <zorp>", "a<zorp>", "a  <zorp> "):
        assert tokenizer.encode(text) == [a, 900, 901, end]
    assert tokenizer.encode("<zorp><zorp>") == [900, 901, 900, 901, end]
    comma = plain.encode(",")[:-1]
    assert tokenizer.encode("<zorp>,") == [900, 901, *comma, end]
    assert tokenizer.encode("<ZORP> zorp") == plain.encode("<ZORP> zorp")
    short = type(plain)(plain.splitter, 3, {"<zorp>": (900, 901)})
    assert short.encode("a <zorp>") == [a, 900, end] and short.truncated_part("a <zorp> b") == "<zorp> b"


def test_vectors_equal_to_those_of_a_token_give_the_conditioning_of_that_token(
    model: AudioLDM2, tmp_path: Path
):
    assert model.t5_tokenizer is not None
    ids = model.t5_tokenizer.encode("bell")[:-1]
    with model.networks.running("t5") as t5:
        vectors = t5.embedding.weight[ids].clone()
    words.write(Word("<zorp>", "bell", vectors), tmp_path / "zorp")
    model.load_word(tmp_path / "zorp")
    expected = model.encode_prompt(["a bell", "bell bell"], "bell")
    found = model.encode_prompt(["a <zorp>", "<zorp> bell"], "<zorp>")
    assert expected.negative is not None and found.negative is not None
    for a, b in ((expected, found), (expected.negative, found.negative)):
        assert same(row(a, 0), row(b, 0)) and same(row(a, 1), row(b, 1))


def test_batch_with_two_words_equals_each_prompt_alone(model: AudioLDM2, files):
    model.load_word(files["oud"])
    model.load_word(files["zorp"] / words.FILE)
    prompts = ["a <zorp>, loud", "a dog barks", "an <oud> and a <zorp>; <zorp>!"]
    together = model.encode_prompt(prompts, ["", "<oud>", "no <zorp>"])
    for place, (prompt, negative) in enumerate(zip(prompts, ["", "<oud>", "no <zorp>"], strict=True)):
        alone = model.encode_prompt(prompt, negative)
        assert same(row(together, place), row(alone, 0))
        assert together.negative is not None and alone.negative is not None
        assert same(row(together.negative, place), row(alone.negative, 0))


def test_order_of_loading_does_not_matter(model: AudioLDM2, files):
    model.load_word(files["oud"])
    model.load_word(files["zorp"])
    first = row(model.encode_prompt("an <oud> and a <zorp>"), 0)
    model.unload_word()
    model.load_word(files["zorp"])
    model.load_word(files["oud"])
    assert same(row(model.encode_prompt("an <oud> and a <zorp>"), 0), first)


@pytest.mark.slow
def test_clap_reads_what_the_word_is_like(model: AudioLDM2, files):
    wave = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    expected = model.score("a loud a bell", wave)
    model.load_word(files["zorp"])
    assert torch.equal(model.score("a loud <zorp>", wave), expected)
    assert torch.equal(model.score(["a loud <zorp>"] * 2, wave), expected)


def test_record_names_the_words_of_the_request(model: AudioLDM2, files):
    def load_another(stage: str) -> None:
        if not model.words:
            model.load_word(files["zorp"])

    result = model.generate("a <zorp>", on_stage=load_another, **SETTINGS)
    assert result.record()["words"] == []
    record = model.generate("a <zorp>", **SETTINGS).record()["words"]
    assert [(each["word"], each["like"], each["vectors"], each["license"]) for each in record] == [
        ("<zorp>", "a bell", 2, "free")
    ]
    assert record == model.describe()["words"] and len(record[0]["sha256"]) == 64


@pytest.mark.slow
def test_threads_get_the_sounds_of_the_words_they_began_with(model: AudioLDM2, files):
    expected = {0: model.generate("a <zorp>", **SETTINGS).latents}
    model.load_word(files["zorp"])
    expected[1] = model.generate("a <zorp>", **SETTINGS).latents
    results: list[audioldm2.Result] = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(model.generate("a <zorp>", **SETTINGS) for _ in range(3))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        model.unload_word()
        model.load_word(files["zorp"])
    assert len(results) == 6
    for result in results:
        assert torch.equal(result.latents, expected[len(result.record()["words"])])


# What is refused --------------------------------------------------------------------------------------------


def test_word_that_is_loaded_or_known_is_refused(model: AudioLDM2, files, tmp_path: Path):
    model.load_word(files["zorp"])
    with pytest.raises(ValueError, match="word is '<zorp>'; it has to differ from the words that are loaded"):
        model.load_word(files["zorp"])
    dim = model.networks.configs["t5"].dim
    for text, why in (("<pad>", "be new: T5's vocabulary has it already"), ("zorp", "be letters, digits")):
        words.write(Word(text, "a bell", torch.zeros(1, dim)), tmp_path / text)
        with pytest.raises(ValueError, match=f"word is '{text}'; it has to {why}"):
            model.load_word(tmp_path / text)
    with pytest.raises(ValueError, match="word is '<oud>'; it has to be one of <zorp>"):
        model.unload_word("<oud>")
    assert [each.text for each in model.words] == ["<zorp>"]


def _wider(file: Path, state: dict[str, Tensor]) -> None:
    save_file({"t5": torch.zeros(1, 7)}, file, {"word": "<zorp>", "like": "a bell"})


def _nan(file: Path, state: dict[str, Tensor]) -> None:
    save_file({"t5": state["t5"] * torch.nan}, file, {"word": "<zorp>", "like": "a bell"})


def _without_name(file: Path, state: dict[str, Tensor]) -> None:
    save_file(state, file)


def _cut(file: Path, state: dict[str, Tensor]) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    "damage, why",
    [
        (_wider, r"t5 is \(1, 7\) and should be \(vectors, \d+\)\. It belongs to a model of another size"),
        (_nan, "t5 in .* is not finite"),
        (_without_name, r"Is it a LoRA adapter \(--lora\)\?"),
        (_cut, "word.safetensors"),
        (lambda file, state: file.unlink(), "cannot be found"),
    ],
)
def test_damaged_file_is_refused(damage: Callable, why: str, model: AudioLDM2, files, tmp_path: Path):
    file = tmp_path / words.FILE
    file.write_bytes((files["zorp"] / words.FILE).read_bytes())
    damage(file, load_file(file))
    with pytest.raises(WeightsError, match=why):
        model.load_word(tmp_path)
    assert not model.words


def test_model_without_t5_is_refused(model: AudioLDM2, files):
    model.t5_tokenizer = None
    with pytest.raises(ValueError, match="be for a model with T5, which reads it; this model has none"):
        model.load_word(files["zorp"])


def test_word_of_another_t5_warns(model: AudioLDM2, tmp_path: Path):
    vectors = torch.ones(1, model.networks.configs["t5"].dim)
    metadata = {"base_model": "./another", "base_sha256": "0" * 64}
    words.write(Word("<oud>", "a lute", vectors, metadata=metadata), tmp_path / "oud")
    with pytest.warns(
        BaseWarning, match="<oud> was trained on other weights than this model has, those of ./an"
    ):
        model.load_word(tmp_path / "oud")


def test_folder_of_anything_else_is_not_replaced(tmp_path: Path):
    (tmp_path / "song.wav").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds no word\.safetensors, and a folder of"):
        words.write(Word("<oud>", "a lute", torch.ones(1, 8)), tmp_path, force=True)
    assert (tmp_path / "song.wav").read_text() == "mine"
