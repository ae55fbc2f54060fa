"""Training by several processes ("ranks"), which torchrun starts: each takes its share of every batch.

Every rank holds the same networks. It computes the losses of its rows of the batch; the gradients are then
averaged, so that all ranks take the same step, the one that a single process would take on the whole batch.
Random numbers are drawn for the whole batch on every rank, which then uses its rows, so that nothing depends
on the number of ranks. The networks are not wrapped in DistributedDataParallel: a step calls several of them,
and methods other than `forward`.

Before ranks exchange tensors they vote, over the CPU, whether all are well. A rank that fails votes so, and
the others raise `OtherRankFailed` instead of waiting for it forever.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from audioldm2.checkpoints.load import resolve_device
from audioldm2.errors import ArgumentError

TIMEOUT = timedelta(hours=1)  # of a wait for other ranks; rank 0 saves and writes samples meanwhile
BUCKET = 2**25  # elements of gradients that are averaged in one message
WELL, STOPS, FAILED = range(3)  # votes
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Value = TypeVar("Value")


class OtherRankFailed(ConnectionError):
    """Another rank has raised an error, or has disappeared.

    Attributes:
        answers: whether all ranks still answer.
    """

    def __init__(self, message: str, answers: bool) -> None:
        super().__init__(message)
        self.answers = answers


class Ranks:
    """The processes of a run, seen from one of them. By default there is one, and nothing is exchanged.

    Args:
        rank: of this process.
        count: of processes.
        store: what all of them read and write; only one process needs none.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: "dist.Store | None" = None) -> None:
        self.rank, self.count, self.store = rank, count, store
        self.shared_lists = 0
        self.is_first = rank == 0  # the rank that writes and reports
        self.answers = True  # whether no rank has disappeared
        self.has_announced = False  # whether the others know of an error on this rank

    # Shares ---------------------------------------------------------------------------------------------

    def places(self, size: int) -> range:
        """Returns which clips of a batch are this rank's."""
        share = size // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def rows(self, whole: Tensor) -> Tensor:
        """Returns this rank's rows of a tensor with the rows of the whole batch."""
        places = self.places(len(whole))
        return whole[places.start : places.stop]

    def require_shares(self, batch: int) -> None:
        """Raises ArgumentError where a batch cannot be shared equally."""
        if batch % self.count:
            raise ArgumentError("batch", batch, f"be a multiple of {self.count}, the number of processes")

    def shared(self, count: int) -> Iterator[int]:
        """Yields the numbers below `count`, each on one rank only: whoever is free takes the next one.

        All ranks have to call it equally often. The numbers that a rank has taken are lost with it.

        Raises:
            OtherRankFailed: the rank that counts has disappeared.
        """
        if self.store is None:
            yield from range(count)
            return
        self.shared_lists += 1
        while True:
            with self._exchange():
                number = self.store.add(f"taken from list {self.shared_lists}", 1) - 1
            if number >= count:
                return
            yield number

    # Votes ----------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Waits until every rank has come here.

        Raises:
            OtherRankFailed: another rank has failed; so do all methods below.
        """
        self._vote(WELL)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Lets rank 0 finish the block before the others begin it, which then find what it has cached."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def any(self, value: object) -> bool:
        """Whether a value is true on any rank."""
        return STOPS in self._vote(STOPS if value else WELL) if self.count > 1 else bool(value)

    def announce(self, error: Exception) -> None:
        """Makes the other ranks raise `OtherRankFailed` with the words of an error, at their next vote."""
        if self.count > 1 and not self.has_announced and not isinstance(error, OtherRankFailed):
            self.has_announced = True
            with suppress(OtherRankFailed):
                self._vote(FAILED, str(error) or type(error).__name__)

    def finish(self) -> None:
        """Waits for ranks that end with an error as this one does, so that rank 0 can save before them."""
        if self.answers:
            with suppress(OtherRankFailed):
                self._vote(WELL)

    def _vote(self, vote: int, words: str = "") -> list[int]:
        """Exchanges votes. Where ranks fail, those that do not raise an error with the others' words."""
        if self.count == 1:
            return [vote]
        votes = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
        with self._exchange():
            dist.all_gather(votes, torch.tensor(vote))
        found = [int(each) for each in votes]
        if FAILED in found:
            sentences: list[str] = [""] * self.count
            with self._exchange():
                dist.all_gather_object(sentences, words)
            sentences = [f"rank {rank}: {each}" for rank, each in enumerate(sentences) if each]
            if vote != FAILED:
                raise OtherRankFailed("; ".join(sentences), answers=True)
        return found

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of Gloo and NCCL: a connection is closed, or time is up
            self.answers = False
            sentence = "another process of this run has ended, or does not answer"
            raise OtherRankFailed(sentence, answers=False) from error

    # Tensors --------------------------------------------------------------------------------------------

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean of a tensor over all ranks, without gradient."""
        if self.count == 1:
            return tensor.detach()
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._vote(WELL)
        with self._exchange():
            dist.all_reduce(result)
        return result / self.count

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the mean of each value over all ranks; the names are the same on each."""
        if self.count == 1:
            return dict(values)
        means = self.mean(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, means.tolist(), strict=True))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces gradients by their means over all ranks."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        buckets = list(_buckets(gradients))
        flats = [torch.cat([gradient.flatten() for gradient in bucket]) for bucket in buckets]
        self._vote(WELL)  # after what may run out of memory
        with self._exchange():
            for work in [dist.all_reduce(flat, async_op=True) for flat in flats]:
                work.wait()
        for bucket, flat in zip(buckets, flats, strict=True):
            flat /= self.count
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the rows of all ranks, in order; each rank computes the same losses from them.

        The gradient of this rank's rows is multiplied by the number of ranks, because gradients of parameters
        are averaged over ranks and only this one passes on theirs.
        """
        return _Gather.apply(rows, self) if self.count > 1 else rows

    def gather_list(self, values: list[Value]) -> list[Value]:
        """Returns the values of all ranks, in order."""
        if self.count == 1:
            return values
        self._vote(WELL)
        found: list[list[Value]] = [[]] * self.count
        with self._exchange():
            dist.all_gather_object(found, values)
        return [value for each in found for value in each]


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks.count)]
        ranks.wait()
        with ranks._exchange():
            dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.rows(gradients[0]) * ctx.ranks.count, None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divides tensors into lists of one dtype and at most `BUCKET` elements, but for larger tensors."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        is_full = sum(each.numel() for each in bucket) + tensor.numel() > BUCKET
        if bucket and (is_full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


# Starting ---------------------------------------------------------------------------------------------------


def rank_from_environment() -> int:
    """Returns which of torchrun's processes this is; 0 where it started none."""
    return int(os.environ.get("RANK", 0)) if _count() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Joins the processes that torchrun has started; without torchrun there is one, and nothing happens.

    Args:
        device: what the user asks for: "auto", "cpu", "cuda", or another device if there is one process.

    Yields:
        The ranks, and the device of this one. An error inside the block reaches the other ranks.

    Raises:
        ArgumentError: the device is not allowed, or does not exist.
        ValueError: torchrun's variables are incomplete, or there are more processes than GPUs.
    """
    if _count() == 1:
        yield Ranks(), resolve_device(device)
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set but {' and '.join(missing)} is not; start with torchrun.")
    place = _device_of(device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    # Votes are tensors on the CPU, whatever the device.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=count,
    )
    ranks = Ranks(rank, count, dist.PrefixStore("ranks", store))
    try:
        yield ranks, place
    except Exception as error:
        ranks.announce(error)
        ranks.finish()
        raise
    finally:
        if ranks.answers:  # otherwise NCCL might wait for those that do not
            dist.destroy_process_group()


def _device_of(device: str, local_rank: int, local_count: int) -> torch.device:
    """The device of a rank: its own GPU, or the CPU."""
    if device not in ("auto", "cpu", "cuda"):
        allowed = "be auto, cpu or cuda: each of torchrun's processes has a GPU of its own"
        raise ArgumentError("device", device, allowed)
    kind = resolve_device(device).type
    if kind != "cuda":
        return torch.device("cpu")
    if local_count > torch.cuda.device_count():
        raise ValueError(
            f"torchrun started {local_count} processes on a machine with {torch.cuda.device_count()} GPUs; "
            f"give it --nproc-per-node {torch.cuda.device_count()}."
        )
    return torch.device("cuda", local_rank)


def _count() -> int:
    words = os.environ.get("WORLD_SIZE", "1")
    return int(words) if words.isdecimal() and int(words) else 1
