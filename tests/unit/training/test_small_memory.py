"""What lets a stage run in less memory: parts of a batch, recomputed layers, frozen weights in bfloat16."""

import pytest
import torch
from torch import Tensor

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training.ldm import LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.optimizer import Optimizer
from audioldm2.training.randomness import generator
from audioldm2.training.recipe import Recipe
from tests.support.training import clips, stage_of

VALUES = {"learning_rate": 1e-5, "prompt_dropout": 0.3, "clap_dropout": 0.3, "rank": 2}


def stage(name: str, checkpoint: Checkpoint, **values: object) -> LDMStage:
    shared = {key: value for key, value in VALUES.items() if name == "lora" or key != "rank"}
    return stage_of(name, checkpoint, **shared | values)


def gradients(stage: LDMStage, batch: int) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step and the gradients before clipping."""
    if stage.name == "lora":  # B = 0 gives A no gradient
        for key, parameter in stage.trained["unet"].named_parameters():
            torch.nn.init.normal_(parameter, 0, 0.1, generator=generator(key))
    waves, captions = clips(batch, 0.32)
    loss = stage.step(waves, captions)["loss"]
    named = {
        f"{name}.{key}": parameter.grad
        for name, network in stage.trained.items()
        for key, parameter in network.named_parameters()
    }
    return loss, {key: grad.clone() for key, grad in named.items() if grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys() and expected
    whole = torch.cat([grad.flatten() for grad in expected.values()]).norm()
    error = torch.cat([(found[key] - expected[key]).flatten() for key in expected]).norm()
    assert error < tolerance * whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unconditional", "parts"),
    [  # every pair of values
        *(("ldm", "trained", 2), ("lora", "reference", 2), ("ldm", "reference", 3), ("lora", "trained", 3)),
        *(("ldm", "trained", 5), ("lora", "reference", 5)),
    ],
)
def test_parts_of_a_batch_add_up_to_it(name: str, unconditional: str, parts: int, random_weights: Checkpoint):
    """Five clips in parts of 3 and 2, of 2, 2 and 1, and of 1."""
    loss, expected = gradients(stage(name, random_weights, unconditional=unconditional), 5)
    values = {"unconditional": unconditional, "accumulate": parts}
    in_parts, found = gradients(stage(name, random_weights, **values), 5)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    assert_close(found, expected, 1e-5)


def test_parts_are_computed_one_after_the_other(random_weights: Checkpoint, monkeypatch):
    made, sizes = stage("ldm", random_weights, accumulate=2), []
    unet = made.network("unet")
    unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    backward = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda self: (sizes.append("back"), backward(self))[1])
    made.step(*clips(4, 0.32))
    assert sizes == [2, "back", 2, "back"]


def test_nan_in_a_later_part_changes_no_parameter(random_weights: Checkpoint):
    made = stage("ldm", random_weights, accumulate=2)
    before = made.trained["unet"].conv_in.weight.detach().clone()
    waves, captions = clips(4, 0.32)
    waves[3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        made.step(waves, captions)
    assert torch.equal(made.trained["unet"].conv_in.weight, before) and not made.torn


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ldm", "lora"])
def test_recomputed_layers_have_the_same_gradients(name: str, random_weights: Checkpoint):
    loss, expected = gradients(stage(name, random_weights), 2)
    recomputed, found = gradients(stage(name, random_weights, recompute=True), 2)
    assert recomputed == pytest.approx(loss, rel=1e-6)
    assert_close(found, expected, 1e-6)


def kept_bytes(made: LDMStage) -> int:
    """What autograd keeps of the denoiser's forward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    draws = made.draw(torch.randn(2, 2, 8, 16, 16), generator("noise"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made.loss(["rain", "wind"], draws)
    return sum(kept.values())


def test_recomputed_layers_keep_less(random_weights: Checkpoint):
    kept = [kept_bytes(stage("lora", random_weights, recompute=each)) for each in (False, True)]
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ldm", "lora"])
def test_frozen_weights_in_bfloat16(name: str, random_weights: Checkpoint):
    made = stage(name, random_weights, bf16=True, frozen_bf16=True, train_t5=False)
    for network in made.frozen():
        assert {each.dtype for each in made.network(network).parameters()} == {torch.bfloat16}
    trained = {each.dtype for network in made.trained.values() for each in network.parameters()}
    assert trained == {torch.float32}
    if name == "lora":
        assert made.network("unet").conv_in.weight.dtype == torch.bfloat16
    half = made.step(*clips(2, 0.32))["loss"]
    whole = stage(name, random_weights, train_t5=False).step(*clips(2, 0.32))["loss"]
    assert half != whole and half == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"accumulate": 0}, "accumulate is 0; it has to be from 1 to the batch size"),
        ({"accumulate": 9, "batch": 8}, "accumulate is 9; it has to be from 1 to the batch size"),
        ({"frozen_bf16": True}, "frozen_bf16 is True; it has to be false without bf16 or fp16"),
    ],
)
def test_recipe_rejects(values: dict, words: str):
    with pytest.raises(ArgumentError, match=words):
        LDMRecipe(**values)


# float16. A CPU computes what a card does, only slower; stages refuse it there ------------------------------


def fp16_optimizer(network: torch.nn.Module) -> Optimizer:
    return Optimizer([network], Recipe(fp16=True, learning_rate=0.1, max_grad_norm=1e9))


def test_scaled_loss_gives_the_same_update():
    networks = [torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)]
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.randn(5, 3)
    scaled = fp16_optimizer(networks[0])
    plain = Optimizer([networks[1]], Recipe(learning_rate=0.1, max_grad_norm=1e9))
    for step in range(3):
        for network, optimizer in zip(networks, (scaled, plain), strict=True):
            optimizer.step(network(x).square().mean(), step)
    assert torch.allclose(networks[0].weight, networks[1].weight)


def test_overflow_leaves_the_step_out_and_halves_the_scale():
    network = torch.nn.Linear(3, 1)
    before, optimizer = network.weight.detach().clone(), fp16_optimizer(network)
    scale = optimizer.scaler.get_scale()
    norm = optimizer.step(1e36 * network(torch.ones(1, 3)).sum(), 0)  # finite; times the scale it is not
    assert norm == 0 and torch.equal(network.weight, before)
    assert optimizer.scaler.get_scale() == scale / 2
    resumed = fp16_optimizer(network)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.scaler.get_scale() == scale / 2
    assert optimizer.step(network(torch.ones(1, 3)).sum(), 1) > 0 and not torch.equal(network.weight, before)


def test_overflow_at_the_least_scale_is_an_error():
    network = torch.nn.Linear(3, 1)
    optimizer = fp16_optimizer(network)
    with pytest.raises(FloatingPointError, match="the norm of the gradient is inf"):
        for step in range(40):
            change = network.weight - network.weight.detach()  # 0, and the root's slope there is infinite
            optimizer.step(change.sqrt().sum(), step)
    assert step == 17  # the scale begins at 2 ** 16


def test_fp16_is_refused_where_there_is_no_card(random_weights: Checkpoint):
    with pytest.raises(ArgumentError, match="fp16 is True; it has to be false on cpu; bf16 may be true"):
        stage("ldm", random_weights, fp16=True)
    with pytest.raises(ArgumentError, match="fp16 is True; it has to be false with bf16"):
        LDMRecipe(fp16=True, bf16=True)
