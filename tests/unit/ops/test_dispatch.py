"""The choice of kernels: when one may run at all, when it is taken, and how it is reported."""

import threading

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import ArgumentError
from audioldm2.ops import dispatch
from audioldm2.ops.dispatch import Kernel, Operation


def doubling(*kernels: Kernel, sample=lambda x: (x,)) -> Operation:
    return Operation("doubling", lambda x: x + x, list(kernels), lambda x: x.shape[1:], sample)


def kernel(name: str, run=lambda x: 2 * x, applies=lambda x: True) -> Kernel:
    return Kernel(name, run, applies)


@pytest.fixture(autouse=True)
def no_earlier_choices(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLDM2_CACHE", str(tmp_path))


@pytest.fixture
def timed(monkeypatch):
    """Sets what the trial's clock shows for each kernel."""
    seconds: dict[str, float] = {}
    monkeypatch.setattr(dispatch, "_time", lambda runs, args: {name: seconds.get(name, 1.0) for name in runs})
    return seconds


@torch.no_grad()
@pytest.mark.parametrize(
    ("taken", "expected"), [(0.5, "fast"), (0.89, "fast"), (0.91, "reference"), (2.0, "reference")]
)
def test_kernel_is_taken_only_where_it_is_faster_by_the_margin(timed, taken: float, expected: str):
    timed["fast"] = taken
    operation, calls = doubling(kernel("fast", lambda x: calls.append(1) or 2 * x)), []
    assert torch.equal(operation(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    [(_, choice)] = operation.choices.values()
    assert choice.kernel == expected and choice.milliseconds == {"reference": 1000.0, "fast": 1000 * taken}
    calls.clear()
    operation(torch.ones(5, 3))
    assert bool(calls) == (expected == "fast")


@torch.no_grad()
@pytest.mark.parametrize(
    "wrong", [lambda x: 2.001 * x, lambda x: x[:1], lambda x: (2 * x).double(), lambda x: x * torch.nan]
)
def test_kernel_that_disagrees_is_never_taken(timed, wrong):
    timed["wrong"] = 0.1
    operation = doubling(kernel("wrong", wrong))
    assert torch.equal(operation(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert [choice.kernel for _, choice in operation.choices.values()] == ["reference"]


@torch.no_grad()
def test_kernel_that_this_pytorch_lacks_is_never_taken(timed):
    timed["absent"] = 0.1
    operation = doubling(kernel("absent", lambda x: torch.ops.mkldnn._no_such_operator(x)))
    assert torch.equal(operation(torch.ones(2, 3)), torch.full((2, 3), 2.0))


@torch.no_grad()
def test_choice_is_made_once_per_class_and_not_per_batch(timed):
    operation = doubling(kernel("fast"))
    for batch in (1, 2, 7):
        operation(torch.ones(batch, 3))
    operation(torch.ones(1, 4))
    operation(torch.ones(1, 4).bfloat16())
    assert len(operation.choices) == 3


@torch.no_grad()
def test_input_that_is_not_finite_decides_nothing(timed):
    timed["fast"] = 0.1
    operation = doubling(kernel("fast"))
    assert operation(torch.full((1, 3), torch.nan)).isnan().all()
    assert not operation.choices


def test_reference_runs_where_anything_but_the_processor_has_a_say(timed):
    timed["fast"] = 0.1
    calls = []
    operation = doubling(kernel("fast", lambda x: calls.append(1) or 2 * x))
    x = torch.ones(2, 3)
    operation(x)  # gradients are on
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            operation(x)
        operation(x.double())
        operation(x.to("meta"))
        operation(torch.ones(0, 3))
        torch.vmap(operation)(x)
        torch.compile(operation.__call__, backend="eager")(x)
        torch.jit.trace(lambda y: operation(y), x, check_trace=False)
        with ops.using("reference"):
            operation(x)
        assert not calls
        operation(x)
    assert calls


@torch.no_grad()
def test_environment_forces_the_reference(timed, monkeypatch):
    timed["fast"] = 0.1
    calls = []
    operation = doubling(kernel("fast", lambda x: calls.append(1) or 2 * x))
    monkeypatch.setenv("AUDIOLDM2_OPS", "reference")
    operation(torch.ones(2, 3))
    assert not calls and ops.mode() == "reference"
    with ops.using("auto"):
        operation(torch.ones(2, 3))
    assert calls
    monkeypatch.setenv("AUDIOLDM2_OPS", "fast")
    with pytest.raises(ArgumentError, match="AUDIOLDM2_OPS is 'fast'; it has to be one of auto, reference"):
        operation(torch.ones(2, 3))
    with (
        pytest.raises(ArgumentError, match="ops is 'plain'; it has to be one of auto, reference"),
        ops.using("plain"),
    ):
        pass


@torch.no_grad()
def test_using_is_per_thread():
    seen = []
    with ops.using("reference"):
        thread = threading.Thread(target=lambda: seen.append(ops.mode()))
        thread.start()
        thread.join()
        assert ops.mode() == "reference"
    assert seen == ["auto"]


@torch.no_grad()
def test_threads_share_one_choice(monkeypatch):
    trials = []
    monkeypatch.setattr(dispatch, "_time", lambda runs, args: trials.append(1) or dict.fromkeys(runs, 1.0))
    operation = doubling(kernel("fast"))
    threads = [
        threading.Thread(target=torch.no_grad()(lambda: operation(torch.ones(1, 3)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trials) == 1


@torch.no_grad()
def test_report_lists_what_was_chosen(timed):
    timed["onednn"] = 0.25
    ops.linear.choices.clear()
    ops.linear(torch.randn(100, 6), torch.randn(5, 6))
    assert "(5, 6, False, 'many rows')" in ops.report()
    assert any("reference 1000.000" in line for line in ops.report().splitlines())
    [choice] = [each for each in ops.choices() if each.operation == "linear"]
    assert choice.dtype == torch.float32
    ops.linear.choices.clear()


def test_tensor_subclasses_get_the_reference(timed):
    class Tagged(Tensor):
        pass

    timed["fast"] = 0.1
    calls = []
    operation = doubling(kernel("fast", lambda x: calls.append(1) or 2 * x))
    with torch.no_grad():
        operation(torch.ones(2, 3).as_subclass(Tagged))
        operation(nn.Parameter(torch.ones(2, 3)))
    assert len(calls) == 2  # tried and run, for the parameter alone
