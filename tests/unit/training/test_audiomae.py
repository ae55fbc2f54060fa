"""The masked autoencoder: what the encoder sees, which patches count, sizes of a new AudioMAE."""

from dataclasses import replace

import pytest
import torch

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.training.audiomae import AudioMAEStage, config_for, normalised_patches
from audioldm2.training.randomness import generator
from audioldm2.training.weight_init import initialize
from tests.support.training import clips, hearing, stage_of


def test_a_new_audiomae_for_the_published_sizes_is_the_published_one(initial: Checkpoint):
    published = replace(initial, configs=initial.configs | {"gpt2": GPT2Config()}, seconds=10.24)
    assert config_for(published) == AudioMAEConfig()
    speech = replace(published, configs=initial.configs | {"gpt2": GPT2Config(new_vectors=512)})
    assert config_for(speech).tokens == 512


@pytest.mark.parametrize("seconds", [0.64, 1.28, 2.56, 10.24, 20.48])
@pytest.mark.parametrize("vectors", [4, 8, 24])
def test_a_new_audiomae_fits_gpt2_and_the_clips(initial: Checkpoint, seconds: float, vectors: int):
    gpt2 = replace(initial.configs["gpt2"], new_vectors=vectors)
    config = config_for(replace(initial, configs=initial.configs | {"gpt2": gpt2}, seconds=seconds))
    assert (config.tokens, config.dim) == (vectors, gpt2.dim)
    assert config.frames / 100 >= seconds * 0.7 or vectors * 16 / 100 >= seconds


def test_the_recipe_follows_from_whether_the_model_has_one(initial: Checkpoint):
    assert AudioMAEStage.usual_recipe(initial) == "small"
    assert AudioMAEStage.usual_recipe(hearing(initial)) == "finetune"
    recipe = AudioMAEStage.recipe_for(hearing(initial))
    assert (recipe.seconds, recipe.learning_rate) == (1.28, 1e-5)
    published = replace(initial, configs=initial.configs | {"gpt2": GPT2Config()}, seconds=10.24)
    assert AudioMAEStage.recipe_for(published) == AudioMAEStage.recipes["published"]


def test_a_model_without_gpt2_is_refused(initial: Checkpoint):
    configs = {name: config for name, config in initial.configs.items() if name != "gpt2"}
    with pytest.raises(ValueError, match="has no GPT-2, which would read what AudioMAE finds"):
        config_for(replace(initial, configs=configs))


def test_the_run_adds_the_network_to_the_model(initial: Checkpoint, tmp_path):
    stage = AudioMAEStage(
        replace(initial, seconds=1.28), replace(AudioMAEStage.recipes["small"], pool=0), torch.device("cpu")
    )
    stage.step(*clips(2, 1.28))
    stage.save_model(tmp_path)
    saved = storage.read(tmp_path / "model")
    assert saved.configs["audiomae"].tokens == saved.configs["gpt2"].new_vectors
    assert torch.equal(
        saved.states["audiomae"]()["norm_out.weight"], stage.trained["audiomae"].norm_out.weight
    )


def test_masked_patches_do_not_reach_the_encoder():
    config = AudioMAEConfig(dim=16, depth=2, heads=2, frames=64, mels=32, averaged=1, pool=(4, 2))
    encoder = initialize("audiomae", config)
    fbank = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[6, 1]])  # rows 3 and 0, columns 0 and 1
    found = encoder.last_blocks(fbank, visible)[-1]
    assert found.shape == (1, 2, 16)
    changed = fbank.clone()
    changed[:, 16:48] += 1  # rows 1 and 2
    changed[:, :16, :16] += 1  # row 0, column 0
    assert torch.equal(encoder.last_blocks(changed, visible)[-1], found)
    changed[:, 50, 3] += 1
    assert not torch.equal(encoder.last_blocks(changed, visible)[-1], found)


def test_every_patch_in_order_is_the_whole_spectrogram():
    config = AudioMAEConfig(dim=16, depth=2, heads=2, frames=64, mels=32, averaged=2, pool=(4, 2))
    encoder = initialize("audiomae", config)
    fbank = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    order = torch.arange(8).expand(2, -1)
    torch.testing.assert_close(encoder.last_blocks(fbank, order), encoder.last_blocks(fbank))


def test_only_masked_patches_count(random_weights: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """The loss is that of the formula, and a wrong pixel of a visible patch costs nothing."""
    stage = stage_of("audiomae", random_weights)
    fbank = stage.prepare(clips(2, 1.28)[0])
    seen = {}
    encode = stage.network("audiomae").last_blocks

    def watched(x: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
        seen["visible"] = visible
        return encode(x, visible)

    monkeypatch.setattr(stage.network("audiomae"), "last_blocks", watched)
    loss = stage.error(fbank, generator("noise", 0, 0))
    visible = seen["visible"]
    patches = stage.helpers["decoder"].position_embedding.shape[1]
    assert visible.shape == (2, patches // 4)  # the mask of QUICK is 0.75
    vectors = encode(fbank, visible)[-1]
    predicted = stage.helpers["decoder"](vectors, visible)
    error = (predicted - normalised_patches(fbank, 16)).square().mean(dim=2)
    masked = torch.ones(2, patches, dtype=torch.bool).scatter(1, visible, False)
    torch.testing.assert_close(loss, error[masked].mean())


def test_even_the_smallest_mask_hides_a_patch(random_weights: Checkpoint):
    stage = stage_of("audiomae", random_weights, mask=0.001)
    assert stage.step(*clips(2, 1.28))["loss"] > 0


def test_patches_are_cut_as_the_encoder_cuts_them():
    fbank = torch.arange(64.0 * 32).reshape(1, 64, 32).square()
    found = normalised_patches(fbank, 16)
    assert found.shape == (1, 8, 256)
    patch = fbank[0, 16:32, 16:32].flatten()  # row 1, column 1: number 3
    torch.testing.assert_close(found[0, 3], (patch - patch.mean()) / patch.std())


def test_a_silent_clip_has_a_finite_loss(random_weights: Checkpoint):
    stage = stage_of("audiomae", random_weights)
    assert torch.tensor(stage.step(torch.zeros(2, 20480), ["", ""])["loss"]).isfinite()


def test_a_trained_model_is_warned_of(random_weights: Checkpoint):
    stage = stage_of("audiomae", hearing(random_weights))
    assert "train the stages 'loa' and 'ldm' next" in stage.warnings()[0]
    assert not AudioMAEStage(random_weights, stage.recipe, torch.device("cpu")).warnings()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"mask": 1.0}, "mask is 1.0; it has to be above 0 and below 1."),
        ({"decoder_dim": 30}, "decoder_dim is 30; it has to be a multiple of 4."),
        ({"decoder_dim": 64, "decoder_heads": 5}, "decoder_heads is 5; it has to divide decoder_dim."),
    ],
)
def test_recipe_rules(values: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        replace(AudioMAEStage.recipes["small"], **values)
