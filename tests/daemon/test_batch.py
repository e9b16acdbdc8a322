"""Who gets a pass over several chunks: a lone prompt, and nobody whom others wait for."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from semcache.daemon.batch import Batch
from semcache.daemon.drafts import Drafts
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.handover import Handovers
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import Request
from semcache.daemon.resident import Resident
from semcache.daemon.scheduler import Scheduler
from tests.daemon.engine.conftest import CHUNK_TOKENS, load, random_prompt, request_for, save_model

TIMEOUT_S = 60


class Watched(Engine):
    """Writes down which passes may be wide; `on_begin` is called before a request begins."""

    def __init__(self, loaded: LoadedModel, *, num_slots: int, on_begin: Callable[[], object] = lambda: None) -> None:
        super().__init__(loaded, num_slots=num_slots, prefill_chunk_tokens=CHUNK_TOKENS)
        self.wide: list[bool] = []
        self.on_begin = on_begin

    def begin(self, request: Request) -> None:
        self.on_begin()
        super().begin(request)

    def prefill(self, request: Request, *, wide: bool = False) -> int | None:
        self.wide.append(wide)
        return super().prefill(request)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


def long_request(**fields: Any) -> Request:
    return request_for(random_prompt(random.Random(1), 8 * CHUNK_TOKENS), **fields)


def passes(loaded: LoadedModel, requests: list[Request], *, num_slots: int, num_steps: int) -> list[bool]:
    """Which passes may be wide where these requests are there from the start, and nobody is on the way."""
    engine = Watched(loaded, num_slots=num_slots)
    resident = Resident(lambda _progress: engine, on_change=lambda: None, keep_alive_s=0, clock=time.monotonic)
    resident.load()
    batch = Batch(
        resident, Scheduler(num_slots), Handovers(block_tokens=64, piece_bytes=1), Drafts(enabled=False),
        time.monotonic, is_awaited=lambda: False, piece_bytes=1,
    )  # fmt: skip
    for request in requests:
        batch.add(request, lambda _request, _kv: None)
    for _ in range(num_steps):
        batch.step()
    assert batch.num_failures == 0
    return engine.wide


def test_a_lone_prompt_may_take_several_chunks_at_once(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request()], num_slots=2, num_steps=3) == [True] * 3


def test_not_where_somebody_waits(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request(), long_request()], num_slots=1, num_steps=3) == [False] * 3


def test_not_where_somebody_else_runs(loaded: LoadedModel) -> None:
    """From the second step on nobody waits any more."""
    assert passes(loaded, [long_request(), long_request()], num_slots=2, num_steps=3) == [False] * 3


def test_not_in_idle_time(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request(gives_way=True)], num_slots=2, num_steps=3) == [False] * 3


def test_not_where_somebody_is_on_the_way(loaded: LoadedModel) -> None:
    """Whoever comes since the inbox was looked at."""
    handed: queue.SimpleQueue[Request] = queue.SimpleQueue()
    late = [long_request()]

    def ask_once() -> None:
        while late:
            loop.submit(late.pop(), lambda request, _kv: handed.put(request), loop.served)

    engine = Watched(loaded, num_slots=1, on_begin=ask_once)
    loop = EngineLoop(lambda _progress: engine, drafts=False)
    loop.start()
    try:
        loop.submit(long_request(), lambda request, _kv: handed.put(request), None)
        for _ in range(2):
            handed.get(timeout=TIMEOUT_S)
    finally:
        loop.stop(TIMEOUT_S)
    assert (engine.wide[0], engine.wide[-1]) == (False, True)
