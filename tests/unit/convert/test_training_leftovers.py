"""What training leaves in an original file: dropped with a reason, undone, or read as it was stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import NoiseSchedule, convert
from tests.support import originals
from tests.support.checkpoints import assert_same_states, states_of

KINDS = ("base", "48k")
VOCODER = "first_stage_model.vocoder"
State = dict[str, Tensor]


def assert_converts_alike(table: State, kind: str) -> None:
    """The table becomes the same networks as the plain one."""
    assert_same_states(originals.convert_table(table), originals.make(kind).states)


LEFTOVERS = {
    "loss": {
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.perceptual_loss.net.slice1.0.weight": torch.ones(4, 3, 3, 3),
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 4, 1, 1),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(4, 1, 4, 4),
        "first_stage_model.loss.discriminator.main.3.num_batches_tracked": torch.tensor(7),
    },
    "colorize": {"first_stage_model.colorize": torch.ones(3, 2, 1, 1)},
    "ddim": {
        "ddim_sigmas": torch.zeros(200),
        "ddim_alphas": torch.ones(200),
        "ddim_alphas_prev": torch.ones(200),
        "ddim_sqrt_one_minus_alphas": torch.ones(200),
        "ddim_sigmas_for_original_num_steps": torch.zeros(1000),
    },
    "lvlb": {"lvlb_weights": torch.ones(1000)},
}


@pytest.mark.parametrize(("leftover", "kind"), list(zip(LEFTOVERS, 2 * KINDS, strict=True)))
def test_training_tensors_are_dropped_with_a_reason(kind, leftover):
    extra = LEFTOVERS[leftover]
    table = originals.table_of(kind) | extra
    assert_converts_alike(table, kind)
    with originals.in_memory(table):
        dropped = {move.source: move.row.note for move in convert.read_original(Path("a.pth")).dropped}
    assert all(len(dropped[key].split()) > 2 for key in extra)


def test_other_keys_below_the_autoencoder_are_errors():
    table = originals.table_of("48k") | {"first_stage_model.losses.logvar": torch.zeros(())}
    assert "'first_stage_model.losses.logvar'" in originals.table_error(table)


def inside(wrapper: str) -> Callable[[str], str]:
    """Returns a renaming of the keys of one wrapped network, the denoiser."""
    return lambda key: key.replace("model.diffusion_model.", f"model.{wrapper}.diffusion_model.")


WRAPPINGS = {
    "outer _orig_mod": lambda key: f"_orig_mod.{key}",
    "outer module": lambda key: f"module.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "denoiser compiled": inside("_orig_mod"),
    "denoiser in DDP": inside("module"),
    "denoiser in FSDP": inside("_fsdp_wrapped_module"),
    "decoder compiled": lambda key: key.replace("stage_model.decoder.", "stage_model.decoder._orig_mod."),
    "vocoder compiled": lambda key: key.replace(".vocoder.", ".vocoder._orig_mod."),
}


@pytest.mark.parametrize(("wrapping", "kind"), list(zip(WRAPPINGS, 4 * KINDS, strict=True)))
def test_names_of_module_wrappers_are_removed(kind, wrapping):
    table = {WRAPPINGS[wrapping](key): tensor for key, tensor in originals.table_of(kind).items()}
    assert table.keys() != originals.table_of(kind).keys()
    assert_converts_alike(table, kind)


def test_ema_of_a_compiled_denoiser_is_found():
    made = originals.make("48k")
    table = {
        key.replace("model_ema.diffusion", "model_ema._orig_moddiffusion"): tensor
        for key, tensor in made.table.items()
    }
    table = {inside("_orig_mod")(key): tensor for key, tensor in table.items()}
    found = originals.convert_table(table, ema=True)
    assert_same_states(found, made.states | {"unet": made.average})


def test_rejects_tensor_with_and_without_wrapper():
    key = "model.diffusion_model.out.2.bias"
    table = originals.table_of("48k")
    message = originals.table_error(table | {f"module.{key}": table[key]})
    assert f"holds '{key}' twice" in message


WEIGHT_NORMS = {
    "weight_g and weight_v": nn.utils.weight_norm,
    "parametrizations": nn.utils.parametrizations.weight_norm,
}


def with_weight_norm(
    table: State, weight_norm: Callable[[nn.Module], nn.Module], dtype: torch.dtype
) -> State:
    """Return a table whose vocoder has weight norm on every convolution, as HiFi-GAN's training stores it."""
    normed = {}
    for key, tensor in table.items():
        module, _, name = key.rpartition(".")
        if not key.startswith(f"{VOCODER}.") or name != "weight":
            normed[key] = tensor
            continue
        kind = nn.ConvTranspose1d if ".ups." in key else nn.Conv1d
        sizes = tensor.shape[:2] if kind is nn.ConvTranspose1d else tensor.shape[1::-1]
        layer = kind(*sizes, tensor.shape[2], bias=False, dtype=dtype)
        layer.weight.data = tensor.to(dtype)
        state = weight_norm(layer).state_dict()
        normed |= {f"{module}.{each}": value.detach().clone() for each, value in state.items()}
    return normed


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(("form", "kind"), list(zip(WEIGHT_NORMS, KINDS, strict=True)))
def test_weight_norm_of_the_vocoder_is_folded(tmp_path, kind, form):
    table = with_weight_norm(originals.table_of(kind), WEIGHT_NORMS[form], torch.float32)
    assert f"{VOCODER}.conv_pre.weight" not in table
    checkpoint = convert.read_original(originals.save(tmp_path / "a.pth", table))
    found, expected = states_of(checkpoint), dict(originals.make(kind).states)
    assert checkpoint.configs == originals.make(kind).configs
    vocoder, plain = found.pop("hifigan"), expected.pop("hifigan")
    assert_same_states(found, expected)
    assert vocoder.keys() == plain.keys()
    for key in plain:  # g * v / |v| of g = |v| is v but for the last bit
        torch.testing.assert_close(vocoder[key], plain[key], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weight_norm_is_folded_in_every_dtype(tmp_path, dtype):
    table = with_weight_norm(originals.table_of("48k"), nn.utils.weight_norm, dtype)
    vocoder = convert.read_original(originals.save(tmp_path / "a.pth", table)).states["hifigan"]()
    plain = originals.make("48k").states["hifigan"]
    assert vocoder["conv_in.weight"].dtype == dtype
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        vocoder["conv_in.weight"].float(), plain["conv_in.weight"], rtol=near, atol=near
    )


