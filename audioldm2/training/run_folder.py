"""The folder of a run: what lies in it, how it is saved, resumed and cleaned after a kill.

    run.json          the settings
    model/            the whole model so far, in the converted format; `audioldm2.load` reads it at any time
    state.pt          what resuming needs: raw weights, optimizers, averages, the number of steps
    metrics.jsonl     one line per step
    validation.jsonl  one line per validation
    best/, last/      copies of model/, one sub-folder per step
    samples/          sounds, and spectrograms if matplotlib is installed; one sub-folder per sampling

The state is the truth. It is replaced first, in one rename; model/ follows from it, and records its step, so
that a start after a kill between the two writes model/ again. No moment of a save can lose both.
"""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from audioldm2.checkpoints import storage
from audioldm2.files import atomic_folder, atomic_write, recover_folder, remove_drafts
from audioldm2.training.data import Captioned, digest_of
from audioldm2.training.metrics import JsonLines
from audioldm2.training.stage import NOTES, Stage

MEASURED_BATCHES = 8  # batches that `Stage.measure` gets
SUBFOLDERS = ("best", "last")  # of copies of the model


# One process at a time, and what a killed one left ----------------------------------------------------------


@contextmanager
def opened(folder: Path, product: str = "model") -> Iterator[list[str]]:
    """Locks a run's folder for this process and repairs what a killed one left in it.

    Args:
        folder: of the run; it exists.
        product: the sub-folder that the run's stage writes.

    Yields:
        Sentences about what was repaired and removed.

    Raises:
        ValueError: another process trains in this folder.
    """
    descriptor = None if os.name == "nt" else os.open(folder, os.O_RDONLY)
    try:
        alone = descriptor is not None and _lock(descriptor, folder)
        yield clean(folder, product, sole_owner=alone)
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which releases the lock


