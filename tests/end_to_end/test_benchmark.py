"""scripts/benchmark: both sides in one run, counting of operations, statistics, messages."""

import importlib.util
import json
import math
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import audioldm2
from audioldm2.models import build_on_meta
from scripts.benchmark import arithmetic, benchmark, report, runs, sides, worker
from scripts.make_random_checkpoint import BASE

SMALL = ["--device", "cpu", "--duration", "0.32", "--steps", "2", "--runs", "1", "--threads", "1"]
CONSECUTIVE = ("prompt", "denoise", "decode", "vocode")
PEER_IS_HERE = all(importlib.util.find_spec(name) for name in benchmark.PEER_NEEDS)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> SimpleNamespace:
    """A small run of both sides: its output, messages and figures, and what loading each side costs.

    Our side alone starts once more: importing diffusers twice would take longer than all the rest.
    """
    if not PEER_IS_HERE:
        pytest.skip("needs diffusers and transformers")
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["--size", "tiny", "--starts", "1", "--lengths", "0.64,0.32", "--sounds", "2"]
    loading: dict[str, dict[str, Any]] = {}
    load, measure_starts = runs.Worker.load, runs.measure_starts

    def noted(self: runs.Worker, *given: Any) -> dict[str, float]:
        costs = load(self, *given)
        loading.setdefault(self.role, {name: runs.spread([cost]) for name, cost in costs.items()})
        return costs

    def ours_alone(sides: dict[str, runs.Side], case: runs.Case, **how: Any) -> dict[str, Any]:
        return measure_starts({"ours": sides["ours"]}, case, **how)

    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        patch.setattr(runs.Worker, "load", noted)
        patch.setattr(benchmark, "measure_starts", ours_alone)
        code = benchmark.main([*SMALL, *arguments, "--json", str(folder / "found.json")])
    assert code == 0, stderr.getvalue()
    found = json.loads((folder / "found.json").read_text())
    return SimpleNamespace(
        found=found, stdout=stdout.getvalue(), stderr=stderr.getvalue(), folder=folder, loading=loading
    )


def test_every_case_has_both_sides(both):
    cases = both.found["cases"]
    assert [(case["seconds"], case["sounds"]) for case in cases] == [(0.32, 1), (0.64, 1), (0.32, 2)]
    for case in cases:
        for role in ("ours", "peer"):
            stages = case[role]["stages"]
            assert set(stages) == set(report.STAGES)
            for entry in stages.values():
                assert 0 < entry["least"] <= entry["median"] <= entry["most"] and len(entry["runs"]) == 1
                assert entry["GFLOP"] > 0 and entry["percent of ceiling"] > 0
            whole = sum(stages[stage]["median"] for stage in CONSECUTIVE)
            assert whole == pytest.approx(stages["request"]["median"], rel=0.01)
            assert 0 < stages["step"]["median"] < stages["denoise"]["median"]
            assert case[role]["peak resident memory, MB"]["median"] > 50
        for stage, ratio in case["ratio"].items():
            ours, peer = (case[role]["stages"][stage]["median"] for role in ("ours", "peer"))
            assert ratio == pytest.approx(ours / peer)


def test_arithmetic_of_both_sides_agrees(both):
    """Decoding and vocoding take the same products on both sides."""
    short, long, two = both.found["cases"]
    for stage in ("decode", "vocode"):
        ours, peer = (short[role]["stages"][stage]["GFLOP"] for role in ("ours", "peer"))
        assert ours == pytest.approx(peer, rel=0.02)
    for role in ("ours", "peer"):
        for more in (long, two):
            ratio = more[role]["stages"]["step"]["GFLOP"] / short[role]["stages"]["step"]["GFLOP"]
            assert 1.5 < ratio < 2.5


