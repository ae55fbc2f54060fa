"""What only speech and 48 kHz models have: phoneme encoder, learned positions, CLAP beside the time.

Each against the reference's, through our converter: float32, every parameter random, atol 1e-5.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
from torch import Tensor, nn
from transformers import ClapFeatureExtractor, VitsModel, VitsTokenizer

from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.convert import PARTS, convert_state, sources
from audioldm2.errors import WeightsError
from audioldm2.models.unet import LAST_SELF, SELF
from audioldm2.runtime import placement
from scripts.make_reference_checkpoint import small_tokenizers
from tests.support import reference

ATOL = 1e-5
SYMBOLS = "_;:,.!? abcdefghijklmnop"


def vits(seed: int = 0, **changes) -> VitsModel:
    """Return a tiny VITS with the parts beside the text encoder, which the converter drops."""
    return reference.vits(seed, vocab_size=len(SYMBOLS), **changes)


def projection(positions: int, **changes) -> AudioLDM2ProjectionModel:
    config = dict(
        text_encoder_dim=10, text_encoder_1_dim=12, langauge_model_dim=12,
        use_learned_position_embedding=True, max_seq_length=positions,
    )  # fmt: skip
    return reference.randomise(AudioLDM2ProjectionModel(**(config | changes)))


def film_unet(**changes) -> AudioLDM2UNet2DConditionModel:
    config = dict(
        cross_attention_dim=((None, None),) * 3, class_embed_type="simple_projection",
        class_embeddings_concat=True, projection_class_embeddings_input_dim=10,
    )  # fmt: skip
    return reference.unet(**(config | changes))


def ours(name: str, model: nn.Module, tmp_path: Path) -> nn.Module:
    """Return our network, loaded from the files that the reference saves."""
    folder = reference.save(tmp_path, PARTS[name].folder, model)
    config = PARTS[name].config_from(sources.read_config(folder, name))
    state = convert_state(name, config, sources.read_state(folder), str(folder))
    checkpoint = storage.Checkpoint({name: config}, {name: lambda: state}, {}, {}, {}, str(folder))
    return placement.materialise(checkpoint, name, device=torch.device("cpu"), dtype=torch.float32)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-2, "the reference's output is too small to judge"
    error = (found - expected).abs().max().item()
    assert error <= ATOL, f"max abs error {error:.2e}"


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def encoded(model: VitsModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the part of its output that the reference's pipeline uses."""
    mask = mask.long()
    return model.text_encoder(
        ids, padding_mask=mask[..., None].float(), attention_mask=mask
    ).last_hidden_state


# The phoneme encoder --------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[dict, list[int]]:
    """Return random sizes, and lengths from 1 to 40 for a batch of 3, often far beyond the window."""
    choose = random.Random(seed)
    heads = choose.choice([1, 2, 3])
    sizes = dict(
        hidden_size=heads * choose.choice([4, 5, 6]) * 2, num_attention_heads=heads,
        num_hidden_layers=choose.choice([1, 2, 3]), ffn_dim=choose.randint(5, 20),
        ffn_kernel_size=choose.choice([1, 3, 5, 7]), window_size=choose.choice([1, 2, 4, 7]),
    )  # fmt: skip
    return sizes, [choose.randint(1, 40) for _ in range(3)]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_phoneme_encoder_matches_reference_at_random_sizes(tmp_path, seed):
    sizes, lengths = drawn(seed)
    model = vits(seed, **sizes)
    network, mask = ours("phonemes", model, tmp_path), mask_of(lengths)
    ids = torch.randint(1, len(SYMBOLS), mask.shape).masked_fill(~mask, 0)
    assert_same(network(ids, mask), encoded(model, ids, mask) * mask[..., None])


