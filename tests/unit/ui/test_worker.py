"""Requests run one at a time, report how far they are, and stop within a step."""

import asyncio
import threading
import time

import pytest

from audioldm2.ui.worker import Cancelled, Job, Worker


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def stepping(steps: int, pause: float = 0.01):
    def work(job: Job) -> int:
        job.steps = steps
        job.on_stage("denoising")
        for step in range(1, steps + 1):
            time.sleep(pause)
            job.on_step(step, 0.0, None)
        job.on_stage("decoding")
        return steps

    return work


def test_no_two_requests_run_at_once_and_their_order_is_kept(worker):
    running, most, order = [], [], []

    def work(number: int):
        def run(job: Job) -> None:
            running.append(number)
            most.append(len(running))
            time.sleep(0.005)
            order.append(running.pop())

        return run

    for job in [worker.submit(work(number)) for number in range(8)]:
        job.outcome.result(timeout=60)
    assert set(most) == {1} and order == list(range(8))


def test_progress_names_the_stage_and_the_step(worker):
    seen = []
    job = worker.submit(stepping(20, pause=0.05))
    assert asyncio.run(job.follow(seen.append)) == 20
    denoising = [each for each in seen if each.stage == "denoising"]
    assert {each.steps for each in denoising} == {20}
    steps = [each.step for each in denoising]
    assert len(steps) > 2 and steps == sorted(set(steps))


def test_a_cancelled_request_stops_within_a_step(worker):
    job = worker.submit(stepping(10_000))
    while not (job.latest and job.latest.step > 2):
        time.sleep(0.001)
    job.cancel()
    at = job.latest.step
    with pytest.raises(Cancelled):
        job.outcome.result(timeout=60)
    assert job.latest.step <= at + 1


def test_a_request_that_waits_is_cancelled_before_it_begins(worker):
    gate, begun = threading.Event(), []
    worker.submit(lambda job: gate.wait(60))
    waiting = worker.submit(begun.append)
    waiting.cancel()
    gate.set()
    with pytest.raises(Cancelled):
        waiting.outcome.result(timeout=60)
    assert begun == []


def test_whoever_stops_waiting_cancels(worker):
    job = worker.submit(stepping(10_000))

    async def leave() -> None:
        task = asyncio.create_task(job.follow(lambda news: None))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    with pytest.raises(Cancelled):
        job.outcome.result(timeout=60)


def test_a_request_that_fails_leaves_the_worker_at_work(worker):
    def fail(job: Job) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        worker.submit(fail).outcome.result(timeout=60)
    assert worker.submit(lambda job: 1).outcome.result(timeout=60) == 1
