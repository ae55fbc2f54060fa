"""Where a checkpoint lies: a folder, or a repository of the Hugging Face Hub.

Of a repository only what is needed is fetched.
"""

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from audioldm2.errors import WeightsError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # file names of weights in the diffusers layout
FOLDERS = (  # of a checkpoint; whatever else a repository holds is not fetched
    *("text_encoder", "text_encoder_2", "projection_model", "language_model", "unet", "vae", "vocoder"),
    *("scheduler", "feature_extractor", "tokenizer", "tokenizer_2"),  # the diffusers layout
    *("clap_tokenizer", "t5_tokenizer"),  # a converted folder
)
OF_THE_DISK = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)  # errors that no network has
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def choose_weights(names: Iterable[str], prefer_half: bool = False) -> list[str]:
    """Of the files in a network's folder, what holds its weights once: one format and precision, all shards.

    names:  file names without their folder. safetensors come before pickles. The full precision comes before
            the fp16 variant, unless `prefer_half`. Returns [] when there are none.
    """
    names = sorted(names)
    variants = (".fp16", "") if prefer_half else ("", ".fp16")
    for suffix in ("safetensors", "bin"):
        for variant in variants:
            for stem in STEMS:
                whole = f"{stem}{variant}.{suffix}"
                if whole in names:
                    return [whole]
                # Shards carry the variant after their number or before it, by the age of the library.
                shard = re.compile(
                    rf"{stem}({re.escape(variant)}-\d+-of-(\d+)|-\d+-of-(\d+){re.escape(variant)})\.{suffix}"
                )
                shards = [name for name in names if shard.fullmatch(name)]
                if shards:
                    return shards
    return []


def find(source: str | os.PathLike, *, revision: str | None = None, prefer_half: bool = False) -> Path:
    """The local folder of a checkpoint: `source` itself, or a snapshot of the hub repository of that name.

    Raises ValueError when it is no name at all, WeightsError when nothing is there. With HF_HUB_OFFLINE=1, or
    without a network, only the cache is asked.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source is {source!r:.80}; it has to be a folder or a hub id, such as 'cvssp/audioldm2'."
        )
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.exists(folder):
        raise WeightsError(
            f"'{source}' is a file; a checkpoint is a folder (converted, or in the diffusers layout) "
            "or a hub id such as 'cvssp/audioldm2'."
        )
    if not HUB_ID.fullmatch(str(source)):
        raise WeightsError(
            f"there is no folder '{source}', and it does not look like a hub id. "
            "Give a folder such as './audioldm2-base', or an id such as 'cvssp/audioldm2'."
        )
    return _snapshot(str(source), revision, prefer_half)


def _snapshot(repository: str, revision: str | None, prefer_half: bool) -> Path:
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
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=_wanted(names, prefer_half))
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision '{revision}'" if revision else ""
        raise WeightsError(
            f"the Hugging Face Hub has no repository '{repository}'{at} that you may read. "
            "Check the spelling; if it is private, run 'hf auth login'. "
            "If you meant a folder, it does not exist: a local path looks like './audioldm2-base'."
        ) from error
    # The HTTP client under the hub's library changes with its version (requests, httpx, httpx2): what it
    # raises without a network is an OSError, or shares the first base of the hub's own HTTP error.
    except (OSError, HfHubHTTPError.__bases__[0]) as error:
        if getattr(error, "errno", None) in OF_THE_DISK:
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
    """The snapshot in the cache. The hub's own search refuses one that was fetched in part, as here."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):  # the diffusers layout, a converted folder
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _wanted(names: list[str], prefer_half: bool) -> list[str]:
    """Of a repository's files: the chosen weights in each of FOLDERS, and what is small there and above."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    wanted = []
    for folder, files in folders.items():
        if folder in FOLDERS:
            chosen = choose_weights(files, prefer_half)
        elif folder == "":  # a converted folder has its networks here
            chosen = [file for file in files if file.endswith(".safetensors") and "unet.safetensors" in files]
        else:
            continue
        small = [
            file for file in files if file.endswith((".json", ".txt", ".model")) and ".index." not in file
        ]
        wanted += [f"{folder}/{file}".lstrip("/") for file in chosen + small]
    return wanted