@torch.no_grad()
@pytest.mark.parametrize("kernel", [2, 4])
def test_even_kernels_are_padded_like_the_reference(tmp_path, kernel):
    model = vits(ffn_kernel_size=kernel)
    mask = mask_of([9, 5])
    ids = torch.randint(1, len(SYMBOLS), mask.shape).masked_fill(~mask, 0)
    assert_same(ours("phonemes", model, tmp_path)(ids, mask), encoded(model, ids, mask) * mask[..., None])


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 5, 9, 10, 11, 40])
def test_padding_does_not_change_the_vectors(tmp_path, length):
    """Ids behind the text have no effect, whatever they are."""
    model = vits()
    network = ours("phonemes", model, tmp_path)
    ids, all_real = torch.randint(1, len(SYMBOLS), (1, length)), torch.ones(1, length, dtype=torch.bool)
    expected = encoded(model, ids, all_real)
    assert_same(network(ids, all_real), expected)
    padded = torch.cat([ids, torch.randint(0, len(SYMBOLS), (1, 6))], dim=1)
    found = network(padded, torch.arange(length + 6)[None] < length)
    assert_same(found[:, :length], expected)
    assert not found[:, length:].any()


# Learned positions ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("positions", [1, 7, 30])
def test_projection_with_positions_matches_reference(tmp_path, positions):
    """The reference accepts only texts as long as its table."""
    model = projection(positions)
    network = ours("projection", model, tmp_path)
    mask = mask_of([positions, max(positions - 3, 1)])
    clap, phonemes = torch.randn(2, 10), torch.randn(*mask.shape, 12)
    expected = model(clap[:, None], phonemes, torch.ones(2, 1).long(), mask.long())
    vectors, joined = network(clap, phonemes, mask)
    assert_same(vectors, expected.hidden_states)
    assert torch.equal(joined.long(), expected.attention_mask)


@torch.no_grad()
def test_shorter_text_takes_the_first_positions(tmp_path):
    model = projection(30)
    network = ours("projection", model, tmp_path)
    clap, phonemes, mask = torch.randn(1, 10), torch.randn(1, 9, 12), mask_of([9])
    model.learnable_positional_embedding = nn.Parameter(model.learnable_positional_embedding[:, :, :9])
    expected = model(clap[:, None], phonemes, torch.ones(1, 1).long(), mask.long())
    assert_same(network(clap, phonemes, mask)[0], expected.hidden_states)


def test_rejects_positions_that_the_config_denies():
    """The reference checks for None, so False creates a table too; ours rejects it as ambiguous."""
    model = projection(7, use_learned_position_embedding=False)
    assert "learnable_positional_embedding" in model.state_dict()
    with pytest.raises(WeightsError, match="use_learned_position_embedding = False; only None or True"):
        PARTS["projection"].config_from(dict(model.config) | {"_class_name": "AudioLDM2ProjectionModel"})


# CLAP beside the diffusion time ---------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"attention_head_dim": (2, 4, 6), "layers_per_block": 1}])
@pytest.mark.parametrize("time, mel", [(16, 8), (13, 4), (61, 8)])
def test_unet_with_film_vector_matches_reference(tmp_path, changes, time, mel):
    model = film_unet(**changes)
    network = ours("unet", model, tmp_path)
    assert network.config.transformers == ((), (SELF, LAST_SELF), (SELF, LAST_SELF))
    x, vector, t = torch.randn(2, 3, time, mel), torch.randn(2, 10), torch.tensor(637)
    expected = model(x, t, encoder_hidden_states=None, class_labels=vector).sample
    assert_same(network(x, t, clap_vector=vector), expected)
    other = network(x, t, clap_vector=vector.flip(0))
    assert (other - expected).abs().max() > 1e-2, "the vector has no effect"


