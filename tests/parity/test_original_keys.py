"""The published original files, name by name: each of our tensors comes from the tensor that it should.

Needs the lists of keys that were read off the published files, beside the repository. They are filled with
tensors without memory, and, where values count, with tiny stand-ins: a name of its own in each.
"""

import json
import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import NoiseSchedule
from audioldm2.convert import PARTS, convert_state, keymap, original, original_table, phonemes
from audioldm2.convert.diffusers import open_state
from audioldm2.models import NETWORKS, build_on_meta
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from tests.support import original_names, originals

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the published files' lists of keys")

KINDS = {
    "audioldm2-full": "base",
    "audioldm2-music-665k": "base",
    "audioldm2-full-large-1150k": "large",
    "audioldm_48k": "48k",
    "audioldm_16k_crossattn_t5": "t5",
    "audioldm2-speech-gigaspeech": "speech",
    "audioldm2-speech-ljspeech": "speech",
}
TWINS = {  # of those that are published in the diffusers layout too: their configs
    "audioldm2-full": "cvssp_audioldm2",
    "audioldm2-music-665k": "cvssp_audioldm2-music",
    "audioldm2-full-large-1150k": "cvssp_audioldm2-large",
    "audioldm2-speech-gigaspeech": "anhnct_audioldm2_speech_DERIVED",
    "audioldm2-speech-ljspeech": "anhnct_audioldm2_speech_DERIVED",
}
LISTS = {  # folder of that layout -> its list of keys; where it differs, by kind
    "text_encoder": "text_encoder.clap",
    "text_encoder_2": {"speech": "text_encoder_2.vits", "": "text_encoder_2.t5"},
    "projection_model": {"speech": "projection_model.speech", "": "projection_model.base"},
    "language_model": "language_model.gpt2",
    "unet": {"large": "unet.large", "speech": "unet.speech", "": "unet.base"},
    "vae": "vae",
    "vocoder": "vocoder",
}
SCALING_FACTOR = 0.4110932946205139
AUDIOLDM_2 = {"CLAP": 193_913_882, "vae": 55_376_873, "hifigan": 55_264_897, "gpt2": 124_439_808,
              "audiomae": 85_648_128}  # fmt: skip
PARAMETERS = {
    "base": AUDIOLDM_2 | {"unet": 346_943_496, "t5": 341_231_104, "projection": 1_184_256},
    "large": AUDIOLDM_2 | {"unet": 718_012_296, "t5": 341_231_104, "projection": 1_184_256},
    "speech": AUDIOLDM_2 | {"unet": 261_926_536, "projection": 604_800},
}
TOKEN_EMBEDDING = 50_257 * 768  # of GPT-2, which AudioLDM 2 never feeds tokens; not among our weights


# The lists ------------------------------------------------------------------------------------------------


@cache
def listed(path: str) -> dict[str, Tensor]:
    """Return the tensors of a list, without memory."""
    entries = json.loads((DATA / "keys" / f"{path}.json").read_text())
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in entries.items()
    }


