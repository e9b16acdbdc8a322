"""Each thread computes with its own number of threads, whatever others set before or after."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from semcache.daemon.engine.threads import compute_with

TIMEOUT_S = 60


def test_a_thread_keeps_its_number_when_another_sets_its_own() -> None:
    num_threads, others_set = torch.get_num_threads(), threading.Event()

    def engine() -> int:
        compute_with(3)
        assert others_set.wait(TIMEOUT_S)
        return torch.get_num_threads()

    def other() -> int:
        compute_with(1)
        others_set.set()
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1, initializer=compute_with, initargs=(2,)) as second:
            assert second.submit(torch.get_num_threads).result(TIMEOUT_S) == 2
            kept = first.submit(engine)
            assert second.submit(other).result(TIMEOUT_S) == 1
            assert kept.result(TIMEOUT_S) == 3
        assert torch.get_num_threads() == num_threads
    finally:
        compute_with(num_threads)  # new threads take what was set last
