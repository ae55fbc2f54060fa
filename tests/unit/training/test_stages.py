"""Each stage learns, teaches what it should and nothing else, and is told what the model is told in use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import AudioLDM2
from audioldm2.audio import VAE_MEL
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.unet import SELF, T5
from audioldm2.training import STAGES, Stage, losses
from audioldm2.training.additive import line_amplitudes
from audioldm2.training.clap import QUIET, SHARPEST, SLOPE, with_noise
from audioldm2.training.initialise import initialise
from audioldm2.training.muon import Muon
from audioldm2.training.optimizer import Average, Descent
from audioldm2.training.recipe import Recipe, changed
from audioldm2.training.scratch import BESIDE, SMALL, configs_from
from audioldm2.training.stage import VAE_MEL_48K, front_end
from audioldm2.training.vocoder import LINE_LOUDNESS, VocoderRecipe, lines_heard
from tests.support.training import clips, untrained

CPU = torch.device("cpu")
QUICK = {  # recipes that show every part of each stage in a few steps
    "vae": {"learning_rate": 3e-3, "warmup": 0, "adversary_from": 2, "adversary_width": 8},
    "vocoder": {
        "learning_rate": 3e-3, "warmup": 0, "additive_until": 0, "adversary_from": 2, "adversary_width": 4,
        "floor": 0.0, "mel_weight": 45.0, "stft_weights": [1, 1, 1], "adversary_scales": 0,
        "additive_weight": 0.0, "lines_until": 0, "optimiser": "adamw", "bf16": False, "window": 0.0,
        "mel_learning_rate": 0.0,
    },
    "clap": {"learning_rate": 1e-3, "warmup": 0},
    "ldm": {"learning_rate": 3e-3, "warmup": 0, "min_snr": None},
}  # fmt: skip


def stage_of(name: str, checkpoint: Checkpoint, **values) -> Stage:
    recipe = changed(STAGES[name].recipes["small"], QUICK[name] | values, "the test's recipe")
    return STAGES[name](checkpoint, recipe, CPU)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Checkpoint:
    return untrained(tmp_path_factory.mktemp("vocabularies"))


@pytest.fixture(scope="module")
def random(tiny_folder: Path) -> Checkpoint:
    """With every parameter random, so that a gradient reaches each at once."""
    return storage.read(tiny_folder)


def copies(networks: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: tensor.detach().clone() for key, tensor in network.named_parameters()}
        for name, network in networks.items()
    }


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, count, seconds, steps, rate, of, factor",
    [
        ("vae", 2, 0.32, 40, 1e-2, "l1", 0.2),
        ("vocoder", 2, 0.256, 60, 2e-3, "mel", 0.5),
        ("clap", 6, 0.8, 40, 3e-3, "loss", 0.5),
        ("ldm", 4, 0.32, 120, 3e-3, "loss", 0.65),
    ],
)
def test_a_stage_learns_a_few_clips_by_heart(
    name, count, seconds, steps, rate, of, factor, scratch: Checkpoint
):
    never = {"adversary_from": None} if "adversary_from" in QUICK[name] else {}
    stage = stage_of(name, scratch, steps=steps, learning_rate=rate, cosine=False, **never)
    found = [stage.step(*clips(count, seconds))[of] for _ in range(steps)]
    last = sum(found[-10:]) / 10
    assert last < factor * found[0], f"{of} went from {found[0]:.3f} to {last:.3f}"


def test_the_vocoder_first_learns_waves_with_phases_of_their_own(scratch: Checkpoint):
    stage = stage_of("vocoder", scratch, additive_until=41, learning_rate=2e-3, cosine=False)
    found = [stage.step(*clips(2, 0.256)) for _ in range(42)]
    assert not any({"mel", "stft"} & metrics.keys() for metrics in found[:41])
    assert "mel" in found[41] and "stft" in found[41]
    first, last = found[0]["loss"], found[40]["loss"]  # parts of the wave's own size
    assert last < 0.8 * first and last < 0.9, f"the error went from {first:.3f} to {last:.3f}"


@pytest.fixture(scope="module")
def wide(scratch: Checkpoint) -> Checkpoint:
    """With a vocoder that has layers at the frame rate."""
    config = HiFiGANConfig(
        channels=316, upsample_rates=(1, 10, 16), upsample_kernels=(1, 20, 32), branch_kernels=(1,),
        branch_dilations=((1,),), normalize_before=True,
    )  # fmt: skip
    return replace(
        scratch,
        configs=scratch.configs | {"hifigan": config},
        states=scratch.states | {"hifigan": initialise("hifigan", config).state_dict},
    )


def test_the_vocoders_first_layers_learn_lines_before_the_rest_learns_waves(wide: Checkpoint):
    stage = stage_of(
        "vocoder", wide, lines_until=100, optimiser="muon", steps=102, window=0.32, through_vae=0.0
    )
    before = copies(stage.trained)["hifigan"]
    wave, captions = clips(4, 0.8)
    found = [stage.step(wave, captions)["loss"] for _ in range(100)]
    assert found[-1] < 0.6 < 0.9 < found[0]
    for key, parameter in stage.trained["hifigan"].named_parameters():
        first = key.startswith(("conv_in", "stages.0"))
        assert torch.equal(parameter, before[key]) != first, key
    true = line_amplitudes(stage.mel(wave), VAE_MEL)
    with torch.no_grad():
        heard = lines_heard(stage.trained["hifigan"], stage.mel(wave)) / LINE_LOUDNESS
    rise, fall = heard[..., :79], heard[..., 79:158]
    assert losses.relative_error((rise - fall).flatten(1), true.flatten(1)) < 0.7  # which part is which
    stage.step(wave, captions)
    assert not torch.equal(stage.trained["hifigan"].conv_out.weight, before["conv_out.weight"])


def test_a_vocoder_without_layers_for_lines_is_told(scratch: Checkpoint):
    said = "lines_until is 5, but .* rate is 8, and it has 64 channels; needed are rate 1 and 316 channels"
    with pytest.raises(ValueError, match=said):
        stage_of("vocoder", scratch, lines_until=5)


def test_the_additive_wave_counts_beside_the_mel_spectrogram(scratch: Checkpoint):
    found = stage_of(
        "vocoder", scratch, additive_weight=5.0, mel_weight=2.0, stft_weights=[0, 0, 0], adversary_from=None
    ).step(*clips(2, 0.256))
    assert found["loss"] == pytest.approx(2 * found["mel"] + 5 * found["additive"])
    assert found["additive"] > 0.5


def test_a_step_looks_at_windows_that_are_drawn_anew(scratch: Checkpoint):
    stage = stage_of("vocoder", scratch, window=0.16)
    ready = stage.prepare(clips(3, 0.8)[0])
    drawn = torch.Generator().manual_seed(0)
    one, other = stage.look(ready, drawn), stage.look(ready, drawn)
    assert one.shape == (3, 16, ready.shape[2]) and not torch.equal(one, other)
    frames = ready.unfold(1, 16, 1).movedim(3, 2)  # (clips, starts, frames of a window, values)
    for clip, window in zip(frames, one, strict=True):
        assert (clip == window).all(dim=2).all(dim=1).any()
    whole = stage_of("vocoder", scratch, window=3.0).look(ready, drawn)  # longer than the clips
    assert torch.equal(whole, ready)
    with pytest.raises(storage.WeightsError, match=r"window is -1\.0; it has to be at least 0"):
        stage_of("vocoder", scratch, window=-1.0)


@pytest.mark.parametrize("name", ["vae", "vocoder"])
def test_adversaries_enter_at_their_step_and_learn(name: str, scratch: Checkpoint):
    stage = stage_of(name, scratch)
    before = copies({"adversary": stage.adversary})["adversary"]
    batch = clips(2, 0.256)
    assert not any({"tell", "deceive"} & stage.step(*batch).keys() for _ in range(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in stage.adversary.named_parameters())
    tells = [stage.step(*batch)["tell"] for _ in range(6)]
    assert not any(torch.equal(tensor, before[key]) for key, tensor in stage.adversary.named_parameters())
    assert tells[-1] < tells[0]


@pytest.mark.parametrize(
    "name, values, learns, reads",
    [
        ("vae", {}, {"vae"}, set()),
        ("vocoder", {"through_vae": 0.0}, {"hifigan"}, set()),
        ("vocoder", {"through_vae": 0.5}, {"hifigan"}, {"vae"}),
        ("clap", {}, {"clap_text", "clap_audio"}, set()),
        ("clap", {"train_text": False, "noise": 0.5}, {"clap_audio"}, {"clap_text"}),
        ("ldm", {"train_t5": False}, {"unet", "projection", "gpt2"}, {"vae", "clap_text", "t5"}),
        ("ldm", {"train_t5": True}, {"unet", "projection", "gpt2", "t5"}, {"vae", "clap_text"}),
    ],
)
def test_gradients_reach_what_learns_and_nothing_else(name, values, learns, reads, random: Checkpoint):
    stage = stage_of(name, random, **values)
    everything = {each: stage.network(each) for each in learns | reads}
    assert set(stage.trained) == learns and set(stage.reads()) == reads
    before = copies(everything)
    stage.step(*clips(4, 0.8))
    for each, network in everything.items():
        for key, parameter in network.named_parameters():
            same = torch.equal(parameter, before[each][key])
            assert same == (each in reads), f"{each}.{key} {'stayed' if same else 'changed'}"
            assert parameter.requires_grad == (each in learns)
    stored = {each: random.states[each]() for each in learns}
    assert all(torch.equal(stored[each][key], before[each][key]) for each in learns for key in before[each])


@pytest.mark.parametrize("name", list(STAGES))
def test_bfloat16_learns_too(name: str, random: Checkpoint):
    losses = []
    for bf16 in (False, True):
        stage = stage_of(name, random, bf16=bf16)
        losses.append([stage.step(*clips(2, 0.256))["loss"] for _ in range(3)][-1])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_clap_hears_with_dropout_and_learns_the_level_of_each_band(random: Checkpoint):
    stage = stage_of("clap", random)
    audio = stage.trained["clap_audio"]
    before = audio.band_norm.running_mean.clone()
    assert audio.stages[0].blocks[0].dropout.training
    with torch.no_grad():
        audio.logit_scale.fill_(SHARPEST + 1)
    stage.step(*clips(4))
    assert not torch.equal(audio.band_norm.running_mean, before)
    assert audio.logit_scale <= SHARPEST


def test_noise_under_clips_is_as_quiet_as_said():
    silence, tone = -100.0, -10.0
    mels = torch.full((64, 300, 64), silence)
    mels[:, 100:200, 20] = tone  # for a third of the time, in one band
    heard = with_noise(mels, torch.Generator().manual_seed(0))
    assert (heard >= mels).all() and heard.amax() < tone + 1  # powers add
    beside, before = heard[:, 100:200, 40].mean(dim=1), heard[:, :100, 40].mean(dim=1)
    least, most = QUIET
    assert (beside < tone - least + SLOPE).all() and beside.max() > tone - least - 10
    assert beside.min() < tone - most + 15  # all of the range is drawn
    assert (before < silence + 1).any() and (before > silence + 20).any()  # some follows the tone, some stays


def test_clap_learns_of_clips_with_noise_under_them(random: Checkpoint):
    stage = stage_of("clap", random, seconds=3.0, noise=0.5)
    told = []
    stage.trained["clap_audio"].register_forward_pre_hook(lambda _, given: told.append(given[0].clone()))
    wave, captions = clips(4, 3.0)
    ready = stage.prepare(wave)
    before = ready.clone()
    stage.learn(ready, captions)
    assert torch.equal(ready, before), "a pool's clips have to stay as they are"
    frames = round(9.0 * stage.hearing.sample_rate / stage.hearing.hop)  # 3 s thrice, then silence
    assert (told[0][:2, :frames] != ready[:2, :frames]).all(dim=2).any(dim=1).all()
    assert torch.equal(told[0][:2, frames:], ready[:2, frames:]) and torch.equal(told[0][2:], ready[2:])


def test_the_scaling_factor_gives_latents_of_unit_variance(scratch: Checkpoint):
    stage = stage_of("vae", scratch)
    for _ in range(3):
        stage.step(*clips(4))
    batches = [clips(4)[0], clips(8)[0][4:]]
    stage.measure(batches)
    vae = stage.trained["vae"]
    vae.config = stage.checkpoint().configs["vae"]
    with torch.no_grad():
        mean, std = vae.encode(stage.mel(torch.cat(batches)).unsqueeze(1))
    z = mean + std * torch.randn(mean.shape)
    assert float(z.std()) == pytest.approx(1, abs=0.02)


# What the denoiser is told ----------------------------------------------------------------------------------


def test_a_caption_is_told_as_in_use_and_a_dropped_one_as_guidance_tells_nothing(
    random: Checkpoint, tiny_model: AudioLDM2
):
    stage = stage_of("ldm", random)
    captions = ["rain", "a dog barks while the rain falls on the roof", "a bell"]
    expected = tiny_model.encode_prompt(captions)
    for dropped in ([False] * 3, [True] * 3, [True, False, True]):
        told = stage.encode(captions, torch.tensor(dropped))
        for name, tensor in told.tensors.items():
            rows = zip(dropped, expected.negative.tensors[name], expected.tensors[name], strict=True)
            wanted = torch.stack([nothing if drop else caption for drop, nothing, caption in rows])
            torch.testing.assert_close(tensor.detach(), wanted, atol=1e-5, rtol=1e-5)
        assert told.gpt2_context.requires_grad


@pytest.mark.parametrize("part, fewest, most", [(0.0, 0, 0), (1.0, 96, 96), (0.25, 12, 36)])
def test_so_many_captions_are_dropped(part, fewest, most, random: Checkpoint, monkeypatch):
    stage = stage_of("ldm", random, prompt_dropout=part)
    encode, seen = stage.encode, []
    monkeypatch.setattr(
        stage,
        "encode",
        lambda captions, dropped, room: seen.append(dropped) or encode(captions, dropped, room),
    )
    for _ in range(4):
        stage.step(torch.zeros(24, 1600), ["rain"] * 24)
    assert fewest <= int(torch.cat(seen).sum()) <= most


@pytest.mark.parametrize(
    "unet, learns",
    [
        ({"transformers": ((), (SELF, T5))}, {"unet"}),
        ({"transformers": ((), (SELF,)), "film_dim": 32}, {"unet"}),
    ],
)
def test_denoisers_that_hear_less_learn_too(unet: dict, learns: set[str], scratch: Checkpoint):
    config = replace(scratch.configs["unet"], **unet)
    state = initialise("unet", config).state_dict()
    other = replace(
        scratch, configs=scratch.configs | {"unet": config}, states=scratch.states | {"unet": lambda: state}
    )
    stage = stage_of("ldm", other, train_t5=False)
    assert set(stage.trained) == learns
    losses = [stage.step(*clips(2, 0.32))["loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    assert state["conv_out.weight"].abs().max() == 0  # what was given stays as it was


# What they share --------------------------------------------------------------------------------------------


def test_the_average_follows_its_formula():
    network = nn.BatchNorm1d(1)
    average = Average(network, decay=0.9)
    expected = 1.0
    for n in range(1, 101):
        with torch.no_grad():
            network.weight.fill_(1.0 + n)
            network.running_mean.fill_(n)
            network.num_batches_tracked.fill_(n)
        average.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (1.0 + n)
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-5)
    assert average.state["running_mean"] == 100  # no parameter: taken as it is


def test_the_average_is_what_is_written(random: Checkpoint):
    stage = stage_of("ldm", random)
    for _ in range(2):
        stage.step(*clips(2))
    written = stage.checkpoint().states["unet"]()
    assert torch.equal(written["conv_out.weight"], stage.averages["unet"].state["conv_out.weight"])
    assert not torch.equal(written["conv_out.weight"], stage.trained["unet"].conv_out.weight)
    assert stage.checkpoint().states["vae"] is random.states["vae"]


def test_learning_rates_rise_stay_and_fall():
    recipe = Recipe(learning_rate=1.0, warmup=4, steps=104)
    assert [recipe.learning_rate_at(step) for step in (0, 1, 3, 4, 103)] == [0.25, 0.5, 1, 1, 1]
    falling = replace(recipe, cosine=True)
    assert [falling.learning_rate_at(step) for step in (3, 4, 54)] == pytest.approx([1, 1, 0.5])
    assert falling.learning_rate_at(103) < 1e-3
    assert Recipe(learning_rate=1.0, warmup=4, steps=20).learning_rate_at(1) == 1  # a tenth of the steps
    anew = VocoderRecipe(
        learning_rate=1.0, mel_learning_rate=0.5, warmup=4, steps=204, additive_until=104, cosine=True
    )
    middles = [anew.learning_rate_at(step) for step in (3, 54, 107, 156)]
    assert middles == pytest.approx([1, 0.5, 0.5, 0.25])
    assert anew.learning_rate_at(103) < 1e-3 and anew.learning_rate_at(104) == 0.5 / 4


def test_gradients_are_clipped_and_vectors_do_not_decay():
    network = nn.Linear(2, 1)
    descent = Descent([network], Recipe(clip=1e-3, learning_rate=0.1, weight_decay=0.5))
    norm = descent.step(1000 * (network.weight.sum() + network.bias.sum()), 0)
    assert norm > 1000
    assert nn.utils.get_total_norm([p.grad for p in network.parameters()]) == pytest.approx(1e-3, rel=1e-3)
    assert [group["weight_decay"] for group in descent.optimisers[0].param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12), (6, 5, 3)])
def test_muon_moves_in_every_direction_alike(shape: tuple[int, ...]):
    matrix = nn.Parameter(torch.zeros(shape))
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    slope = slope * torch.logspace(0, -2, shape[0]).view(-1, *[1] * (len(shape) - 1))  # some hardly matter
    (matrix * slope).sum().backward()
    Muon([matrix], lr=0.1).step()
    moved = -matrix.detach().flatten(1)
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
    assert values.max() < 1.3 and values.min() > 0.3
    assert (moved * slope.flatten(1)).sum() > 0  # downhill


def test_muon_takes_matrices_and_adamw_the_rest():
    network = nn.Conv1d(4, 4, 3)
    recipe = Recipe(optimiser="muon", learning_rate=0.01, weight_decay=0.5, clip=100.0)
    descent, before = Descent([network], recipe), network.weight.detach().clone()
    for step in range(3):
        descent.step((network.weight.sum() - 1).square() + network.bias.sum(), step)
    assert [type(each).__name__ for each in descent.optimisers] == ["Muon", "AdamW"]
    assert not torch.equal(network.weight, before)
    again = Descent([nn.Conv1d(4, 4, 3)], recipe)
    again.load_state_dict(descent.state_dict())
    kept = [next(iter(each.state.values())) for each in (descent.optimisers[0], again.optimisers[0])]
    assert torch.equal(kept[0]["mean"], kept[1]["mean"])
    with pytest.raises(ValueError):
        Descent([nn.Conv1d(4, 4, 3)], Recipe()).load_state_dict(descent.state_dict())


@pytest.mark.parametrize(
    "values, said",
    [
        ({"batch": 0}, "batch is 0; it has to be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it has to be above 0"),
        ({"pad": "mirror"}, "pad is 'mirror'; it has to be one of silence, repeat"),
        ({"betas": [0.9]}, "betas is"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd'; it has to be one of adamw, muon"),
        ({"steps": "many"}, "steps of the recipe is 'many'; it has to be a whole number"),
        ({"adversary": 3}, "has 'adversary'; this stage knows batch, "),
        ({"prompt_dropout": 2}, "prompt_dropout is 2; it has to be from 0 to 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_a_sentence(values: dict, said: str):
    with pytest.raises((ValueError, storage.WeightsError), match=said.replace("(", r"\(")):
        changed(STAGES["ldm"].recipes["small"], values, "the recipe")


def test_clips_longer_than_clap_hears_are_refused():
    with pytest.raises((ValueError, storage.WeightsError), match="CLAP hears 10 at most"):
        changed(STAGES["clap"].recipes["small"], {"seconds": 12.0}, "the recipe")


def test_what_a_checkpoint_lacks_is_told(random: Checkpoint):
    less = replace(random, configs={n: c for n, c in random.configs.items() if n != "clap_audio"})
    with pytest.raises(ValueError, match="has no 'clap_audio', which the stage 'clap' needs"):
        stage_of("clap", less)


def test_front_ends_are_upstreams():
    assert front_end(HiFiGANConfig()) == VAE_MEL
    wide = HiFiGANConfig(mels=256, sample_rate=48_000, upsample_rates=(6, 5, 4, 2, 2))
    assert front_end(wide) == VAE_MEL_48K
    with pytest.raises(ValueError, match="24000 Hz"):
        front_end(HiFiGANConfig(sample_rate=24_000))


# Beginning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SMALL if name not in BESIDE])
def test_a_seed_gives_the_same_beginning_each_time(name: str, scratch: Checkpoint):
    config = scratch.configs[name]
    before = torch.get_rng_state()
    one, same, other = (initialise(name, config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(tensor.isfinite().all() for tensor in one.values())


def test_the_denoiser_begins_with_no_noise_and_the_vocoder_audible(scratch: Checkpoint):
    unet = initialise("unet", scratch.configs["unet"])
    contexts = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    assert unet(torch.randn(1, 16, 16, 16), torch.tensor(500.0), *contexts).abs().max() == 0
    for channels in (64, 512):
        config = HiFiGANConfig(
            channels=channels, upsample_rates=(8, 5, 4), upsample_kernels=(16, 11, 8), normalize_before=True
        )
        vocoder = initialise("hifigan", config)
        assert 0.03 < vocoder(3 * torch.randn(1, 20, 64) - 5).std() < 0.3


def test_a_vocoder_for_lines_begins_by_adding_them_up():
    """Behind the layers at the frame rate it is linear, and what lifts its features is not heard."""
    config = SMALL["hifigan"]
    vocoder = initialise("hifigan", config).double()
    lines = 20 * torch.rand(2, 3, config.channels // 2, 40, dtype=torch.float64)

    def add_up(x: Tensor) -> Tensor:
        for stage in vocoder.stages[1:]:
            x = stage(x)
        return vocoder.conv_out(torch.nn.functional.leaky_relu(x))[:, 0, 800:-800]  # where nothing ends

    with torch.no_grad():
        one, other = add_up(0.01 * lines[0]), add_up(0.01 * lines[1])
        silent = add_up(0 * lines[0])
        both = add_up(0.01 * lines.sum(dim=0))
    assert silent.abs().max() < 0.1 * one.std()
    assert (one + other - silent - both).std() < 0.1 * both.std()


def test_sizes_say_what_differs_from_small():
    configs = configs_from({"unet": {"depth": 2}}, "sizes.json")
    assert configs == SMALL | {"unet": replace(SMALL["unet"], depth=2)}
    with pytest.raises(ValueError, match=r"sizes\.json has 'phonemes'; the networks are"):
        configs_from({"phonemes": {}}, "sizes.json")
    with pytest.raises(storage.WeightsError, match=r"depth of 'unet' in sizes\.json is 'two'"):
        configs_from({"unet": {"depth": "two"}}, "sizes.json")
