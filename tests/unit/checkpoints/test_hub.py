"""Where a checkpoint is found and which files of a repository are fetched, all without a network."""

import errno
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from audioldm2 import convert
from audioldm2.checkpoints import hub, storage
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.models import NETWORKS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ---- which files of a folder are its weights


@pytest.mark.parametrize(
    ("names", "half", "chosen"),
    [
        ("model.safetensors", False, "model.safetensors"),
        ("model.safetensors pytorch_model.bin", False, "model.safetensors"),
        ("pytorch_model.bin config.json", False, "pytorch_model.bin"),
        (
            "diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.bin",
            False,
            "diffusion_pytorch_model.bin",
        ),
        (
            "diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.bin",
            True,
            "diffusion_pytorch_model.fp16.bin",
        ),
        ("model.fp16.safetensors", False, "model.fp16.safetensors"),
        ("model.fp16.safetensors model.safetensors", False, "model.safetensors"),
        ("model.fp16.safetensors model.safetensors", True, "model.fp16.safetensors"),
        ("model.safetensors pytorch_model.fp16.bin", True, "model.safetensors"),
        ("pytorch_model.bin model.fp16.safetensors", False, "pytorch_model.bin"),
        ("pytorch_model.bin model.fp16.safetensors", True, "model.fp16.safetensors"),
        (
            "model-00002-of-00002.safetensors model-00001-of-00002.safetensors model.safetensors.index.json",
            False,
            "model-00001-of-00002.safetensors model-00002-of-00002.safetensors",
        ),
        (
            "model.fp16-00001-of-00001.safetensors model-00001-of-00001.safetensors",
            True,
            "model.fp16-00001-of-00001.safetensors",
        ),
        (
            "model-00001-of-00001.fp16.safetensors model-00001-of-00001.safetensors",
            False,
            "model-00001-of-00001.safetensors",
        ),
        (
            "diffusion_pytorch_model-00001-of-00002.bin diffusion_pytorch_model-00002-of-00002.bin",
            False,
            "diffusion_pytorch_model-00001-of-00002.bin diffusion_pytorch_model-00002-of-00002.bin",
        ),
        ("model.non_ema.safetensors flax_model.msgpack tf_model.h5 model.onnx openvino_model.bin", False, ""),
        ("model.safetensors.tmp model.ckpt xmodel.safetensors", False, ""),
        ("", False, ""),
    ],
)
def test_chooses_weights_of_a_folder(names: str, half: bool, chosen: str):
    assert hub.choose_weights(names.split(), prefer_half=half) == chosen.split()


# ---- which files of a repository are fetched

LISTING = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
]
OF_TRANSFORMERS = ("text_encoder", "text_encoder_2", "language_model", "vocoder")
OF_DIFFUSERS = ("projection_model", "unet", "vae")
for name in (*OF_TRANSFORMERS, *OF_DIFFUSERS):
    pickled, safe = (
        ("pytorch_model", "model") if name in OF_TRANSFORMERS else ("diffusion_pytorch_model",) * 2
    )
    LISTING += [f"{name}/config.json", f"{name}/{pickled}.bin", f"{name}/{safe}.safetensors"]
    LISTING += [f"{name}/{pickled}.fp16.bin", f"{name}/{safe}.fp16.safetensors"]
CLUTTER = [
    "onnx/unet/model.onnx",
    "onnx/config.json",
    "unet/onnx/model.safetensors",
    "samples/techno.wav",
    "logs/model.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "unet/openvino_model.bin",
    "text_encoder/tf_model.h5",
    "audioldm2-full.pth",
    "audioldm2.safetensors",
]


@pytest.mark.parametrize("half", [False, True])
def test_fetches_one_format_and_precision(half: bool):
    variant = ".fp16" if half else ""
    expected = {file for file in LISTING if file.endswith((".json", ".txt", ".model"))}
    expected |= {f"{name}/model{variant}.safetensors" for name in OF_TRANSFORMERS}
    expected |= {f"{name}/diffusion_pytorch_model{variant}.safetensors" for name in OF_DIFFUSERS}
    wanted = hub._wanted(LISTING + CLUTTER, prefer_half=half)
    assert len(wanted) == len(set(wanted))
    assert set(wanted) == expected


