"""Imports point one way, the reference libraries stay outside, importing costs and changes nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = {"diffusers", "transformers", "librosa", "scipy", "einops", "torchaudio", "accelerate"}
MAY_COMPARE = ("compare", "reference", "benchmark")  # in the name of a script whose job it is

# What each package, or top-level module, may import of ours. `errors` and `files` are open to all.
BASE = {"errors", "files"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "table_files": set(),
    "ops": set(),
    "sampling": set(),
    "audio": set(),
    "models": {"ops"},
    "options": {"audio", "option_rules", "prompt", "sampling"},
    "runtime": {"models", "ops"},
    "prompt": {"models", "runtime"},
    "clap_score": {"audio", "models", "prompt", "runtime"},
    "sound_prompt": {"audio", "editing", "models", "options", "prompt"},
    "language_of_audio": {"audio", "models", "runtime", "sound_prompt"},
    "evaluation": {
        *("audio", "clap_score", "options", "pipeline", "prompt", "runtime", "table_files", "training"),
    },
    "sound_shape": {"audio", "options", "sampling"},
    "option_rules": {"audio"},
    "edit_options": {"option_rules", "options", "sampling"},
    "editing": {"audio", "edit_options", "option_rules", "options", "sampling", "sound_shape"},
    "denoiser": {"models", "options", "prompt", "sampling"},
    "request": {
        *("audio", "edit_options", "editing", "options", "prompt", "sampling"),
        *("sound_prompt", "sound_shape"),
    },
    "result": {"audio", "clap_score", "options", "request"},
    "adapters": {"checkpoints", "convert", "models", "ops", "prompt", "runtime"},
    "encoding_stages": {
        *("audio", "editing", "language_of_audio", "models", "options"),
        *("prompt", "runtime", "sampling", "sound_shape"),
    },
    "stages": {
        *("clap_score", "denoiser", "edit_options", "editing", "encoding_stages", "models"),
        *("options", "prompt", "runtime", "sampling"),
    },
    "request_stages": {
        *("audio", "clap_score", "denoiser", "editing", "options", "prompt", "request", "sampling"),
        *("sound_prompt", "stages"),
    },
    "pipeline": {
        *("adapters", "edit_options", "encoding_stages", "language_of_audio", "ops", "options"),
        *("request", "request_stages", "result", "runtime", "stages"),
    },
    "speaking": {"audio", "options", "pipeline", "prompt", "result"},
    "checkpoints": {"audio", "models", "pipeline", "prompt", "runtime", "sampling", "convert"},
    "convert": {"adapters", "audio", "checkpoints", "cli", "models", "prompt", "sampling"},
    "training": {
        *("adapters", "audio", "checkpoints", "models", "pipeline"),
        *("language_of_audio", "ops", "prompt", "result", "runtime", "sampling", "table_files"),
    },
    "verification": {
        *("audio", "checkpoints", "clap_score", "convert", "editing"),
        *("models", "pipeline", "prompt", "runtime", "sampling"),
    },
    "cli": {
        *(
            "",
            "adapters",
            "audio",
            "checkpoints",
            "clap_score",
            "convert",
            "edit_options",
            "evaluation",
            "options",
            "pipeline",
            "prompt",
            "request",
        ),
        *("result", "sampling", "sound_shape", "speaking", "table_files", "training", "ui", "verification"),
    },
    "ui": {
        *("audio", "checkpoints", "convert", "edit_options", "editing", "ops", "options"),
        *("pipeline", "request", "result", "sampling", "sound_shape"),
    },
    "__main__": {"cli"},
    "": {"checkpoints", "options", "pipeline", "prompt", "result", "sampling", "speaking"},
}


@cache
def modules() -> dict[str, Path]:
    """Ours by name: "weights", "models.unet", "" for the package itself, "convert", "convert.keymap", ..."""
    found = {}
    for top, folder in (("", ROOT / "audioldm2"), ("convert", ROOT / "convert")):
        for path in folder.rglob("*.py"):
            parts = [top, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part and part != "__init__")] = path
    return found


@cache
def statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Everything in a file that imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path, package: str) -> Iterator[str]:
    """The full name of everything that a file imports, anywhere; `package` is what "from ." means there."""
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
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


def room(module: str) -> str:
    """The package of a module, or the module itself where it stands at the top."""
    return module.split(".")[0]


def test_imports_point_one_way():
    known, wrong = modules(), []
    for module, path in sorted(known.items()):
        assert room(module) in MAY_IMPORT, f"audioldm2/{module} is new: add a line to MAY_IMPORT"
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        targets = {ours(name, set(known)) for name in imported(path, f"audioldm2.{package}".strip("."))}
        allowed = {room(module), *BASE, *MAY_IMPORT[room(module)]}
        wrong += [
            f"'{module}' may not import '{target}'"
            for target in targets - {None}
            if room(target) not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    known, needs = modules(), {}
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        targets = (ours(name, set(known)) for name in imported(path, f"audioldm2.{package}".strip(".")))
        needs[module] = {target for target in targets if target not in (None, module)}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names them


def test_import_rules_name_only_what_exists():
    assert {room(module) for module in modules()} == set(MAY_IMPORT)


def importing_the_reference(paths: Iterable[Path]) -> list[str]:
    """The files that import a reference library."""
    return [
        str(path.relative_to(ROOT))
        for path in paths
        if {name.split(".")[0] for name in imported(path, "audioldm2")} & REFERENCE
    ]


def test_reference_libraries_are_not_imported():
    scripts = [
        path
        for path in (ROOT / "scripts").rglob("*.py")
        if not any(word in path.relative_to(ROOT / "scripts").as_posix() for word in MAY_COMPARE)
    ]
    ours = [path for folder in ("audioldm2", "convert") for path in (ROOT / folder).rglob("*.py")]
    assert ours and scripts
    assert importing_the_reference([*ours, *scripts]) == []


def test_unit_tests_need_no_reference_library():
    tests = [*(ROOT / "tests" / "unit").rglob("*.py"), ROOT / "tests" / "support" / "checkpoints.py"]
    assert importing_the_reference(tests) == []


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
                  "allowed": [sys.prefix, sys.base_prefix, sys.pycache_prefix or sys.prefix,
                              audioldm2.__path__[0]]}))
"""


SECONDS = 0.3


@pytest.fixture(scope="module")
def imports() -> list[dict]:
    """What fresh interpreters saw: three at most, until one is quick. The first compiles the sources."""
    found = []
    while len(found) < 3 and not any(seen["seconds"] <= SECONDS for seen in found):
        run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr
        assert run.stderr == "", "importing the package says something"
        found.append(json.loads(run.stdout))
    return found


@pytest.mark.slow
def test_importing_costs_no_more_than_torch_and_a_third_of_a_second(imports: list[dict]):
    assert min(seen["seconds"] for seen in imports) <= SECONDS


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
