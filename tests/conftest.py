"""Settings that every test shares, and a small model."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

# Tiny networks gain nothing by a second thread, and threads that wait for each other on a busy machine cost a
# hundredfold. NumPy reads the variable when it is imported, and so do the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A hundred processes that tests start read our sources compiled, as those of users do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import torch

import audioldm2

torch.set_num_threads(1)

# Kernel choices of tests and of the processes that they start go to a folder of this run.
CACHE = tempfile.TemporaryDirectory(prefix="audioldm2-tests-")
os.environ["AUDIOLDM2_CACHE"] = CACHE.name


UNIT = Path(__file__).parent / "unit"


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which unit tests do not need
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests that share a fixture stay with one worker; an idle one takes half of what another has left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not import what `-m "not slow"` would leave out: reference libraries take seconds."""
    folder = UNIT.parent
    outside = collection_path.parent == folder and collection_path.is_dir() and collection_path != UNIT
    return True if outside and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts programs or compares with a reference library is slow; unit tests say it themselves.

    Of an exhaustive test the first case stands for the others, which are slow.
    """
    represented: set[tuple[Path, str]] = set()
    for item in items:
        test = item.path, item.nodeid.split("[")[0]
        if UNIT not in item.path.parents or test in represented:
            item.add_marker(pytest.mark.slow)
        elif item.get_closest_marker("exhaustive"):
            represented.add(test)


def pytest_collection_finish() -> None:
    """Whatever was imported stays to the end; the garbage collector need not look at it again and again.

    Nor as often as by default: it would take a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def same_randomness_each_time():
    """Tests draw from the global generator; each starts from the same seed, alone or in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """What programs keep in the user's cache folder goes into a temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A converted folder of a few MB, random but of the published geometry; 10 s of sound take a second.

    It is shared: copy it to change it.
    """
    from scripts.make_random_checkpoint import make

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder) -> audioldm2.AudioLDM2:
    """The model of `tiny_folder`, loaded on the CPU."""
    return audioldm2.load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def hearing_folder(tiny_folder, tmp_path_factory) -> Path:
    """The folder of the same model with an AudioMAE, which reads 1.28 s."""
    from tests.support.hearing import add_audiomae

    return add_audiomae(tiny_folder, tmp_path_factory.mktemp("hearing") / "model")


@pytest.fixture(scope="session")
def hearing(hearing_folder) -> audioldm2.AudioLDM2:
    """The model of `hearing_folder`, loaded on the CPU."""
    return audioldm2.load(hearing_folder, device="cpu")
