"""The losses of stages on a GPU: every tensor of a step is moved where it is needed."""

import pytest
import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training.randomness import generator
from tests.support.pretended_gpu import pretended_gpu
from tests.support.training import clips, hearing, stage_of

STAGES = {
    "ldm": {"gt_loa": 0.5, "loa_weight": 1.0, "unconditional": "trained"},
    "lora": {"adapted": ("unet", "gpt2"), "unconditional": "reference"},
    "word": {},
    "loa": {"seconds": 1.28},
    "clap": {},
}


@torch.no_grad()  # gradients need a PyTorch that is built for CUDA
def losses(name: str, checkpoint: Checkpoint) -> dict[str, float]:
    """What a step and the validation compute."""
    values = {"batch": 2, "seconds": 0.32, "pool": 0, "bf16": False} | STAGES[name]
    stage = stage_of(name, checkpoint, **values)
    waves, captions = clips(2, stage.recipe.seconds)
    prepared = stage.prepare(waves)
    torch.manual_seed(0)  # of dropout
    found = dict(stage.validation_step(prepared, captions, generator("validation", 0, 0)))
    if hasattr(stage, "errors"):
        errors = stage.errors(captions, stage.draw(prepared, generator("draws")))
        found |= {f"step {each}": error for each, (_, error) in errors.items()}
    return {each: float(loss) for each, loss in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_losses_are_those_of_the_cpu(name: str, random_weights: Checkpoint, monkeypatch):
    checkpoint = hearing(random_weights)
    expected = losses(name, checkpoint)
    with pretended_gpu(monkeypatch):
        monkeypatch.setattr("tests.support.training.DEVICE", torch.device("cuda", 0))
        assert losses(name, checkpoint) == pytest.approx(expected, rel=1e-3)