def test_figures_of_a_run(both):
    found = both.found
    assert found["lengths"] == [0.32, 0.64] and found["sounds"] == [2]
    assert math.isfinite(found["exponents"]["length"]["peer"]["step"])
    assert found["exponents"]["sounds"]["ours"]["step"] is None  # a single number of sounds has no slope
    assert found["ceiling, GFLOP/s"]["float32"]["best"] > 1
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["threads"] == 1
    assert found["sides"]["ours"]["steps"] == found["sides"]["peer"]["steps"] == 2
    for role, package in (("ours", "audioldm2"), ("peer", "diffusers")):
        costs = {name: cost["median"] for name, cost in both.loading[role].items()}
        assert all(costs[f"{part}, s"] > 0 for part in ("import torch", f"import {package} after it", "load"))
        before, after = (costs[f"peak resident memory {when} load, MB"] for when in ("before", "after"))
        assert after >= before > 50
    assert found["starts"]["ours"].keys() > both.loading["ours"].keys()
    costs = {name: cost["median"] for name, cost in found["starts"]["ours"].items()}
    loaded = sum(costs[f"{part}, s"] for part in ("import torch", "import audioldm2 after it", "load"))
    assert costs["all up to the first sound, s"] == pytest.approx(loaded + costs["first sound, s"])
    assert min(costs["first sound, s"], costs["second sound, s"]) > 0


