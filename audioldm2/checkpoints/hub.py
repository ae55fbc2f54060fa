"""Finds where a checkpoint lies: a folder, a file, or a repository of the Hugging Face Hub.

Only the files of a repository that are needed are fetched.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from audioldm2.errors import ArgumentError, WeightsError, some

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # names of weight files in the diffusers layout
FOLDERS = (  # of a checkpoint; nothing else in a repository is fetched
    *("text_encoder", "text_encoder_2", "projection_model", "language_model", "unet", "vae", "vocoder"),
    *("scheduler", "feature_extractor", "tokenizer", "tokenizer_2"),  # the diffusers layout
    *("clap_tokenizer", "t5_tokenizer"),  # a converted folder
)
ORIGINALS = (".pth", ".ckpt", ".pt", ".safetensors")  # suffixes of a single file with an original checkpoint
TOKENIZERS = {  # tokenizer -> names that its folder may have
    "clap_tokenizer": ("clap_tokenizer", "tokenizer", "roberta"),
    "t5_tokenizer": ("t5_tokenizer", "tokenizer_2", "t5"),
}
PUBLISHED = "cvssp/audioldm2"  # a repository with the tokenizers of all published models
DEMO = "demo"  # name of the model that comes with the package; the default of the command line
DEMO_FOLDER = Path(__file__).parents[1] / "assets" / DEMO
SPEECH_DEMO = "demo-speech"  # the same for the one that speaks
IN_PACKAGE = {DEMO: DEMO_FOLDER, SPEECH_DEMO: DEMO_FOLDER.with_name("speech")}
DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)  # which no network raises
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:/([\w.-]+\.(?i:pth|ckpt|pt|safetensors)))?")


def choose_weights(names: Iterable[str], prefer_half: bool = False) -> list[str]:
    """Choose the files that hold a network's weights exactly once: one format, one precision, all shards.

    Args:
        names: the file names in the network's folder.
        prefer_half: prefer the fp16 variant. Full precision is preferred otherwise; in both cases safetensors
            come before pickles of the same precision, and with `prefer_half` before any pickle.

    Returns:
        The chosen names, sorted; [] if the folder has no weights.
    """
    names = sorted(names)
    kinds = [("", "safetensors"), ("", "bin"), (".fp16", "safetensors"), (".fp16", "bin")]
    if prefer_half:
        kinds.sort(key=lambda kind: (kind[1] == "bin", kind[0] == ""))
    for variant, suffix in kinds:
        for stem in STEMS:
            whole = f"{stem}{variant}.{suffix}"
            if whole in names:
                return [whole]
            # Older libraries write the variant after a shard's number, newer ones before it.
            shard = re.compile(
                rf"{stem}({re.escape(variant)}-\d+-of-(\d+)|-\d+-of-(\d+){re.escape(variant)})\.{suffix}"
            )
            shards = [name for name in names if shard.fullmatch(name)]
            if shards:
                return shards
    return []


def find(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    prefer_half: bool = False,
    with_weights: bool = True,
) -> Path:
    """Return where a checkpoint lies: a local folder or original file, or a snapshot of a hub repository.

    With HF_HUB_OFFLINE=1, or without a network, only the hub's cache is searched.

    Args:
        source: a folder, an original file, a hub id, a file in a repository ('owner/name/file.pth', required
            where it has several), or "demo" or "demo-speech" for a model in the package (a folder of such a
            name is "./demo").
        revision: branch, tag or commit of a repository.
        prefer_half: see `choose_weights`.
        with_weights: fetch the weights; False fetches only the configs.

    Raises:
        ArgumentError: `source` is not a text or path, or is on this machine and a revision is asked for.
        WeightsError: nothing is there.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(
            "source", source, "be a folder, an original .pth file or a hub id, such as 'cvssp/audioldm2'"
        )
    name = os.path.expanduser(source)
    if revision is not None and (source in IN_PACKAGE or os.path.exists(name)):
        given = f"is given for {source}, which is on this machine"
        raise ArgumentError("revision", revision, "be left out: only hub ids have revisions", given=given)
    if source in IN_PACKAGE:
        return IN_PACKAGE[str(source)]
    if os.path.isdir(name):
        return _only_original(Path(name)) or Path(name)
    if os.path.isfile(name) and is_original(name):
        return Path(name)
    if os.path.exists(name):
        raise WeightsError(
            f"'{source}' is a file; a checkpoint is a folder (converted, or in the diffusers layout), "
            f"an original file ({', '.join(ORIGINALS)}) or a hub id such as 'cvssp/audioldm2'."
        )
    named = HUB_ID.fullmatch(str(source))
    if not named:
        raise WeightsError(
            f"there is no folder '{source}', and it does not look like a hub id. "
            "Give a folder such as './audioldm2-base', or an id such as 'cvssp/audioldm2'."
        )
    repository, file = named.groups()
    folder = _snapshot(repository, revision, lambda names: _wanted(names, prefer_half, with_weights, file))
    return folder / file if file else _only_original(folder) or folder


def is_original(name: str) -> bool:
    """Return whether a file's suffix, in either case, is that of an original checkpoint."""
    return name.lower().endswith(ORIGINALS)


