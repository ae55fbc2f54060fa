"""A whole speech model, as the reference saves it, through our pipeline and the reference's: ids to sounds.

The reference reads phonemes in T5's place. Where we differ on purpose, a test shows both behaviours.
"""

import random
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from diffusers import AudioLDM2Pipeline
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2, convert
from audioldm2.convert.phonemes import SYMBOLS
from audioldm2.errors import WeightsError
from audioldm2.prompt.encode import Row, TextEncoders
from audioldm2.prompt.phonemes import UnknownSymbolWarning
from audioldm2.prompt.tokenizers import pad
from scripts.make_reference_checkpoint import make
from tests.support.checkpoints import change_json

LEAST = 60  # dB of signal over error
PROMPT = "a dog barks while the rain falls"
END, ROOM = 182, 310
HELLO = "həlo, wɜld!"
pytestmark = pytest.mark.filterwarnings("ignore::audioldm2.TruncationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    make(folder, "tiny-speech")
    return folder


@pytest.fixture(scope="module")
def pipe(folder) -> AudioLDM2Pipeline:
    pipe = AudioLDM2Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(folder) -> AudioLDM2:
    return audioldm2.load(folder, device="cpu")


def drawn(length: int) -> str:
    """Random phonemes, but for those that pad and end a text."""
    return "".join(random.Random(length).choices(SYMBOLS[1:END], k=length))


def reference_ids(pipe: AudioLDM2Pipeline, phonemes: str) -> Tensor:
    """What the reference's encoder reads, (310,): the first 0 becomes the end."""
    ids = pipe.tokenizer_2(
        phonemes, padding="max_length", max_length=ROOM, truncation=True, return_tensors="pt"
    ).input_ids[0]
    for place in (ids == 0).nonzero()[:1]:
        ids[place] = END
    return ids


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.std() > 0.01, "the reference's output is too small to judge"
    return ((found - expected).norm() / expected.norm()).item()


def signal_to_error(found: Tensor, expected: Tensor) -> float:
    """dB."""
    return -20 * torch.tensor(relative(found, expected) + 1e-20).log10().item()


# Phonemes to vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 9, 308, 309])
def test_ids(pipe, model, length):
    ids = model.phoneme_tokenizer.encode(drawn(length))
    assert len(ids) == length + 1 and ids[-1] == END
    assert torch.equal(pad([ids], 0, ROOM).ids[0], reference_ids(pipe, drawn(length)))


@pytest.mark.parametrize("length", [310, 400])
def test_reference_loses_the_end_of_long_texts(pipe, model, length):
    ids, theirs = model.phoneme_tokenizer.encode(drawn(length)), reference_ids(pipe, drawn(length)).tolist()
    assert ids[:-1] == theirs[:-1] and len(ids) == len(theirs) == ROOM
    assert ids[-1] == END != theirs[-1]


def test_reference_ends_a_text_at_an_unknown_symbol(pipe, model):
    """The symbol becomes the end, and the end is lost."""
    with pytest.warns(UnknownSymbolWarning, match="'€'"):
        ids = model.phoneme_tokenizer.encode("ab€ba")
    a, b = SYMBOLS.index("a"), SYMBOLS.index("b")
    assert ids == [a, b, b, a, END]
    assert reference_ids(pipe, "ab€ba")[:6].tolist() == [a, b, END, b, a, 0]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 9, 308, 309])
def test_vectors(pipe, model, length):
    """Of the phoneme encoder, the projection and GPT-2; the negative ones too."""
    phonemes = drawn(length)
    theirs, mask, generated = pipe.encode_prompt(PROMPT, "cpu", 1, True, transcription=phonemes)
    encoders = TextEncoders(model.networks, model.clap_tokenizer, None)
    ids = tuple(model.phoneme_tokenizer.encode(phonemes))
    vectors = encoders.read([Row(PROMPT, PROMPT, ROOM, phonemes=ids)])
    assert torch.equal(vectors.t5_mask, mask[1:].bool())
    error = (vectors.t5 - theirs[1:] * mask[1:, :, None]).abs().max()
    assert error <= 1e-5
    projected = []
    hook = pipe.projection_model.register_forward_hook(lambda *call: projected.append(call[-1]))
    pipe.encode_prompt(PROMPT, "cpu", 1, False, transcription=phonemes, max_new_tokens=1)
    hook.remove()
    with model.networks.running("projection") as projection:
        sequence, joined = projection(*vectors)
    assert torch.equal(joined, projected[0].attention_mask.bool())
    kept = joined[..., None]  # the reference's encoder leaves noise at padding, which nothing reads
    assert (sequence - projected[0].hidden_states).mul(kept).abs().max() <= 1e-5
    cond = model.encode_prompt(PROMPT, phonemes=phonemes)
    assert relative(cond.gpt2_context, generated[1:]) <= 1e-4
    assert relative(cond.negative.gpt2_context, generated[:1]) <= 1e-4


