"""Batches made ahead of their turn, while the model is busy with those before them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from plait.data.feed import Feed, JobFeed

AHEAD = 2  # batches a worker has ready or in work beside the one it is at


class Ahead(JobFeed):
    """The same batches in the same order as `feed` gives them, made by `workers` threads.

    A fault in making a batch is raised where the batch is asked for. Threads do: batches are made by numpy and torch, which let other
    threads run while they copy, and are a small part of a step.
    """

    def __init__(self, feed: Any, workers: int):
        """`feed` is a `JobFeed`."""
        self.feed, self.workers = feed, workers

    @property
    def tokens(self) -> int:
        return self.feed.tokens

    @property
    def fingerprint(self) -> str:
        return self.feed.fingerprint

    def batches(self, epoch: int) -> int:
        return self.feed.batches(epoch)

    def where(self, epoch: int, position: int, row: int) -> str:
        return self.feed.where(epoch, position, row)

    def jobs(self, epoch: int, position: int) -> Iterator[tuple[int, int, Callable[[], Any]]]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="plait-batches")
        waiting: deque[tuple[int, int, Future]] = deque()
        try:
            for epoch, position, job in self.feed.jobs(epoch, position):
                waiting.append((epoch, position, pool.submit(job)))
                if len(waiting) > AHEAD * self.workers:
                    epoch_then, position_then, made = waiting.popleft()
                    yield epoch_then, position_then, made.result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def ahead(feed: Any, workers: int) -> Feed:
    """The feed itself where no workers are asked for."""
    return Ahead(feed, workers) if workers else feed