def test_fetches_pickles_where_they_are_alone():
    listing = [file for file in LISTING if not file.endswith(".safetensors")]
    weights_files = {file for file in hub._wanted(listing, prefer_half=False) if file.endswith(".bin")}
    assert weights_files == {f"{name}/pytorch_model.bin" for name in OF_TRANSFORMERS} | {
        f"{name}/diffusion_pytorch_model.bin" for name in OF_DIFFUSERS
    }


def test_fetches_shards_without_their_index():
    shards = [
        "unet/diffusion_pytorch_model-00001-of-00002.bin",
        "unet/diffusion_pytorch_model-00002-of-00002.bin",
    ]
    assert hub._wanted([*shards, "unet/diffusion_pytorch_model.bin.index.json"], prefer_half=False) == shards


def test_fetches_converted_repository_whole():
    listing = [
        "config.json",
        "clap_tokenizer/vocab.json",
        "clap_tokenizer/merges.txt",
        "t5_tokenizer/spiece.model",
    ]
    listing += [f"{name}.safetensors" for name in NETWORKS]
    extra = ["README.md", ".gitattributes", "sample.wav", "unet.pth"]
    assert sorted(hub._wanted(listing + extra, prefer_half=False)) == sorted(listing)


def test_fetches_every_folder_that_is_read():
    read = {part.folder for part in convert.PARTS.values()} | set(storage.TOKENIZERS)
    read |= {"scheduler", "feature_extractor", "tokenizer", "tokenizer_2"}
    assert set(hub.FOLDERS) == read


# ---- folders and names


def test_finds_local_folder_first(tmp_path: Path, monkeypatch):
    assert hub.find(tmp_path) == hub.find(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.find("owner/name") == Path("owner/name")  # before a repository of that name
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert hub.find("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize(
    "source",
    ["", "./nowhere", "nowhere", "/no/such/folder", "a/b/c", "~no-such-user/x", "a b/c", "x" * 5000, "a\0b"],
)
def test_rejects_what_is_neither_folder_nor_hub_id(source: str):
    with pytest.raises(WeightsError) as caught:
        hub.find(source)
    assert str(caught.value) == (
        f"there is no folder '{source}', and it does not look like a hub id. "
        "Give a folder such as './audioldm2-base', or an id such as 'cvssp/audioldm2'."
    )


def test_rejects_file_of_another_kind(tmp_path: Path):
    path = tmp_path / "audioldm2.zip"
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"audioldm2.zip' is a file; a checkpoint is a folder"):
        hub.find(path)


@pytest.mark.parametrize("source", [None, 3, b"folder", ["cvssp/audioldm2"]])
def test_rejects_source_of_another_type(source: object):
    with pytest.raises(ValueError, match=r"^source is .*; it has to be a folder, an original .* or a hub id"):
        hub.find(source)


# ---- the hub