def test_report(both, capsys):
    printed = both.stdout
    tables = [part for part in printed.split("\n\n") if part.startswith("|")]
    assert [table.split("|")[1].strip() for table in tables] == [
        "stage", "stage", "length, s", "sounds", "starting",
    ]  # fmt: skip
    for table in [*tables, report.start_table(both.loading)]:
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert len({len(line) for line in table.splitlines()}) == 1
    assert "ours / diffusers" in tables[0] and "grows with the length" in printed
    assert "diffusers: 2 steps of dpmpp_2m, float32." in printed
    arguments = [str(both.folder / "found.json")]
    plot = both.folder / "found.png"
    if importlib.util.find_spec("matplotlib"):
        arguments += ["--plot", str(plot)]
    assert report.main(arguments) == 0
    assert capsys.readouterr().out == printed
    if len(arguments) > 1:
        assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small run of our side, compiled, as where neither diffusers nor matplotlib is installed."""
    folder = tmp_path_factory.mktemp("alone")
    arguments = ["--model", str(tiny_folder), "--starts", "0", "--compile", "ours"]
    arguments += ["--plot", str(folder / "none.png"), "--json", str(folder / "found.json")]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        patch.setattr(benchmark, "find_spec", lambda name: None)
        # Only the order of requests matters here; compiling would take minutes, and `both` has the ceiling.
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        ceiling = SimpleNamespace(ask=lambda *_, **__: {"matmul": 10.0})
        patch.setattr(benchmark, "start_worker", lambda *_: nullcontext(ceiling))
        assert benchmark.main([*SMALL, *arguments]) == 0, stderr.getvalue()
    found = json.loads((folder / "found.json").read_text())
    return SimpleNamespace(found=found, stdout=stdout.getvalue(), stderr=stderr.getvalue(), folder=folder)


def test_run_without_diffusers_and_matplotlib(alone):
    assert "diffusers and transformers not installed: measuring ours alone" in alone.stderr
    assert "matplotlib is not installed" in alone.stderr
    assert "diffusers" not in alone.stdout and "| whole request" in alone.stdout
    assert not (alone.folder / "none.png").exists()


def test_compiling_is_a_warm_up_and_reported(alone):
    assert "ours is compiling" in alone.stderr
    assert "2 steps of dpmpp_2m, float32, compile." in alone.stdout
    assert "Compiling with an empty cache took" in alone.stdout
    assert alone.found["sides"]["ours"]["compile"]
    [case] = alone.found["cases"]
    assert math.isfinite(case["ours"]["compiling, s"])
    assert case["ours"]["stages"]["decode"]["GFLOP"] > 0


def test_compile_flag_selects_the_sides():
    for targets, expected in ((["ours"], (True, False)), (["both"], (True, True)), ([], (False, False))):
        options = benchmark.parser().parse_args(["--compile", *targets] if targets else [])
        sides = benchmark.sides_of(options, torch.device("cpu"), ("a", "b"))
        assert (sides["ours"].compile, sides["peer"].compile) == expected


def test_our_side_loads_with_the_ordered_options(monkeypatch):
    calls: list[tuple[tuple, dict]] = []
    monkeypatch.setattr(audioldm2, "load", lambda *args, **kwargs: calls.append((args, kwargs)))
    order = dict(folder="tiny", device="cpu", dtype="float32", sampler="dpmpp_2m", compile=True)
    sides.Ours(order)
    expected = dict(device="cpu", dtype="float32", low_memory=False, offload=False, compile=True)
    assert calls == [(("tiny",), expected)]


@torch.no_grad()
def test_operations_of_compiled_code_are_counted_in_eager_mode():
    def fail(*_):
        raise AssertionError

    double = torch.compile(lambda x: x @ x, backend=fail)
    with arithmetic.flop_counter() as counter, worker.eager_mode():
        double(torch.ones(4, 4))
    assert counter.get_total_flops() == 2 * 4**3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--compile", "ours", "--offload"], "--compile cannot be combined with --low-memory or --offload"),
        (["--compile", "both", "--no-peer"], "--compile both cannot be combined with --default or --no-peer"),
        (["--size", "huge"], "--size"),
        (["--runs", "none"], "'none' is not a whole number above 0"),
        (["--lengths", "5,-1"], "'-1' is not a number above 0"),
        (["--sounds", "1,1.5"], "'1.5' is not a whole number above 0"),
        (["--size", "tiny", "--model", "x"], "--size and --model cannot be combined"),
        (["--peer-model", "x"], "--peer-model needs --model"),
        (["--low-memory", "--offload"], "--low-memory and --offload cannot be combined"),
        (["--default", "--steps", "5"], "--default cannot be combined with --steps"),
        (["--peer-steps", "5"], "--peer-steps needs --default"),
        (["--json", "nowhere/found.json"], "the folder nowhere does not exist"),
        (["--device", "abacus"], "device is 'abacus', which is not on this machine"),
        (["--model", "./nowhere"], "nowhere"),
        (
            ["--model", "TINY", "--no-peer", "--dtype", "int8"],
            "dtype is 'int8'; it has to be one of auto, float32, float16, bfloat16",
        ),
    ],
)
def test_mistake_is_reported_in_one_sentence(arguments, message, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main([each if each != "TINY" else str(tiny_folder) for each in arguments]) == 2
    *_, err = capsys.readouterr().err.strip().splitlines()
    assert err.startswith("benchmark.py: error: ") and message in err and "Error: " not in err


def test_error_of_a_side_is_reported(tiny_folder):
    side = runs.Side(str(tiny_folder), "float32", "dpmpp_2m", steps=2, steps_measured=2)
    message = r"^ours failed: audio_length_in_s is 0.001"
    with runs.start_worker("ours", threads=1) as worker, pytest.raises(ValueError, match=message):
        worker.load(side, "cpu")
        worker.request(side, (0.001, 1))


# Arithmetic -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_operations_of_single_layers():
    linear, convolution = nn.Linear(16, 8), nn.Conv2d(3, 5, 3, padding=1)
    q, k = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 30, 8)
    counted = {}
    for name, run in {
        "linear": lambda: linear(torch.randn(2, 7, 16)),
        "convolution": lambda: convolution(torch.randn(1, 3, 10, 20)),
        "attention": lambda: F.scaled_dot_product_attention(q, k, k),
    }.items():
        with arithmetic.flop_counter() as counter:
            run()
        counted[name] = counter.get_total_flops()
    assert counted == {
        "linear": 2 * (2 * 7) * 16 * 8,
        "convolution": 2 * (10 * 20) * (3 * 3) * 3 * 5,
        "attention": 2 * (2 * 40 * 30 * 8) * 2,
    }


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch lacks the operator"
)
@torch.no_grad()
def test_operations_of_onednn_linear_layers():
    """PyTorch's private operators, which the dispatcher of `audioldm2.ops` may choose."""
    x, weight, other = torch.randn(2, 7, 16), torch.randn(8, 16), torch.randn(2, 7, 8)
    for run in (
        lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""),
        lambda: torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "mul"),
    ):
        with arithmetic.flop_counter() as counter:
            run()
        assert counter.get_total_flops() == 2 * (2 * 7) * 16 * 8


