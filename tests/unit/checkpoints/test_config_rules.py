"""The rules of network configs: what passes can be built and run, what fails names field, value and rule."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioldm2 import clap_score
from audioldm2.audio import CLAP_MEL, VAE_MEL
from audioldm2.checkpoints import validate
from audioldm2.errors import ArgumentError
from audioldm2.models import NETWORKS, build_on_meta
from tests.support.sizes import full_or


def test_published_configs_pass():
    published = {name: kind() for name, (_, kind) in NETWORKS.items()}
    del published["phonemes"]  # of the speech models, where it stands in T5's place
    validate.check_together(published, "the published model")
    clap_score.require_front_end(published["clap_audio"], CLAP_MEL, "the published model")


VIOLATIONS = [  # network, changes to the published config, the field that the error names, the rule
    ("clap_text", {"depth": 0}, "depth", "be a whole number from 1 to 100"),
    ("clap_text", {"depth": "12"}, "depth", "be a whole number from 1 to 100"),
    ("clap_text", {"heads": 7}, "dim", "be a multiple of heads (7)"),
    ("clap_text", {"padding_id": 50265}, "padding_id", "be a whole number from 0 to 50264"),
    ("clap_text", {"eps": -1e-12}, "eps", "be a number from 0 to 1"),
    ("t5", {"buckets": 3}, "buckets", "be a whole number from 4 to 1000000"),
    ("t5", {"max_distance": 8}, "max_distance", "be above a fourth of buckets (8)"),
    ("phonemes", {"ff_kernel": 101}, "ff_kernel", "be a whole number from 1 to 100"),
    ("projection", {"positions": -1}, "positions", "be a whole number from 0 to 1000000"),
    ("gpt2", {"dim": 770}, "dim", "be a multiple of heads (12)"),
    ("gpt2", {"depth": True}, "depth", "be a whole number from 1 to 100"),
    ("unet", {"channels": [128, 256]}, "channels", "be a tuple of whole numbers"),
    ("unet", {"channels": (128, 256, 384, 0)}, "channels[3]", "be a whole number from 1 to 1000000"),
    ("unet", {"channels": (128, 256, 384, 641)}, "channels", "hold multiples of norm_groups (32)"),
    ("unet", {"heads": (4, 8)}, "channels, heads, transformers", "have one entry for each level"),
    ("unet", {"heads": (4, 8, 12, 7)}, "channels[3]", "be a multiple of heads[3] (7)"),
    ("unet", {"transformers": ((), ("mamba",), (), ())}, "transformers[1]", "name each of self_attn"),
    ("unet", {"transformers": ((), ("t5_attn",) * 2, (), ())}, "transformers[1]", "name each of self_attn"),
    ("unet", {"film_dim": -1}, "film_dim", "be a whole number from 0 to 1000000"),
    ("unet", {"depth": 10**9}, "depth", "be a whole number from 1 to 100"),
    ("vae", {"channels": ()}, "channels", "have one entry for each level, from 1 to 100"),
    ("vae", {"channels": (32,) * 101}, "channels", "have one entry for each level, from 1 to 100"),
    ("vae", {"mel_channels": 2}, "mel_channels", "be a whole number from 1 to 1"),
    ("vae", {"scaling_factor": 0}, "scaling_factor", "be above 0 and at most 1000000"),
    ("vae", {"scaling_factor": math.nan}, "scaling_factor", "be a number from 0 to 1e+06"),
    ("hifigan", {"upsample_rates": (5, 4)}, "upsample_rates, upsample_kernels", "have one entry for each"),
    ("hifigan", {"upsample_kernels": (4, 16, 8, 4, 4)}, "upsample_kernels", "be at least the upsample_rates"),
    ("hifigan", {"channels": 16}, "channels", "be a whole number from 32 to 1000000"),
    ("hifigan", {"branch_kernels": (3, 7, 10)}, "branch_kernels", "hold odd numbers"),
    ("hifigan", {"branch_dilations": ((1,), (0,), (1,))}, "branch_dilations[1][0]", "be a whole number"),
    ("hifigan", {"normalize_before": 1}, "normalize_before", "be True or False"),
    ("clap_audio", {"patch_size": 3}, "patch_size", "be a whole number from 4 to 256"),
    ("clap_audio", {"mels": 300}, "spec_size", "be a whole number from 300 to 1000000"),
    ("clap_audio", {"depths": (2, 2)}, "depths, heads", "have one entry for each stage"),
    ("clap_audio", {"heads": (4, 8, 16, 31)}, "dim * 8", "be a multiple of heads[3] (31)"),
    ("clap_audio", {"dropout": 1.0}, "dropout", "be below 1"),
    ("clap_audio", {"ff_ratio": 1e-3}, "ff_ratio", "leave at least one of dim (128) channels"),
    ("audiomae", {"heads": 7}, "dim", "be a multiple of heads (7)"),
    ("audiomae", {"frames": 1000}, "frames", "be a multiple of patch (16)"),
    ("audiomae", {"averaged": 13}, "averaged", "be a whole number from 1 to 12"),
    ("audiomae", {"pool": [8, 8]}, "pool", "be a tuple of whole numbers"),
    ("audiomae", {"pool": (8,)}, "pool", "have two entries, for time and for frequency"),
    ("audiomae", {"pool": (8, 3)}, "pool", "divide the 64 x 8 patches of the spectrogram"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "changes", "field", "rule"), VIOLATIONS)
def test_violation_names_field_value_and_rule(network: str, changes: dict, field: str, rule: str):
    with pytest.raises(ArgumentError) as caught:
        replace(NETWORKS[network][1](), **changes)
    assert caught.value.name == field
    assert caught.value.allowed.startswith(rule)


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"sample_rate": 0}, "sample_rate", "be a whole number from 2 to 1000000"),
        ({"n_fft": 1023}, "n_fft", "be even"),
        ({"n_fft": 32_000}, "n_fft", "be a whole number from 2 to 16000"),
        ({"hop": 0}, "hop", "be a whole number from 1 to 1000000"),
        ({"mels": 1.5}, "mels", "be a whole number from 1 to 1000000"),
        ({"f_max": 8000.5}, "f_max", "be a number from 0 to 8000"),
        ({"f_max": math.nan}, "f_max", "be a number from 0 to 8000"),
        ({"f_min": 8000.0}, "f_min", "be below f_max (8000.0)"),
        ({"f_min": -1.0}, "f_min", "be a finite number of at least 0"),
    ],
)
def test_violation_in_mel_settings_names_field_value_and_rule(changes: dict, field: str, rule: str):
    with pytest.raises(ArgumentError) as caught:
        replace(VAE_MEL, **changes)
    assert (caught.value.name, caught.value.allowed) == (field, rule)


def test_every_network_has_a_violation_here():
    assert {network for network, *_ in VIOLATIONS} == set(NETWORKS)


small = st.integers(1, 6)


def lists(entry: st.SearchStrategy, least: int = 1, most: int = 3) -> st.SearchStrategy:
    return st.lists(entry, min_size=least, max_size=most).map(tuple)


ROLES = st.lists(st.sampled_from(["self_attn", "gpt2_attn", "t5_attn", "last_self_attn"]), unique=True).map(
    tuple
)


CONFIGURATIONS = {
    "unet": dict(
        latent_channels=small, channels=lists(st.sampled_from([2, 4, 6, 8, 9])), heads=lists(small),
        transformers=lists(ROLES), depth=st.integers(1, 2), layers=st.integers(1, 2), gpt2_dim=small,
        t5_dim=small, film_dim=st.integers(0, 3), norm_groups=st.sampled_from([1, 2]), eps=st.just(1e-5),
    ),
    "phonemes": dict(
        vocabulary=small, dim=small, depth=st.integers(1, 2), heads=small, ff_dim=small,
        ff_kernel=st.integers(1, 5), window=st.integers(1, 4), eps=st.just(1e-5),
    ),
    "vae": dict(
        mel_channels=st.integers(1, 2), latent_channels=small, channels=lists(small),
        layers=st.integers(1, 2), norm_groups=st.sampled_from([1, 2, 3]),
        scaling_factor=st.sampled_from([0.1, 2]),
    ),
    "hifigan": dict(
        mels=small, sample_rate=st.just(16000), channels=st.integers(1, 9), upsample_rates=lists(small),
        upsample_kernels=lists(small), branch_kernels=lists(st.integers(1, 5)),
        branch_dilations=lists(lists(st.integers(1, 3), 0), 0), slope=st.sampled_from([0, 0.1]),
        normalize_before=st.booleans(),
    ),
    "t5": dict(
        vocabulary=st.integers(1, 9), dim=small, depth=st.integers(1, 2), heads=small, head_dim=small,
        ff_dim=small, buckets=st.integers(1, 9), max_distance=st.integers(1, 9), eps=st.just(0),
    ),
    "clap_audio": dict(
        mels=st.sampled_from([4, 8, 12]), spec_size=st.sampled_from([8, 16, 20]),
        in_channels=st.integers(1, 2), patch_size=small, patch_stride=small, dim=small,
        depths=lists(st.integers(1, 2)), heads=lists(small),
        window=small, ff_ratio=st.sampled_from([0.1, 1, 2.5]), dropout=st.sampled_from([0, 0.5, 1]),
        eps=st.just(1e-5), projection_dim=small,
    ),
    "audiomae": dict(
        dim=small, depth=st.integers(1, 3), heads=small, patch=small, frames=st.sampled_from([4, 6, 12]),
        mels=st.sampled_from([4, 8]), averaged=st.integers(1, 3),
        pool=st.tuples(st.integers(1, 3), st.integers(1, 3)), eps=st.just(1e-6),
    ),
}  # fmt: skip


@pytest.mark.exhaustive
@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGURATIONS)
@settings(max_examples=full_or(80, 40), deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_config_that_passes_can_be_built_and_run(name: str, data: st.DataObject):
    fields = data.draw(st.fixed_dictionaries(CONFIGURATIONS[name]))
    try:
        config = NETWORKS[name][1](**fields)
    except ArgumentError:
        return
    network = NETWORKS[name][0](config).eval()
    assert build_on_meta(name, config).state_dict().keys() == network.state_dict().keys()
    if name == "unet":
        gpt2, t5 = torch.randn(2, 3, config.gpt2_dim), torch.randn(2, 4, config.t5_dim)
        x = torch.randn(2, config.latent_channels, 5, 3)
        mask, film = torch.ones(2, 4, dtype=torch.bool), torch.randn(2, config.film_dim)
        assert network(x, torch.tensor(7.0), gpt2, t5, mask, film).shape == x.shape
    elif name == "vae":
        scale, z = config.downsampling, torch.randn(1, config.latent_channels, 3, 2)
        assert network.decode(z).shape == (1, 1, 3 * scale, 2 * scale)
        assert network.encode(torch.randn(1, 1, 3 * scale, 2 * scale))[0].shape == z.shape
    elif name == "hifigan":
        assert network(torch.randn(2, 3, config.mels)).shape[1] >= 3 * config.hop
    elif name in ("t5", "phonemes"):
        ids = torch.zeros(2, 12, dtype=torch.int64)
        assert network(ids, torch.ones(2, 12, dtype=torch.bool)).shape == (2, 12, config.dim)
    elif name == "audiomae":
        fbank = torch.randn(2, config.frames, config.mels)
        assert network(fbank).shape == (2, config.tokens, config.dim)
    else:
        frames = config.spec_size * (config.spec_size // config.mels)
        for time in {1, frames - 1, frames}:
            assert network(torch.randn(2, time, config.mels)).shape == (2, config.projection_dim)
