"""The page of `audioldm2 ui`, served by the process of the tests."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import audioldm2
from audioldm2.ui.limits import Limits
from audioldm2.ui.models import Models


@dataclass
class Served:
    """A page that is served."""

    address: str
    page: Any
    server: Any
    model: audioldm2.AudioLDM2

    @property
    def waiting(self) -> int:
        return len(self.page._queue)

    @property
    def running(self) -> int:
        return self.page._queue.get_active_worker_count()

    def client(self) -> Any:
        from gradio_client import Client

        return Client(self.address, verbose=False, httpx_kwargs={"timeout": 120})


@contextmanager
def serve(model: audioldm2.AudioLDM2, limits: Limits) -> Iterator[Served]:
    from audioldm2.ui import page, server

    models = Models(["tiny"], lambda name: model)
    with server.files() as folder:
        shared = page.Server(models, limits, folder, str)
        shared.worker.submit(lambda job: models.get("tiny")).outcome.result()
        built = page.build(shared)
        address = server.launch(built, limits, host="127.0.0.1", port=free_port(), share=False)
        try:
            yield Served(address, built, shared, model)
        finally:
            built.close(verbose=False)
            shared.worker.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What a condition returns once it is true; errors count as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except Exception:
            if time.monotonic() > end:
                raise
            found = None
        if found:
            return found
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