def test_rejects_weight_norm_without_its_magnitude():
    table = with_weight_norm(originals.table_of("48k"), nn.utils.parametrizations.weight_norm, torch.float32)
    key = f"{VOCODER}.ups.0.parametrizations.weight.original0"
    message = originals.table_error({name: each for name, each in table.items() if name != key})
    assert (
        "below 'first_stage_model.vocoder'" in message
        and "'ups.0.parametrizations.weight.original1'" in message
    )


def trainer_state(table: State) -> dict[str, Any]:
    """What Lightning saves with a model."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    return {
        "epoch": 12,
        "global_step": 665_000,
        "pytorch-lightning_version": "2.1.3",
        "state_dict": table,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'global_step'}": {
                "best_model_score": torch.tensor(1.5),
                "best_k_models": {"last.ckpt": torch.tensor(1.5)},
                "dirpath": "/somewhere",
                "kth_value": None,
            }
        },
        "optimizer_states": [
            {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]}
        ],
        "lr_schedulers": [{"last_epoch": 4, "_last_lr": [1e-4]}],
        "NativeMixedPrecisionPlugin": {"scale": 65536.0, "_growth_tracker": 3},
        "hparams_name": "kwargs",
        "hyper_parameters": {"base_learning_rate": 1e-4, "unet_config": {"params": {"layers": [1, 2]}}},
    }


def test_trainer_state_is_ignored(tmp_path):
    torch.save(trainer_state(originals.table_of("base")), tmp_path / "last.ckpt")
    assert_same_states(originals.convert_file(tmp_path / "last.ckpt"), originals.make("base").states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"), [("base", torch.float16), ("48k", torch.bfloat16), ("48k", torch.float64)]
)
def test_dtype_of_the_file_is_kept(tmp_path, kind, dtype):
    """Buffers are cast too, as `module.half()` does; float64 is written as float32."""
    table = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in originals.table_of(kind).items()
    }
    file = originals.save(tmp_path / "a.pth", table)
    written = torch.float32 if dtype == torch.float64 else dtype
    expected = {
        name: {key: tensor.to(dtype).to(written) for key, tensor in state.items()}
        for name, state in originals.make(kind).states.items()
    }
    assert_same_states(originals.convert_file(file), expected)
    checkpoint = convert.read_original(file)
    assert NoiseSchedule(**checkpoint.schedule) == NoiseSchedule()
    assert checkpoint.configs["vae"].scaling_factor == pytest.approx(originals.SCALING_FACTOR, rel=4e-3)
