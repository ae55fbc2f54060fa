"""Files of new words: a small .safetensors file with the vectors that T5 reads.

t5          (vectors, T5's width)
metadata    word, like; base_model, base_sha256 (of its T5), license
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from audioldm2.adapters.writing import require_replaceable
from audioldm2.checkpoints.tensor_files import naming_folder, read_safetensors, save_safetensors
from audioldm2.errors import ArgumentError, WeightsError, some
from audioldm2.files import atomic_folder
from audioldm2.prompt.tokenizers import T5Tokenizer
from audioldm2.prompt.words import Word, require_new

FILE = "word.safetensors"  # in the folder that training writes
KEY = "t5"


def write(
    word: Word,
    folder: Path,
    *,
    force: bool = False,
    durable: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a word as a folder with one file, whole or not at all.

    Args:
        word: what to write.
        folder: where to.
        force: replace the folder if it exists and holds a word, or nothing.
        durable: wait until the folder is on the disk.
        notes: further JSON files, name -> content.

    Raises:
        FileExistsError: the folder exists, and `force` is not given or it holds something else.
        WeightsError: a number is not finite.
        OSError: the disk refuses.
    """
    if not word.vectors.isfinite().all():
        raise WeightsError(f"The vectors of {word.text} are not finite; the word cannot be written.")
    tensors = {KEY: word.vectors.detach().cpu().float().contiguous()}
    metadata = {**word.metadata, "word": word.text, "like": word.like}
    if force:
        require_replaceable(folder, FILE)
    with atomic_folder(folder, force=force, durable=durable) as draft, naming_folder(folder):
        save_safetensors(tensors, draft / FILE, folder, **metadata)
        for name, content in (notes or {}).items():
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find(source: str | os.PathLike) -> Path:
    """The file of a word; `source` is this file, or the folder that training writes.

    Raises:
        ArgumentError: `source` is not a text or path.
        WeightsError: the file cannot be found.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError("source", source, "be the file or folder of a word")
    path = Path(source).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise WeightsError(f"{path} cannot be found; it has to be a word, as 'audioldm2 train' writes it.")
    return path


def read(source: str | os.PathLike, tokenizer: T5Tokenizer | None, configs: Mapping[str, Any]) -> Word:
    """Read a word for a model.

    Args:
        source: see `find`.
        tokenizer: of the model's T5.
        configs: of the model's networks.

    Raises:
        ArgumentError: the model has no T5, or has the word in its vocabulary.
        WeightsError: the file cannot be found or read, or is for another width.
    """
    path = find(source)
    tensors = read_safetensors(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
    if set(tensors) != {KEY} or not {"word", "like"} <= metadata.keys():
        raise WeightsError(
            f"{path} holds {some(sorted(tensors))}; a word holds {KEY}, and its name in the metadata. "
            "Is it a LoRA adapter (--lora)?"
        )
    vectors, text = tensors[KEY], metadata["word"]
    require_new(text, tokenizer, configs)
    width = configs["t5"].dim
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
        raise WeightsError(
            f"{path} does not fit this model: {KEY} is {tuple(vectors.shape)} and should be (vectors, "
            f"{width}). It belongs to a model of another size."
        )
    if not (vectors.is_floating_point() and vectors.isfinite().all()):
        raise WeightsError(f"{KEY} in {path} is not finite floating-point numbers. Copy it again.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Word(text, metadata["like"], vectors.float(), str(source), digest, metadata)