@torch.no_grad()
def test_operations_of_the_published_networks():
    """GFLOP for 10.24 s of sound: a guided step of the UNet, the decoder, the vocoder; on the meta device."""
    config = BASE["unet"]
    unet, vae, hifigan = (build_on_meta(name, BASE[name]) for name in ("unet", "vae", "hifigan"))
    with torch.device("meta"):
        z, t = torch.randn(2, 8, 256, 16), torch.tensor(500.0)
        gpt2_context, text_context = torch.randn(2, 8, config.gpt2_dim), torch.randn(2, 16, config.t5_dim)
        mel = torch.randn(1, 1024, 64)
    for run, least, most in (
        (lambda: unet(z, t, gpt2_context, text_context), 330, 350),  # 293 without attention
        (lambda: vae.decode(z[:1]), 665, 675),  # 636 without attention
        (lambda: hifigan(mel), 1026, 1028),
    ):
        with arithmetic.flop_counter() as counter:
            run()
        assert least < counter.get_total_flops() / 1e9 < most


def test_denoising_time_is_scaled_to_all_steps():
    side = runs.Side("", "float32", "ddim", steps=200, steps_measured=10)
    run = {
        "seconds": {"prompt": 1.0, "denoise": 5.0, "step": 0.5, "decode": 2.0, "vocode": 3.0, "request": 11.0}
    }
    run |= {"steps": 10, "peak resident memory, MB": 100.0}
    found = runs.scaled(run, side)["seconds"]
    assert found == run["seconds"] | {"denoise": 100.0, "request": 106.0}
    counted = {"GFLOP": {"prompt": 1.0, "denoise": 4.0, "decode": 3.0, "vocode": 2.0}, "steps": 2}
    stages = runs.summary([{**run, "seconds": found}], counted, side, ceiling=8.0)["stages"]
    assert stages["step"]["GFLOP"] == 2 and stages["denoise"]["GFLOP"] == 400
    assert stages["request"]["GFLOP"] == 406
    assert stages["step"]["GFLOP/s"] == 4 and stages["step"]["percent of ceiling"] == 50


def test_default_flag_uses_the_defaults_of_each_side():
    arguments = ["--default", "--peer-steps", "10", "--low-memory"]
    sides = benchmark.sides_of(benchmark.parser().parse_args(arguments), torch.device("cpu"), ("a", "b"))
    ours, peer = sides["ours"], sides["peer"]
    assert (ours.sampler, ours.steps, ours.steps_measured, ours.dtype) == ("dpmpp_2m", 25, 25, "auto")
    assert (peer.sampler, peer.steps, peer.steps_measured, peer.dtype) == ("ddim", 200, 10, "float32")
    assert ours.low_memory and not peer.low_memory and (ours.folder, peer.folder) == ("a", "b")


def test_statistics():
    assert runs.spread([3.0, 1.0, 2.0]) == {
        "median": 2, "least": 1, "most": 3, "runs": [3, 1, 2],
    }  # fmt: skip
    assert runs.ratios({"a": {"median": 1}, "b": {"median": 1}}, {"a": {"median": 4}}) == {"a": 0.25}
    sizes = [5, 10, 20]
    assert runs.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert runs.exponent([5, 5], [1, 2]) is None


def test_announced_method_is_restored():
    events: list[str] = []
    vae = nn.Module()
    vae.decode = original = lambda z: events.append("works") or z
    owner = SimpleNamespace(vae=nn.ReLU())
    with (
        sides.announce_calls(owner.vae, "forward", events.append, before="before", after="after"),
        pytest.raises(ValueError),
    ):
        assert owner.vae(torch.tensor(-1.0)) == 0
        raise ValueError
    assert events == ["before", "after"]
    assert owner.vae.forward.__func__ is nn.ReLU.forward and "forward" not in vars(owner.vae)
    assert original is vae.decode


def test_prompts_are_distinct():
    assert len(set(sides.prompts(11))) == 11


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets peaks")
def test_peak_memory_is_reset():
    large = torch.ones(50_000_000)  # 200 MB
    with_tensor = worker.peak_resident()
    del large
    worker.reset_peak("cpu")
    assert worker.peak_resident() < with_tensor - 100