@cache
def read(name: str) -> original.Original:
    """Return an original file of which only two tensors have values."""
    table = listed(f"original/{name}") | {
        "scale_factor": torch.tensor(SCALING_FACTOR),
        "betas": originals.schedule_buffers()["betas"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original_table, "read_torch_file", lambda path: {"state_dict": table})
        return original.read_original(Path(f"{name}.pth"))


def twin_list(kind: str, folder: str) -> dict[str, Tensor]:
    """Return the tensors of a network's published file in the diffusers layout, without memory."""
    names = LISTS[folder]
    return listed(f"hf/{names if isinstance(names, str) else names.get(kind, names[''])}")


def networks_of(folder: str, checkpoint: original.Original) -> list[str]:
    return [name for name, part in PARTS.items() if part.folder == folder and name in checkpoint.configs]


@cache
def on_meta(network: str, config: Any) -> nn.Module:
    """Return one of our networks, without memory."""
    return build_on_meta(network, config)


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


# All seven ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_published_tensors_are_mapped_to_our_networks(name):
    """No key is unmatched, and each network gets exactly its own keys in its own shapes."""
    checkpoint = read(name)
    for network, config in checkpoint.configs.items():
        expected = on_meta(network, config).state_dict()
        assert shapes(checkpoint.states[network]()) == shapes(expected), network


@pytest.mark.parametrize("name", KINDS)
def test_published_keys_are_used_or_dropped_with_a_reason(name):
    checkpoint, kind = read(name), KINDS[name]
    used = {move.source for reading in checkpoint.states.values() for move in reading.open()[1]}
    left = {move.source: move.row.note for move in checkpoint.dropped}
    assert used | left.keys() == listed(f"original/{name}").keys()
    assert not used & left.keys() and all(left.values())
    places = tuple(f"{place}." for place in original_names.PLACES[kind].values())
    assert all(key.startswith((*places, original_names.POSITIONS)) for key in used)


@pytest.mark.parametrize("name", KINDS)
def test_parameter_counts_are_the_published_ones(name):
    """Counts that are not published are those of the file below the network's module."""
    checkpoint, kind = read(name), KINDS[name]
    found = {
        network: sum(each.numel() for each in on_meta(network, config).parameters())
        for network, config in checkpoint.configs.items()
    }
    table = listed(f"original/{name}")
    for network, place in original_names.PLACES[kind].items():
        inside = {key: each for key, each in table.items() if key.startswith(f"{place}.")}
        if network in ("unet", "hifigan"):
            assert found[network] == sum(each.numel() for each in inside.values())
        elif network == "vae":
            assert found["vae"] + found["hifigan"] == sum(each.numel() for each in inside.values())
        elif network == "phonemes":
            read_of = [each.numel() for key, each in inside.items() if ".text_encoder.proj." not in key]
            assert found["phonemes"] == sum(read_of)
    found["CLAP"] = found.pop("clap_text") + found.pop("clap_audio")
    if "gpt2" in found:
        found["gpt2"] += TOKEN_EMBEDDING
    assert found.items() >= PARAMETERS.get(kind, {"CLAP": AUDIOLDM_2["CLAP"]}).items()


@pytest.mark.parametrize("name", KINDS)
def test_audiomae_is_kept_without_its_decoder(name):
    """All 254 tensors of its module: 150 are ours, 104 are dropped and say why."""
    module = "cond_stage_models.0.cond_stage_models.2.audiomae."
    listing = [key for key in listed(f"original/{name}") if key.startswith(module)]
    checkpoint = read(name)
    if KINDS[name] in ("48k", "t5"):
        assert not listing and "audiomae" not in checkpoint.configs
        return
    dropped = {move.source: move.row.note for move in checkpoint.dropped if move.source.startswith(module)}
    assert (len(listing), len(dropped), len(checkpoint.states["audiomae"]())) == (254, 104, 150)
    assert all("decoder" in note for note in dropped.values())
    assert checkpoint.configs["audiomae"].tokens == checkpoint.configs["gpt2"].new_vectors


ATTENDING = {"base": (SELF, GPT2, T5), "large": (SELF, GPT2, T5, LAST_SELF), "48k": (SELF, LAST_SELF),
             "t5": (SELF, T5), "speech": (SELF, GPT2)}  # fmt: skip
AT_48_KHZ = {
    "unet": UNetConfig(latent_channels=16, film_dim=512, transformers=((), *[(SELF, LAST_SELF)] * 3)),
    "vae": VAEConfig(latent_channels=16, channels=(128, 256, 512, 1024), scaling_factor=SCALING_FACTOR),
    "hifigan": HiFiGANConfig(
        mels=256, sample_rate=48000, channels=1536, upsample_rates=(6, 5, 4, 2, 2),
        upsample_kernels=(12, 10, 8, 4, 4), branch_kernels=(3, 7, 11, 15), branch_dilations=((1, 3, 5),) * 4,
    ),
}  # fmt: skip
SPEAKING = {
    "phonemes": PhonemesConfig(),
    "projection": ProjectionConfig(t5_dim=192, positions=310),
    "gpt2": GPT2Config(new_vectors=512),
    "audiomae": AudioMAEConfig(pool=(1, 1)),
}


@pytest.mark.parametrize("name", KINDS)
def test_sizes_are_the_published_ones(name):
    """They are our defaults except for what makes each kind; heads are 32 wide in all."""
    checkpoint, kind = read(name), KINDS[name]
    channels = checkpoint.configs["unet"].channels
    assert checkpoint.configs["unet"].heads == tuple(width // 32 for width in channels)
    unet = UNetConfig(transformers=((), *[ATTENDING[kind]] * 3), depth=2 if kind == "large" else 1)
    expected = {network: config() for network, (_, config) in NETWORKS.items()} | {"unet": unet}
    expected |= {"48k": AT_48_KHZ, "speech": SPEAKING}.get(kind, {})
    networks = originals.CONFIGS[kind].keys()
    assert checkpoint.configs == {network: expected[network] for network in networks}
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()


def test_phoneme_symbols_are_the_published_ones():
    path = DATA / "tokenizers" / "phoneme" / "upstream_symbols_183.json"
    published = json.loads(path.read_text())
    published = published if isinstance(published, list) else published["symbols"]
    assert list(read("audioldm2-speech-gigaspeech").symbols) == published == list(phonemes.SYMBOLS)


# Each tensor from where it should come --------------------------------------------------------------------


def stand_in(key: str, shape: tuple[int, ...]) -> Tensor:
    """A small tensor of the same number of dimensions that no other key has, but for T5's embedding, which
    has two. What is 1 long stays so."""
    key = key.replace("encoder.embed_tokens", "shared")
    small = [1 if size == 1 else 6 if place == 0 else 2 for place, size in enumerate(shape)]
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(small, generator=generator)


@cache
def stand_ins(name: str) -> dict[str, Tensor]:
    return {key: stand_in(key, tensor.shape) for key, tensor in listed(f"original/{name}").items()}


def by_the_file(name: str) -> dict[str, dict[str, Tensor]]:
    """Return our stand-ins, by the rows for original files; of AudioMAE, which the twin lacks, none."""
    checkpoint = read(name)
    return {
        network: keymap.convert(stand_ins(name), reading.open()[1])
        for network, reading in checkpoint.states.items()
        if network != "audiomae"
    }


def by_the_twin(name: str, theirs: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Our stand-ins, by the rows for the diffusers layout; theirs: folder -> its stand-ins."""
    checkpoint, found = read(name), {}
    for folder, state in theirs.items():
        for network in networks_of(folder, checkpoint):
            tensors, moves = open_state(network, checkpoint.configs[network], state, folder)
            found[network] = keymap.convert(tensors, moves)
    return found


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for network in expected:
        assert found[network].keys() == expected[network].keys(), network
        for key, tensor in expected[network].items():
            assert torch.equal(found[network][key], tensor), f"{network}: {key}"


@pytest.mark.parametrize("name", KINDS)
def test_rows_agree_with_the_independent_names(name):
    """From ours to the original's by `tests.support.original_names`, and back by our rows."""
    checkpoint, kind = read(name), KINDS[name]
    table, expected = {}, {}
    for network, config in checkpoint.configs.items():
        ours = shapes(on_meta(network, config).state_dict())
        expected[network] = {
            key: stand_in(f"{network}.{key}", shape)
            for key, shape in ours.items()
            if not (network == "hifigan" and key in ("mean", "scale"))
        }
        table |= original_names.spread(network, config, expected[network], original_names.PLACES[kind])
    used = {move.source for reading in checkpoint.states.values() for move in reading.open()[1]}
    assert table.keys() == used
    found = {
        network: keymap.convert(table, reading.open()[1]) for network, reading in checkpoint.states.items()
    }
    assert_same(found, expected)


@cache
def given() -> dict[str, dict[str, list]]:
    """Of audioldm2-full: folder of that layout -> its key -> [the original's key, and what is cut of it]."""
    return json.loads((DATA / "keys" / "mapping_original_to_hf.base.json").read_text())["map"]


def cut(tensor: Tensor, how: str) -> Tensor:
    """Return what the given mapping says about a tensor."""
    third = re.match(r"rows \[(\d)\*n/3:", how)
    row = re.match(r"row (\d) of ", how)
    if third:
        count = len(tensor) // 3
        return tensor[int(third[1]) * count :][:count]
    if row:
        return tensor[int(row[1])]
    if how.endswith("]") and "->" in how:
        return tensor.flatten(1)
    assert not how, how
    return tensor


def given_twin(name: str, *folders: str) -> dict[str, dict[str, Tensor]]:
    """Return the twin's stand-ins, by the given mapping from the original's."""
    source, found = stand_ins(name), {}
    for folder in folders:
        found[folder] = {
            key: cut(source[origin], how[0] if how else "")
            for key, (origin, *how) in given()[folder].items()
            if origin != "<constant>"
        }
    found["vocoder"] |= {"mean": torch.zeros(2), "scale": torch.ones(2)}
    return found


def without_mean_and_scale(states: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the vocoder's mean and scale, which the original lacks."""
    kept = {key: each for key, each in states["hifigan"].items() if key not in ("mean", "scale")}
    return states | {"hifigan": kept}


@pytest.mark.parametrize("name", ["audioldm2-full", "audioldm2-music-665k"])
def test_base_models_convert_alike_directly_and_by_the_twin(name):
    """Original -> ours equals original -> twin, by the given mapping -> ours."""
    assert_same(by_the_file(name), without_mean_and_scale(by_the_twin(name, given_twin(name, *given()))))


def derived(key: str, transformers: int) -> str:
    """The original's key of a UNet with so many transformers a layer, from the given one, which has 3.

    There transformers are numbered through a level; in the original they stand in their layer, behind the
    residual block, and what comes after them moves with their number. A second block is as the first.
    """
    place, depth = None, re.search(r"transformer_blocks\.(\d+)", key)
    found = re.search(r"attentions\.(\d+)", key)
    if found:
        layer, place = divmod(int(found[1]), transformers)
        like = key.replace(found[0], f"attentions.{layer * 3 + min(place, 2)}", 1)
        like = re.sub(r"transformer_blocks\.\d+", "transformer_blocks.0", like)
    else:
        like = key
    (origin,) = given()["unet"][like]
    module = re.match(r"model\.diffusion_model\.(?:(?:input|output)_blocks\.\d+|middle_block)", origin)
    if found:
        rest = origin.removeprefix(f"{module[0]}.").partition(".")[2]
        rest = rest.replace("transformer_blocks.0", depth[0]) if depth else rest
        return f"{module[0]}.{1 + place}.{rest}"
    if "upsamplers" in key or key.startswith("mid_block.resnets.1"):
        return f"{module[0]}.{1 + transformers}.{origin.removeprefix(f'{module[0]}.').partition('.')[2]}"
    return origin


TRANSFORMERS = {"base": 3, "large": 4, "speech": 2}


def test_derived_mapping_of_the_base_model_is_the_given_one():
    assert {key: [derived(key, 3)] for key in given()["unet"]} == given()["unet"]


@pytest.mark.parametrize("name", TWINS)
def test_derived_mapping_covers_each_unet(name):
    kind = KINDS[name]
    theirs, source = twin_list(kind, "unet"), listed(f"original/{name}")
    origins = {key: derived(key, TRANSFORMERS[kind]) for key in theirs}
    unets = {key for key in source if key.startswith("model.diffusion_model.")}
    assert set(origins.values()) == unets and len(origins) == len(unets)
    assert shapes(theirs) == {key: tuple(source[origin].shape) for key, origin in origins.items()}


OF_PHONEMES = {  # of the twin's encoder -> of the original's, with the layer's number in it
    "attention.q_proj": "attn_layers.{}.conv_q",
    "attention.k_proj": "attn_layers.{}.conv_k",
    "attention.v_proj": "attn_layers.{}.conv_v",
    "attention.out_proj": "attn_layers.{}.conv_o",
    "attention.emb_rel_k": "attn_layers.{}.emb_rel_k",
    "attention.emb_rel_v": "attn_layers.{}.emb_rel_v",
    "layer_norm": "norm_layers_1.{}",
    "feed_forward.conv_1": "ffn_layers.{}.conv_1",
    "feed_forward.conv_2": "ffn_layers.{}.conv_2",
    "final_layer_norm": "norm_layers_2.{}",
}


def origin_of_phonemes(key: str) -> str | None:
    """The original's key of one of `VitsModel`'s; None for all but the text encoder, which it has not."""
    if not key.startswith("text_encoder."):
        return None
    place, rest = original_names.SECOND_ENCODER, key.removeprefix("text_encoder.")
    ends = {"embed_tokens.weight": "emb.weight", "project.weight": "proj.weight", "project.bias": "proj.bias"}
    if rest in ends:
        return f"{place}.text_encoder.{ends[rest]}"
    _, _, number, inside = rest.split(".", 3)
    word = max((word for word in OF_PHONEMES if f"{inside}.".startswith(f"{word}.")), key=len)
    last = inside.removeprefix(word)
    if "norm" in word:
        last = {".weight": ".gamma", ".bias": ".beta"}[last]
    return f"{place}.text_encoder.encoder.{OF_PHONEMES[word].format(number)}{last}"


def derived_twin(name: str) -> dict[str, dict[str, Tensor]]:
    """Return the twin's stand-ins, by the derived mapping from the original's."""
    kind, source = KINDS[name], stand_ins(name)
    others = {"unet", "text_encoder_2"} if kind == "speech" else {"unet"}
    found = given_twin(name, *(given().keys() - others))
    found["unet"] = {key: source[derived(key, TRANSFORMERS[kind])] for key in twin_list(kind, "unet")}
    if kind == "speech":
        found["projection_model"]["learnable_positional_embedding"] = source[original_names.POSITIONS]
        found["text_encoder_2"] = {
            key: torch.ones(1) if origin is None else as_shaped(source[origin], tensor.ndim)
            for key, tensor in twin_list(kind, "text_encoder_2").items()
            for origin in [origin_of_phonemes(key)]
        }
    return found


def as_shaped(tensor: Tensor, ndim: int) -> Tensor:
    """A convolution of width 1 is a linear layer in the twin."""
    return tensor.squeeze(-1) if tensor.ndim == ndim + 1 else tensor


@pytest.mark.parametrize("name", [name for name in TWINS if KINDS[name] in ("large", "speech")])
def test_large_and_speech_models_convert_alike_directly_and_by_the_twin(name):
    """Original -> ours equals original -> twin, by the derived mapping -> ours."""
    twin = derived_twin(name)
    for folder in ("unet", "projection_model", "text_encoder_2"):
        assert twin[folder].keys() == twin_list(KINDS[name], folder).keys()
    assert_same(by_the_file(name), without_mean_and_scale(by_the_twin(name, twin)))


@pytest.mark.parametrize("name", TWINS)
def test_original_and_twin_give_equal_keys_and_shapes(name):
    checkpoint, kind = read(name), KINDS[name]
    for folder in LISTS:
        for network in networks_of(folder, checkpoint):
            theirs = convert_state(network, checkpoint.configs[network], twin_list(kind, folder), folder)
            assert shapes(theirs) == shapes(checkpoint.states[network]()), network


@pytest.mark.parametrize("name", TWINS)
def test_original_and_twin_give_equal_configs(name):
    """Except for heads, which the twin's config has wrong, and the scaling factor of latents."""
    checkpoint = read(name)
    assert checkpoint.configs.keys() - PARTS.keys() == {"audiomae"}, "the twin has no other network less"
    for network, config in checkpoint.configs.items():
        if network not in PARTS:
            continue
        folder = DATA / "configs" / TWINS[name] / PARTS[network].folder
        theirs: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if network == "vae":
            theirs = theirs | {"scaling_factor": SCALING_FACTOR}
        more = {"heads": "trained"} if network == "unet" else {}
        assert config == PARTS[network].config_from(theirs, **more)