@torch.no_grad()
def test_512_vectors(pipe, model):
    """As many as the published models generate, at the published positions up to 826."""
    _, _, expected = pipe.encode_prompt(PROMPT, "cpu", 1, False, transcription=HELLO, max_new_tokens=512)
    encoders = TextEncoders(model.networks, model.clap_tokenizer, None)
    ids = tuple(model.phoneme_tokenizer.encode(HELLO))
    vectors = encoders.read([Row(PROMPT, PROMPT, ROOM, phonemes=ids)])
    with model.networks.running("projection") as projection, model.networks.running("gpt2") as gpt2:
        found = gpt2.generate(*projection(*vectors), 512)
    assert relative(found, expected) <= 1e-4


def test_reference_dies_of_an_empty_transcription(pipe, model):
    assert model.phoneme_tokenizer.encode("") == [END]
    assert model.encode_prompt(PROMPT, phonemes="").gpt2_context.isfinite().all()
    with pytest.raises(RuntimeError):
        pipe.encode_prompt(PROMPT, "cpu", 1, True, transcription="")


# Export -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_exported_model_speaks_in_the_reference(folder, pipe, model, tmp_path):
    """What the export leaves out of VITS, the reference makes up and never runs."""
    convert.write_diffusers(convert.read_diffusers(folder), tmp_path / "out")
    exported = AudioLDM2Pipeline.from_pretrained(tmp_path / "out")
    assert exported.tokenizer_2.phonemize
    exported.tokenizer_2.phonemize = False  # it would ask for a package that we do not need
    for found, expected in zip(
        exported.encode_prompt(PROMPT, "cpu", 1, True, transcription=HELLO),
        pipe.encode_prompt(PROMPT, "cpu", 1, True, transcription=HELLO),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    back = convert.read_diffusers(tmp_path / "out")
    assert back.configs == convert.read_diffusers(folder).configs
    assert back.symbols == SYMBOLS and back.seconds == 10.24 and back.unconditional == "reference"


def test_export_refuses_another_number_of_symbols(folder, tmp_path):
    """The reference ends every text with 182."""
    checkpoint = convert.read_diffusers(folder)
    checkpoint.configs["phonemes"] = replace(checkpoint.configs["phonemes"], vocabulary=60)
    with pytest.raises(WeightsError, match="has 60 phoneme symbols; the reference ends every text with"):
        convert.write_diffusers(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(("said", "read"), [(None, 512), (8, 512), (20, 20)])
def test_number_of_vectors(folder, tmp_path, said, read):
    """What a config leaves out, or copies from the models of sounds, is the published number."""
    copytree(folder, tmp_path / "copy")
    change_json(tmp_path / "copy" / "language_model" / "config.json", max_new_tokens=said)
    assert convert.read_diffusers(tmp_path / "copy").configs["gpt2"].new_vectors == read


# Sounds -----------------------------------------------------------------------------------------------------


def sounds(pipe, model, prompt, phonemes, *, negative_prompt=None, guidance_scale=3.5, **ours):
    """Ours and the reference's from the same latents, (prompts, samples) each."""
    count = len(prompt) if isinstance(prompt, list) else 1
    latents = torch.randn(count, 3, 25, 4)
    request = dict(
        audio_length_in_s=1.0, num_inference_steps=5, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, latents=latents,
    )  # fmt: skip
    expected = pipe(prompt, transcription=phonemes, output_type="pt", **request).audios
    found = model.generate(prompt, phonemes=phonemes, sampler="ddim", **request, **ours).audio[:, 0]
    return found, expected


@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, "noise"), (3.5, None), (3.5, "noise")])
def test_sound(pipe, model, guidance_scale, negative_prompt):
    request = dict(guidance_scale=guidance_scale, negative_prompt=negative_prompt)
    assert signal_to_error(*sounds(pipe, model, PROMPT, HELLO, **request)) >= LEAST


def test_several_prompts_with_a_text_each(pipe, model):
    found, expected = sounds(pipe, model, [PROMPT, "a church bell"], [HELLO, "ab"])
    for one, other in zip(found, expected, strict=True):
        assert signal_to_error(one, other) >= LEAST


def test_trained_reading_differs_from_the_reference(pipe, model):
    """Upstream's: zeros in place of GPT-2's vectors."""
    assert model.unconditional == "reference"
    assert signal_to_error(*sounds(pipe, model, PROMPT, HELLO, unconditional="trained")) < 40