def _lock(descriptor: int, folder: Path) -> bool:
    """Locks an open folder; False where the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(f"another process trains in {folder}; wait for it, or stop it.") from error
        return False
    return True


def clean(folder: Path, product: str = "model", *, sole_owner: bool = False) -> list[str]:
    """Finishes or undoes the writes that a killed process had begun.

    Args:
        folder: of the run.
        product: the sub-folder that the run's stage writes.
        sole_owner: no other process writes here. Otherwise, drafts of processes that run stay.

    Returns:
        Sentences about what was done.
    """
    done = []
    if recover_folder(folder / product, sole_owner=sole_owner):
        done.append(f"{folder / product} was restored: the process that replaced it was killed")
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        if not place.is_dir():
            continue
        sizes = remove_drafts(place, sole_owner=sole_owner)
        if sizes:
            done.append(f"removed {sum(sizes) / 1e6:.1f} MB of drafts that a killed process left in {place}")
    return done


# Saving -----------------------------------------------------------------------------------------------------


def save(stage: Stage, data: Captioned, folder: Path) -> None:
    """Writes the state for resuming, then the model.

    Raises:
        OSError, RuntimeError: the system refused; what was saved before is whole.
        FloatingPointError: a weight is NaN or infinite; nothing is written.
    """
    measure(stage, data)
    for name in stage.trained:
        for key, tensor in stage.weights(name).items():
            if not tensor.isfinite().all():
                raise FloatingPointError(f"'{key}' of '{name}' holds NaN or infinity")
    with atomic_write(folder / "state.pt", durable=True) as draft:
        torch.save(stage.state_dict() | {"run": description(stage, data)}, draft)
    stage.save_model(folder)


def measure(stage: Stage, data: Captioned) -> None:
    """Measures what the saved model has to know, on the first clips."""
    stage.measure(data.batch(step, stage.recipe.batch)[0] for step in range(MEASURED_BATCHES))


def model_step(stage: Stage, folder: Path) -> int | None:
    """Returns the step that the saved model is of; None where no save has recorded one."""
    path = folder / stage.product / NOTES
    return storage.read_json(path).get("step") if path.exists() else None


def copy_model(source: Path, target: Path) -> None:
    """Copies the model unless the copy exists; weights are linked where the system can.

    A save replaces the files of model/ and never writes into them, so a link keeps what it points to.
    """
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    with atomic_folder(target, durable=True) as draft:
        for path in sorted(source.rglob("*")):
            place = draft / path.relative_to(source)
            if path.is_dir():
                place.mkdir()
            elif path.suffix != ".safetensors" or not _link(path, place):
                shutil.copyfile(path, place)


def remove_model(path: Path) -> None:
    """Removes a copy of the model: out of sight in one step, then from the disk.

    After an error, a second call goes on where the first one ended.
    """
    hidden = path.with_name(f".audioldm2-{os.getpid()}-0-{path.name}")
    if path.exists():
        path.rename(hidden)
    if hidden.exists():
        shutil.rmtree(hidden)


# Resuming ---------------------------------------------------------------------------------------------------


def resume(stage: Stage, folder: Path, data: Captioned | None = None) -> list[str]:
    """Restores a stage from a run's folder and drops the log lines of later steps.

    Args:
        stage: of the same kind and recipe as the run's.
        folder: of the run.
        data: what the run continues on, to be compared with what it was trained on.

    Returns:
        Sentences about what differs from the run so far without spoiling it.

    Raises:
        ValueError: the state belongs to another stage, model or recipe, or is damaged.
    """
    path, notes = folder / "state.pt", []
    try:
        if path.exists():  # otherwise the run was stopped before its first save
            state = torch.load(path, map_location=stage.device, weights_only=True)
            notes = differences(state.get("run"), description(stage, data), folder)
            stage.load_state_dict(state)
    except Edited:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} does not hold the state of this run: {error}") from error
    for name in ("metrics.jsonl", "validation.jsonl") if stage.ranks.is_first else ():
        JsonLines(folder / name).keep_until(stage.done)
    stage.ranks.wait()
    return notes


class Edited(ValueError):
    """run.json was edited after the run had been saved."""


def description(stage: Stage, data: Captioned | None) -> dict[str, Any]:
    """Returns what the numbers of a run depend on, as JSON has it, to be compared when the run resumes."""
    has_words = data is not None and type(data).__repr__ is not object.__repr__
    return {
        "stage": stage.name,
        "seed": stage.seed,
        "recipe": json.loads(json.dumps(asdict(stage.recipe))),
        "data": repr(data) if has_words else None,
        "data_digest": None if data is None else digest_of(data),
    }


def differences(before: dict[str, Any] | None, now: dict[str, Any], folder: Path) -> list[str]:
    """Compares descriptions of a run; the number of steps may differ.

    Returns:
        A sentence if the data differ.

    Raises:
        Edited: seed or recipe differ.
        ValueError: it is another stage.
    """
    if before is None:  # saved by an earlier version
        return []
    if before["stage"] != now["stage"]:
        raise ValueError(f"it is of the stage '{before['stage']}', not '{now['stage']}'")
    was, found = ({"seed": each["seed"]} | each["recipe"] for each in (before, now))
    changed = [
        f"{name} is {found[name]!r} and was {was[name]!r}"
        for name in was
        if name != "steps" and name in found and found[name] != was[name]
    ]
    if changed:
        raise Edited(
            f"{folder / 'run.json'} was edited: {'; '.join(changed)}. Change it back, or start another run "
            f"with --model {folder / 'model'}. Only the number of steps may change, by --steps."
        )
    if None not in (before["data"], now["data"]) and before["data"] != now["data"]:
        return [f"the data differ: {now['data']}, and before {before['data']}"]
    if (
        None not in (before.get("data_digest"), now["data_digest"])
        and before["data_digest"] != now["data_digest"]
    ):
        return [
            f"the sounds or captions of {now['data']} have changed since the run began, so that it does not "
            "continue as it would have"
        ]
    return []


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return False  # a file system without links
    return True
