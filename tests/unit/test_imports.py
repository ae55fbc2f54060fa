"""Imports point one way, the reference libraries stay outside, importing costs and changes nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {"errors", "files"}  # anyone may import them
REFERENCE = {"diffusers", "transformers", "librosa", "scipy", "einops", "torchaudio", "accelerate"}
MAY_COMPARE = ("compare", "reference", "benchmark")  # in the name of a script whose job it is

STAGE = ("training.losses", "training.recipe", "training.stage")  # what each stage of training stands on

# What each module may import of ours, besides LEAVES. A new module gets a line here, or is imported by none.
TABLE = {
    "errors": set(),
    "files": set(),
    "models.layers": set(),
    "models.*": {"models.layers"},
    "models": {"models.*"},
    "samplers": set(),
    "text": set(),
    "audio": set(),
    "plot": set(),
    "hub": set(),
    "pieces": {"models.*", "onednn"},
    "memory": {"models.*"},
    "checks": {"models.*", "audio"},
    "weights": {"models", "text", "audio", "samplers", "checks"},
    "onednn": {"models", "models.*", "models.layers", "memory"},
    "compiled": set(),
    "residence": {"models", "compiled", "onednn", "weights"},
    "precision": {"weights"},
    "remembered": {"models.*", "compiled", "onednn"},
    "request": {"audio", "samplers"},
    "ranking": {"text", "audio", "residence"},
    "conditioning": set(),
    "encoding": {"models.*", "text", "conditioning", "residence"},
    "result": {"audio", "ranking", "request"},
    "pipeline": {
        *("models", "models.*", "samplers", "text", "audio", "residence", "conditioning", "encoding"),
        *("checks", "guidance", "memory", "pieces", "precision", "ranking", "remembered", "request"),
        "result",
    },
    "loading": {"pipeline", "precision", "residence", "weights", "hub", "text", "convert"},
    "flags": {"hub", "result"},
    "guidance": {"conditioning", "samplers"},
    "cli": {
        "",
        "audio",
        "flags",
        "hub",
        "loading",
        "plot",
        "request",
        "result",
        "samplers",
        "convert.__main__",
    },
    "": {"conditioning", "encoding", "loading", "pipeline", "result", "samplers"},
    "__main__": {"cli"},
    "convert": {"models", "models.*", "samplers", "text", "weights", "hub", "checks"},
    "convert.__main__": {"convert", "loading", "weights", "cli", "flags", "checks"},
    "training.chance": set(),
    "training.data": {"audio", "training.chance"},
    "training.losses": {"audio"},
    "training.discriminators": set(),
    "training.initialise": {"models", "training.chance"},
    "training.scratch": {
        *("audio", "checks", "models", "models.*", "samplers", "weights"),
        "training.initialise",
    },
    "training.recipe": {"checks", "training.data"},
    "training.descent": {"training.muon", "training.recipe"},
    "training.muon": set(),
    "training.stage": {
        *("audio", "models.*", "pipeline", "residence", "weights"),
        *("training.chance", "training.descent", "training.recipe"),
    },
    "training.vae": {"pipeline", "weights", *STAGE, "training.discriminators"},
    "training.additive": {"audio"},
    "training.vocoder": {
        *("models.hifigan", "pipeline", "weights", *STAGE),
        *("training.additive", "training.discriminators"),
    },
    "training.clap": {"audio", "pipeline", "text", "weights", *STAGE},
    "training.ldm": {"conditioning", "encoding", "models.*", "pipeline", "weights", *STAGE},
    "training": {"training.vae", "training.vocoder", "training.clap", "training.ldm", "training.stage"},
    "training.loop": {"audio", "loading", "plot", "training.data", "training.stage", "weights"},
}


def modules() -> dict[str, Path]:
    """Ours by name: "weights", "models.unet", "" for the package itself, "convert", "convert.keymap", ..."""
    found = {}
    for top, folder in (("", ROOT / "audioldm2"), ("convert", ROOT / "convert")):
        for path in folder.rglob("*.py"):
            parts = [top, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part and part != "__init__")] = path
    return found


def imported(path: Path, package: str) -> Iterator[str]:
    """The full name of everything that a file imports, anywhere; `package` is what "from ." means there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = f"{package}.{node.module or ''}".strip(".") if node.level else node.module
            yield from (f"{source}.{alias.name}" for alias in node.names)


