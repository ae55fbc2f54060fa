"""Network files with one class edited, as a reader would edit the source."""

import ast
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from audioldm2 import AudioLDM2, models
from audioldm2.models import NETWORKS, layers
from audioldm2.runtime.placement import materialise

FOLDER = Path(models.__file__).parent
FILES = {  # network file -> the networks in it
    "unet": "unet",
    "vae": "vae",
    "hifigan": "hifigan",
    "gpt2": "gpt2",
    "t5": "t5",
    "projection": "projection",
    "clap_text": "clap_text",
    "clap_audio": "clap_audio",
    "phonemes": "phonemes",
}
COMPUTING = (
    *("forward", "_conv_forward", "decode", "encode", "generate", "keys_values", "upsample", "by"),
    "extend",  # keys and values of the past
)


def computing_classes(file: str) -> list[str]:
    """The classes of a network file with methods that compute."""
    tree = ast.parse((FOLDER / f"{file}.py").read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(each, ast.FunctionDef) and each.name in COMPUTING for each in node.body)
    ]


class _Scaled(ast.NodeTransformer):
    """Every tensor that a method returns becomes 0.7 of it and 0.1; of a tuple, its first entry."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        value = node.value
        first = value.elts[0] if isinstance(value, ast.Tuple) else value
        scaled = ast.BinOp(ast.BinOp(ast.Constant(0.7), ast.Mult(), first), ast.Add(), ast.Constant(0.1))
        if isinstance(value, ast.Tuple):
            scaled = ast.Tuple([scaled, *value.elts[1:]], ast.Load())
        return ast.Return(scaled)

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        return node


def scale_results(source: str, name: str, method: str = "forward") -> str:
    """The source of a file with what one method of a class returns scaled and shifted."""
    tree = ast.parse(source)
    [edited] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    [function] = [node for node in edited.body if isinstance(node, ast.FunctionDef) and node.name == method]
    function.body = [_Scaled().visit(node) for node in function.body]
    return ast.unparse(ast.fix_missing_locations(tree))


@contextmanager
def edited(sources: dict[str, str]) -> Iterator[None]:
    """While the block lasts, networks are built from these sources of models/*.py in place of the files'."""
    with pytest.MonkeyPatch.context() as patch:
        if "layers" in sources:
            module = _executed("layers", sources["layers"])
            patch.setitem(sys.modules, "audioldm2.models.layers", module)
        for file, network in FILES.items():
            if file in sources or "layers" in sources:
                source = sources.get(file) or (FOLDER / f"{file}.py").read_text(encoding="utf-8")
                kind, config = NETWORKS[network]
                patch.setitem(NETWORKS, network, (getattr(_executed(file, source), kind.__name__), config))
        yield
    assert sys.modules["audioldm2.models.layers"] is layers


def rebuilt(model: AudioLDM2, *names: str) -> AudioLDM2:
    """The model with these networks read and built anew, from edited sources inside of `edited`.

    The other networks are the model's own: loading all of them takes as long as all else that a test does.
    """
    model, networks = copy.copy(model), copy.copy(model.networks)
    networks._loaded = networks._loaded | {
        name: materialise(networks.checkpoint, name, device=networks.device, dtype=networks.dtypes[name])
        for name in names
    }
    model.networks = networks
    return model


def _executed(file: str, source: str) -> ModuleType:
    module = ModuleType(f"audioldm2.models.{file}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
        exec(compile(source, f"edited {file}.py", "exec"), module.__dict__)
    return module