@pytest.fixture
def online(monkeypatch) -> SimpleNamespace:
    """A fake hub that records requests and returns or raises what a test sets."""
    asked = SimpleNamespace(
        listing=LISTING + CLUTTER, error=None, download_error=None, patterns=None, revisions=[]
    )

    def model_info(self, repository: str, *, revision: str | None = None) -> SimpleNamespace:
        asked.revisions.append(revision)
        if asked.error is not None:
            raise asked.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in asked.listing])

    def snapshot_download(repository: str, *, revision=None, allow_patterns=None, **options) -> str:
        assert not options, "we search the cache ourselves"
        if asked.download_error is not None:
            raise asked.download_error
        asked.patterns = allow_patterns
        asked.revisions.append(revision)
        return f"/cache/{repository}"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache for the hub's library."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, file: str, revision: str = "main") -> Path:
    """Write a partial snapshot as the hub's library keeps it; returns its folder."""
    repository = cache / "models--cvssp--audioldm2"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / file).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_text('{"unet/never_fetched.bin": {"size": 3}}')
    return snapshot


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """Return an error of the hub's library, whichever HTTP client it uses."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status, headers={}, request=None)
    return error


def test_fetches_repository_at_its_revision(online):
    assert hub.find("cvssp/audioldm2", revision="main", prefer_half=True) == Path("/cache/cvssp/audioldm2")
    assert online.patterns == hub._wanted(online.listing, prefer_half=True)
    assert online.revisions == ["main", "main"]


@pytest.mark.parametrize("source", ["demo", "here"])
def test_revision_of_a_checkpoint_on_this_machine_is_refused(tmp_path, source):
    source = source if source == "demo" else str(tmp_path)
    with pytest.raises(
        ArgumentError, match=r"^revision is given for .* on this machine; it has to be left out"
    ):
        hub.find(source, revision="main")


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_rejects_unknown_repository(online, cache: Path, kind: type, revision: str | None):
    fill(cache, "model_index.json")
    online.error = http_error(kind, 404)
    with pytest.raises(WeightsError) as caught:
        hub.find("cvssp/audioldm2", revision=revision)
    at = " at revision 'v2'" if revision else ""
    assert str(caught.value) == (
        f"the Hugging Face Hub has no repository 'cvssp/audioldm2'{at} that you may read. "
        "Check the spelling; if it is private, run 'hf auth login'. "
        "If you meant a folder, it does not exist: a local path looks like './audioldm2-base'."
    )


NETWORK_ERRORS = [
    OfflineModeIsEnabled("offline"),
    ConnectionError("no route to host"),
    TimeoutError(),
    OSError("name resolution failed"),
    LocalEntryNotFoundError("not in the cache"),
    http_error(HfHubHTTPError, 503),
    HfHubHTTPError.__bases__[0]("the base of the HTTP client's errors"),
]


@pytest.mark.parametrize("error", NETWORK_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("file", ["model_index.json", "config.json"])
@pytest.mark.parametrize("when", ["error", "download_error"])
def test_cache_is_used_without_network(online, cache: Path, error: Exception, file: str, when: str):
    setattr(online, when, error)
    snapshot = fill(cache, file)
    assert hub.find("cvssp/audioldm2") == snapshot
    assert hub.find("cvssp/audioldm2", revision=COMMIT) == snapshot


@pytest.mark.parametrize("error", NETWORK_ERRORS, ids=lambda error: type(error).__name__)
def test_missing_cache_without_network_is_reported(online, cache: Path, error: Exception):
    online.error = error
    with pytest.raises(WeightsError) as caught:
        hub.find("cvssp/audioldm2")
    assert str(caught.value) == (
        "'cvssp/audioldm2' is not in the local cache and the Hugging Face Hub cannot be reached "
        f"({type(error).__name__}). On a machine with a network run "
        "'hf download cvssp/audioldm2 --local-dir audioldm2-base', bring that folder here and give its path, "
        "such as './audioldm2-base'."
    )


def test_cache_of_another_revision_is_not_used(online, cache: Path):
    online.error = ConnectionError()
    fill(cache, "model_index.json")
    with pytest.raises(WeightsError, match="is not in the local cache"):
        hub.find("cvssp/audioldm2", revision="v2")


def test_offline_mode_uses_only_the_cache(cache: Path, monkeypatch):
    """HF_HUB_OFFLINE=1, with the real library."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"cannot be reached \(OfflineModeIsEnabled\)"):
        hub.find("cvssp/audioldm2")
    snapshot = fill(cache, "model_index.json")
    assert hub.find("cvssp/audioldm2") == snapshot


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_disk_errors_are_not_network_errors(online, cache: Path, number: int):
    fill(cache, "model_index.json")
    online.download_error = OSError(number, "no")
    with pytest.raises(OSError, match="no") as caught:
        hub.find("cvssp/audioldm2")
    assert caught.value.errno == number


@pytest.mark.parametrize("source", ["a--b/c", "a/b..c", "a/" + "x" * 200, "a/b.git"])
def test_rejects_malformed_hub_id(cache: Path, monkeypatch, source: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"is neither a folder nor a hub id: |cannot be reached"):
        hub.find(source)
