"""Each network alone: the device against the CPU in every dtype, and captured as a CUDA graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.runtime.placement import materialise
from scripts.benchmark.compare_precision import Inputs
from scripts.gpu_checks.context import Context, Row, against

# dtype, whether TF32 is allowed, least signal-to-error ratio in dB against float32 on the CPU
PRECISIONS = {
    "float32": (torch.float32, False, 80.0),
    "float32, TF32": (torch.float32, True, 40.0),
    "float16": (torch.float16, False, 40.0),
    "bfloat16": (torch.bfloat16, False, 25.0),
}
CAPTURED = ("unet", "vae", "hifigan")  # fixed shapes, no loop: what a graph can hold
SAME = 60.0  # dB between a graph and the calls that it holds


@torch.no_grad()
def parity(context: Context) -> Iterator[Row]:
    """Every network on the device, in each precision, on inputs from the float32 networks on the CPU."""
    checkpoint, cpu = context.checkpoint(), torch.device("cpu")
    seconds = min(context.seconds, 2.56)
    here, there = (Inputs(checkpoint, device, seconds) for device in (cpu, context.device))
    for (name, run), (_, run_there) in zip(here.runs(), there.runs(), strict=True):
        network = materialise(checkpoint, name, device=cpu, dtype=torch.float32)
        exact = run(network, torch.float32)
        del network
        for words, (dtype, tf32, least) in PRECISIONS.items():
            if tf32 and not context.is_cuda:
                continue
            row = Row("parity", f"{name}, {words}", False)
            try:
                with allowing_tf32(tf32), context.measured(row.figures):
                    network = materialise(checkpoint, name, device=context.device, dtype=dtype)
                    found = run_there(network, dtype).float()
                row.ok, figures, row.sentence = against(exact, found, least)
                row.figures = figures | row.figures
            except Exception as error:  # one network in one dtype, not the others
                row.sentence = f"{type(error).__name__}: {error}"
            yield row
            network = None
        here.outputs[name], there.outputs[name] = exact, exact.to(context.device)


@torch.no_grad()
def capture(context: Context) -> Iterator[Row]:
    """The networks of a step and of the end, captured as a CUDA graph and run again.

    A capture fails where a network waits for the GPU, so it also finds hidden synchronisation.
    """
    checkpoint, dtype = context.checkpoint(), storage.DTYPES[context.dtype]
    inputs = Inputs(checkpoint, context.device, context.seconds)
    for name, run in inputs.runs():
        network = materialise(checkpoint, name, device=context.device, dtype=dtype)
        expected = run(network, dtype)
        inputs.outputs[name] = expected.float()
        if name not in CAPTURED:
            continue
        row = Row("capture", f"{name}, {context.dtype}", False)
        try:
            replay = captured(lambda net=network, call=run: call(net, dtype), context.device)
            with context.measured(row.figures):
                found = replay()
            row.ok, figures, row.sentence = against(expected.float(), found.float(), SAME)
            row.figures = figures | row.figures
        except Exception as error:
            row.sentence = f"{type(error).__name__}: {error}"
        if not context.is_cuda:
            row.ok, row.sentence = None, "only CUDA has graphs; the call itself was run twice"
        yield row


def captured(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function as a CUDA graph, warmed up on a side stream as PyTorch asks; itself on other devices."""
    if device.type != "cuda":
        return run
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions on CUDA round to TF32 inside the block, or not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