def ours(name: str, known: set[str]) -> str | None:
    """The module of ours that a full name lies in; None where it is of another package."""
    if name.split(".")[0] == "convert":
        name = f"audioldm2.{name}"
    if name.split(".")[0] != "audioldm2":
        return None
    parts = name.split(".")[1:]
    while ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def row(module: str) -> str:
    """The line of TABLE for a module; those of models/ and of convert/ share one."""
    if module in TABLE:
        return module
    top = module.split(".")[0]
    return {"models": "models.*", "convert": "convert"}.get(top, module)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str):
    known = modules()
    assert row(module) in TABLE, f"audioldm2/{module} is new: say in TABLE what it may import"
    package = "audioldm2." + ("convert" if module.startswith("convert") else module.rpartition(".")[0])
    for name in imported(known[module], package.strip(".")):
        target = ours(name, set(known))
        if target is None or target in LEAVES:
            continue
        within = row(module) == row(target) == "convert"
        assert within or {target, row(target)} & TABLE[row(module)], f"'{module}' may not import '{target}'"


def test_only_loading_and_the_command_line_know_the_converter():
    known = modules()
    for module, path in known.items():
        if module.startswith("convert"):
            continue
        targets = {ours(name, set(known)) for name in imported(path, "audioldm2")}
        if any(target is not None and target.split(".")[0] == "convert" for target in targets):
            assert module in ("loading", "cli")


def test_the_table_has_no_dead_lines():
    known = modules()
    assert {row(module) for module in known} == set(TABLE)


def sources() -> list[Path]:
    return [
        path
        for folder in ("audioldm2", "convert", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_reference_libraries_stay_outside(path: Path):
    if path.parent.name == "scripts" and any(word in path.stem for word in MAY_COMPARE):
        return
    assert not {name.split(".")[0] for name in imported(path, "audioldm2")} & REFERENCE


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "tests" / "unit").glob("*.py")), ROOT / "tests" / "checkpoints.py"],
    ids=lambda p: p.name,
)
def test_unit_tests_need_no_reference_library(path: Path):
    assert not {name.split(".")[0] for name in imported(path, "tests")} & REFERENCE


# ---- what `import audioldm2` does besides

PROGRAM = """
import json, logging, os, random, signal, sys, time, warnings
import torch
start = time.process_time()
import audioldm2
seconds = time.process_time() - start

for name in [name for name in sys.modules if name.split(".")[0] == "audioldm2"]:
    del sys.modules[name]  # once more, with what it stands on in place

def state():
    import numpy
    return repr([
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_rng_state().tolist(),
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32, torch.cuda.is_initialized(), random.getstate(),
        numpy.random.get_state(), warnings.filters, warnings.showwarning,
        logging.root.handlers, logging.root.level, sorted(os.environ.items()), os.getcwd(), sys.path,
        sys.excepthook, signal.getsignal(signal.SIGINT),
    ])

OUTSIDE = ("socket", "urllib", "subprocess", "http")
touched = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        touched.append(["open", os.fsdecode(arguments[0]), str(arguments[1])])
    elif event.split(".")[0] in OUTSIDE or event in ("os.mkdir", "os.system"):
        touched.append([event, str(arguments), ""])
before = state()
sys.addaudithook(hook)
import audioldm2
found = list(touched)
slow = [name for name in ("huggingface_hub", "matplotlib", "audioldm2.convert") if name in sys.modules]
print(json.dumps({"seconds": seconds, "touched": found, "same": state() == before, "slow": slow,
                  "allowed": [sys.prefix, sys.base_prefix, audioldm2.__path__[0]]}))
"""


@pytest.fixture(scope="module")
def imports() -> list[dict]:
    """What three fresh interpreters saw."""
    found = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr
        assert run.stderr == "", "importing the package says something"
        found.append(json.loads(run.stdout))
    return found


def test_importing_costs_no_more_than_torch_and_a_third_of_a_second(imports: list[dict]):
    assert min(seen["seconds"] for seen in imports) <= 0.3


def test_importing_touches_no_network_and_no_file_but_code(imports: list[dict]):
    for event, what, mode in imports[0]["touched"]:
        assert event == "open", f"{event} {what}"
        assert mode in ("r", "rb", "None"), f"{what} is opened with {mode}"
        assert any(what.startswith(folder) for folder in imports[0]["allowed"]), what
        assert what.endswith((".py", ".pyc")), what


def test_importing_changes_no_global_state(imports: list[dict]):
    assert imports[0]["same"]


def test_importing_leaves_slow_libraries_for_when_they_are_needed(imports: list[dict]):
    assert imports[0]["slow"] == []