# A whole speech model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> tuple[Path, AudioLDM2Pipeline]:
    """A speech model in the diffusers layout, saved by the reference."""
    folder = tmp_path_factory.mktemp("speech")
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(
        json.dumps({symbol: place for place, symbol in enumerate(SYMBOLS) if symbol != "!"})
    )
    clap_tokenizer, _ = small_tokenizers()
    pipe = AudioLDM2Pipeline(
        text_encoder=reference.clap(text_config=dict(vocab_size=len(clap_tokenizer), hidden_size=12,
                                                     num_hidden_layers=2, num_attention_heads=2,
                                                     intermediate_size=10)),
        text_encoder_2=vits(),
        projection_model=projection(30),
        language_model=reference.gpt2(max_new_tokens=20),
        unet=reference.unet(cross_attention_dim=((None, 12),) * 3),
        vae=reference.vae(),
        vocoder=reference.hifigan(),
        tokenizer=clap_tokenizer,
        tokenizer_2=VitsTokenizer(vocabulary, pad_token="_", unk_token="_", phonemize=False),
        feature_extractor=ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc"),
        scheduler=reference.ddim(),
    )  # fmt: skip
    pipe.save_pretrained(folder / "diffusers")
    return folder / "diffusers", pipe


def test_speech_folder_is_converted_whole(speech, tmp_path):
    source, _ = speech
    storage.write(convert.read_diffusers(source), tmp_path / "out")
    found = storage.read(tmp_path / "out")
    networks = {"clap_text", "phonemes", "projection", "gpt2", "unet", "vae", "hifigan", "clap_audio"}
    assert found.configs.keys() == networks
    files = {*(f"{name}.safetensors" for name in networks), "clap_tokenizer", "config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert found.configs["gpt2"].new_vectors == 20
    assert found.configs["projection"].positions == 30
    symbols = list(SYMBOLS)
    symbols[SYMBOLS.index("!")] = ""  # an id that no symbol has
    assert found.symbols == tuple(symbols)
    assert all(found.states[name]() for name in networks)


@torch.no_grad()
def test_converted_speech_folder_encodes_like_the_reference(speech, tmp_path):
    """From phonemes to the vectors that GPT-2 continues, and to those it generates."""
    source, pipe = speech
    storage.write(convert.read_diffusers(source), tmp_path / "out")
    found = storage.read(tmp_path / "out")

    def network(name: str) -> nn.Module:
        return placement.materialise(found, name, device=torch.device("cpu"), dtype=torch.float32)

    mask = torch.arange(30)[None] < 9
    ids = torch.randint(1, len(SYMBOLS), (1, 30)).masked_fill(~mask, 0)
    clap = torch.randn(1, 10)
    expected = encoded(pipe.text_encoder_2, ids, mask) * mask[..., None]
    spoken = network("phonemes")(ids, mask)
    assert_same(spoken, expected)
    expected = pipe.projection_model(clap[:, None], expected, torch.ones(1, 1).long(), mask.long())
    vectors, joined = network("projection")(clap, spoken, mask)
    assert_same(vectors, expected.hidden_states)
    sequence, attended = expected.hidden_states, expected.attention_mask
    for _ in range(20):
        hidden = pipe.language_model(
            inputs_embeds=sequence, attention_mask=attended, output_hidden_states=True
        )
        sequence = torch.cat([sequence, hidden.hidden_states[-1][:, -1:]], dim=1)
        attended = torch.cat([attended, attended.new_ones(1, 1)], dim=1)
    assert_same(network("gpt2").generate(vectors, joined), sequence[:, -20:])


@pytest.mark.parametrize(
    ("symbol", "number", "words"),
    [("ɸ", len(SYMBOLS), "it has to be from 0 to 23"), ("ɸ", -1, "it has to be from 0 to 23"),
     ("ɸ", "3", "it has to be from 0 to 23")],
)  # fmt: skip
def test_rejects_vocabulary_that_does_not_fit(speech, tmp_path, symbol, number, words):
    source, _ = speech
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer_2").unlink()
    (tmp_path / "tokenizer_2").mkdir()
    vocabulary = json.loads((source / "tokenizer_2" / "vocab.json").read_text()) | {symbol: number}
    (tmp_path / "tokenizer_2" / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(WeightsError, match=words) as caught:
        convert.read_diffusers(tmp_path)
    assert f"{tmp_path / 'tokenizer_2' / 'vocab.json'}: " in str(caught.value)