def tokenizers_in(folder: Path) -> dict[str, Path]:
    """Return the tokenizers in a folder: those of TOKENIZERS that it has a sub-folder for."""
    found: dict[str, Path] = {}
    for tokenizer, names in TOKENIZERS.items():
        present = [folder / name for name in names if (folder / name).is_dir()]
        found |= {tokenizer: present[0]} if present else {}
    return found


def published_tokenizers() -> dict[str, Path]:
    """Return those of the published models, from the cache or the hub; WeightsError if neither has them."""
    folders = tuple(f"{name}/" for names in TOKENIZERS.values() for name in names)
    return tokenizers_in(
        _snapshot(PUBLISHED, None, lambda names: [name for name in names if name.startswith(folders)])
    )


def find_adapter(source: str) -> Path:
    """Return where an adapter of the hub lies: its folder, or the file that `source` names.

    Args:
        source: "owner/name", or "owner/name/file.safetensors".

    Raises:
        WeightsError: it is no hub id, or the hub has no such repository.
    """
    named = HUB_ID.fullmatch(source)
    if not named:
        raise WeightsError(
            f"there is no adapter '{source}', and it does not look like a hub id. "
            "Give a folder with an adapter_model.safetensors, a .safetensors file, or an id: 'owner/name'."
        )
    repository, file = named.groups()
    folder = _snapshot(
        repository, None, lambda names: [name for name in names if name.endswith((".safetensors", ".json"))]
    )
    return folder / file if file else folder


def _only_original(folder: Path) -> Path | None:
    """Return the original file in a folder that holds no other checkpoint; WeightsError if it has several."""
    known = ("model_index.json", "config.json")
    if not folder.is_dir() or any((folder / name).is_file() for name in known):
        return None
    return _only([path for path in sorted(folder.iterdir()) if _is_pickle(path.name)], str(folder))


def _is_pickle(name: str) -> bool:
    """Whether a name is that of an original file even if nobody says so; other suffixes say too little."""
    return name.lower().endswith(ORIGINALS[:2])


def _only(files: list, where: str) -> Any:
    if len(files) > 1:
        raise WeightsError(
            f"{where} has several original checkpoints ({some([str(file) for file in files])}); "
            "name one of them: FOLDER/FILE."
        )
    return files[0] if files else None


def _snapshot(repository: str, revision: str | None, choose: Callable[[list[str]], list[str]]) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # a slow import, needed for hub ids only
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repository, revision=revision)
        names = [file.rfilename for file in info.siblings or []]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=choose(names)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision '{revision}'" if revision else ""
        raise WeightsError(
            f"the Hugging Face Hub has no repository '{repository}'{at} that you may read. "
            "Check the spelling; if it is private, run 'hf auth login'. "
            "If you meant a folder, it does not exist: a local path looks like './audioldm2-base'."
        ) from error
    # The hub's library has changed its HTTP client (requests, httpx). Without a network each raises an
    # OSError, or an error that shares the first base of the hub's own HTTP error.
    except (OSError, HfHubHTTPError.__bases__[0]) as error:  # type: ignore[misc]
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        cached = _cached(repository, revision)
        if cached is None:
            raise WeightsError(
                f"'{repository}' is not in the local cache and the Hugging Face Hub cannot be reached "
                f"({type(error).__name__}). On a machine with a network run "
                f"'hf download {repository} --local-dir audioldm2-base', bring that folder here and give "
                "its path, such as './audioldm2-base'."
            ) from error
        return cached
    except HFValidationError as error:
        raise WeightsError(f"'{repository}' is neither a folder nor a hub id: {error}") from error


def _cached(repository: str, revision: str | None) -> Path | None:
    """Return the snapshot in the cache. The hub's own search skips partial ones, which ours always are."""
    from huggingface_hub import try_to_load_from_cache

    names = ["model_index.json", "config.json", f"{repository.split('/')[1]}.pth"]  # an original is named so
    names += ["adapter_config.json"]  # of an adapter
    for name in names:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _wanted(
    names: list[str], prefer_half: bool, with_weights: bool = True, file: str | None = None
) -> list[str]:
    """Choose the files to fetch: the weights and the small files in each of FOLDERS and at the top.

    file: the only one to fetch, if given.
    """
    if file:
        return [file]
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        folders.setdefault(folder, []).append(base)
    wanted = []
    for folder, files in folders.items():
        if folder in FOLDERS:
            chosen = choose_weights(files, prefer_half)
        elif folder == "":
            chosen = _weights_on_top(files)
        else:
            continue
        small = [
            base for base in files if base.endswith((".json", ".txt", ".model")) and ".index." not in base
        ]
        wanted += [f"{folder}/{base}".lstrip("/") for base in (chosen if with_weights else []) + small]
    return wanted


def _weights_on_top(files: list[str]) -> list[str]:
    """Choose the weights at a repository's top: a converted folder's networks, or its one original file."""
    if "unet.safetensors" in files:
        return [file for file in files if file.endswith(".safetensors")]
    if "model_index.json" in files:
        return []
    original = _only([file for file in files if _is_pickle(file)], "the repository")
    return [original] if original else []
