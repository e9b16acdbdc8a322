"""A repeated prompt whose KV is still on the disk when its answer begins, through the service and a real engine.

Damage is done where it comes latest: after the full-prompt record was verified and the first token is on its way.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semcache.config import Exactness
from semcache.daemon.asked import model_key
from semcache.daemon.cache.lookup import PromptKeys
from semcache.daemon.cache.strategy import access
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.handover import Handovers
from semcache.daemon.headroom import Headroom
from semcache.daemon.live import Ask, Live
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import (
    CacheMode,
    CacheOptions,
    End,
    Matched,
    Message,
    Outcome,
    Receipt,
    Request,
    RequestState,
    Sampling,
    Token,
)  # fmt: skip
from semcache.daemon.service import Service
from semcache.errors import UnavailableError
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import KVSpan
from tests.daemon.cache.school import School
from tests.daemon.cache.words import MODEL
from tests.daemon.engine.conftest import load, request_for, save_model
from tests.daemon.idling import TIMEOUT_S, drained, soon
from tests.daemon.serving import service_of

USER = "os:1/ann"
TEXT = "how much rain falls on the hills behind the harbour town in a year?"
CHUNK_TOKENS = 16
ONLY_KV = CacheOptions(mode=CacheMode.PREFIX)


class RiskyFiles(Files):
    """Reads of blocks wait for the gate; what they find is damaged where the test says so. Records are fine."""

    def __init__(self) -> None:
        super().__init__()
        self.damage: dict[str, str] = {}  # by block name
        self.is_reading, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def read(self, path: Path, size_bytes: int) -> memoryview:
        if ".tail." in path.name:
            return super().read(path, size_bytes)
        self.is_reading.set()
        assert self.gate.wait(TIMEOUT_S)
        kind = self.damage.get(path.name.partition(".")[0])
        if kind == "unreadable":
            raise OSError(5, "Input/output error")
        if kind == "missing":
            path.unlink(missing_ok=True)
        elif kind == "cut":
            path.write_bytes(path.read_bytes()[: size_bytes // 2])
        elif kind == "flipped":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
            self.damage.pop(path.name.partition(".")[0])
        return super().read(path, size_bytes)


@pytest.fixture
def files() -> Iterator[RiskyFiles]:
    files = RiskyFiles()
    yield files
    files.gate.set()


@pytest.fixture
def store(tmp_path: Path, files: RiskyFiles) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=1, disk_bytes=10**8), files=files)
    yield store
    store.close()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


class Watched(EngineLoop):
    """Remembers what it was brought."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.brought: list[KVSpan | None] = []

    def bring(self, request: Request, span: KVSpan | None) -> None:
        self.brought.append(span)
        super().bring(request, span)


class World:
    """A service over a store and a real engine with two slots."""

    def __init__(self, store: Store, files: RiskyFiles, loaded: LoadedModel, exactness: Exactness = "bitwise") -> None:
        self.files, self.store = files, store
        self.loaded, self.exactness = loaded, exactness  # what is found at the next load
        self.pool = ThreadPoolExecutor(6)
        self.headroom = Headroom(10**9)
        self.engine = Watched(
            lambda _progress: Engine(
                self.loaded, num_slots=2, prefill_chunk_tokens=CHUNK_TOKENS, exactness=self.exactness
            )
        )
        self.engine.start()
        self.engine.load()
        self.service: Service = service_of(School(store), self.engine, self.pool, headroom=self.headroom)

    async def ready(self) -> World:
        await self.until(lambda: self.engine.model.state == "ready")
        return self

    async def until(self, holds: object) -> None:
        assert callable(holds)
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                await drained(self.pool)

    async def start(self, text: str = TEXT, max_tokens: int = 6, options: CacheOptions = ONLY_KV) -> Live:
        sampling = Sampling(max_tokens=max_tokens)
        return await self.service.start(Ask(USER, (Message("user", text),), sampling, options))

    async def ask(self, text: str = TEXT, max_tokens: int = 6, options: CacheOptions = ONLY_KV) -> Request:
        live = await self.start(text, max_tokens, options)
        await soon(asyncio.shield(live.task))
        return live.request

    def block_names(self, request: Request) -> list[str]:
        assert self.engine.served is not None
        model = model_key(self.engine.served, block_tokens=MODEL.block_tokens)
        [scope] = access("per_user", user=USER, allow_global="own").read
        return [key.hash for key in PromptKeys.of(scope, model, request.prompt_tokens).blocks]

    def close(self) -> None:
        self.files.gate.set()
        self.engine.stop(TIMEOUT_S)
        self.pool.shutdown()


@pytest.fixture
def world(store: Store, files: RiskyFiles, loaded: LoadedModel) -> Iterator[World]:
    world = World(store, files, loaded)
    yield world
    world.close()


async def until_token(live: Live) -> list[object]:
    """The events up to the first token."""
    events: list[object] = []
    async for event in live.events():
        events.append(event)
        if isinstance(event, Token):
            break
    return events


async def until_end(live: Live) -> None:
    async for _ in live.events():
        pass


def facts(request: Request) -> tuple[RequestState, str, list[int]]:
    return request.state, request.answer, request.output_tokens


async def test_the_answer_begins_before_its_kv_is_read(world: World) -> None:
    await world.ready()
    cold = await world.ask()
    world.files.gate.clear()
    live = await world.start()
    matched, _ = await soon(until_token(live))
    assert isinstance(matched, Matched)
    assert matched.receipt.prefix_tokens == cold.num_prompt_tokens
    assert live.request.output_tokens == cold.output_tokens[:1]
    other = await world.start("quite another question")
    assert len(await soon(until_token(other))) == 2, "nobody else waits for the disk"
    await soon(asyncio.shield(other.task))
    assert (other.request.state, live.request.state) == (RequestState.FINISHED, RequestState.DECODING)
    assert len(live.request.output_tokens) == 1
    world.files.gate.set()
    await soon(asyncio.shield(live.task))
    assert facts(live.request) == facts(cold)
    assert live.request.receipt is not None
    assert (live.request.receipt.outcome, live.request.num_cached_tokens) == (Outcome.PREFIX, cold.num_prompt_tokens)
    await world.until(lambda: world.headroom.held_bytes == 0)


@pytest.mark.parametrize("kind", ["flipped", "missing", "cut", "unreadable"])
@pytest.mark.parametrize("at", [0, 2, -1])
@pytest.mark.parametrize("exactness", ["bitwise", "rounding"])
async def test_kv_that_proves_damaged_behind_the_first_token_is_computed(
    store: Store, files: RiskyFiles, loaded: LoadedModel, exactness: Exactness, kind: str, at: int
) -> None:
    world = World(store, files, loaded, exactness)
    try:
        await world.ready()
        cold = await world.ask()
        names = world.block_names(cold)
        at %= len(names)
        files.damage[names[at]] = kind
        files.gate.clear()
        live = await world.start()
        events = await soon(until_token(live))
        assert events, "the record was fine, so the answer has begun"
        files.gate.set()
        events += [event async for event in live.events()]
        await soon(asyncio.shield(live.task))
        request = live.request
        assert facts(request) == facts(cold)
        assert "".join(event.text for event in events if isinstance(event, Token)) == cold.answer
        assert [type(event) for event in events if isinstance(event, (Matched, End))] == [Matched, End]
        receipt, num_whole = request.receipt, at * MODEL.block_tokens
        assert receipt is not None
        assert (receipt.prefix_tokens, request.num_cached_tokens) == (num_whole, num_whole)
        assert receipt.outcome is (Outcome.PREFIX if num_whole else Outcome.MISS)
        assert num_whole or receipt.reason == "unreadable"
        counter = "read_failures" if kind == "unreadable" else "damaged_blocks"
        assert store.counters()[counter] == 1
        await world.until(lambda: world.headroom.held_bytes == 0)
        files.damage.clear()
        again = await world.ask()
        assert facts(again) == facts(cold)
        assert again.num_cached_tokens == again.num_prompt_tokens, "what was damaged was stored again"
        assert world.engine.num_failures == 0
    finally:
        world.close()


@pytest.mark.parametrize("how", ["leaves", "ends with its first token"])
async def test_who_ends_while_its_kv_is_read_leaves_nothing_behind(world: World, how: str) -> None:
    await world.ready()
    cold = await world.ask()
    world.files.gate.clear()
    live = await world.start(max_tokens=1 if how != "leaves" else 6)
    await soon(until_token(live))
    loop = asyncio.get_running_loop()
    assert await soon(loop.run_in_executor(None, world.files.is_reading.wait, TIMEOUT_S))
    if how == "leaves":
        world.service.cancel(live)
    await soon(until_end(live))
    assert live.request.state is (RequestState.CANCELLED if how == "leaves" else RequestState.FINISHED)
    assert world.engine.num_running == 0
    assert world.headroom.held_bytes > 0, "what is being read is still counted"
    assert world.engine.brought == []
    world.files.gate.set()
    await world.until(lambda: world.headroom.held_bytes == 0)
    assert world.engine.brought == [None], "nobody wants it any more"
    again = await world.ask()
    assert facts(again) == facts(cold)
    assert again.num_cached_tokens == again.num_prompt_tokens
    assert world.engine.num_failures == 0


async def test_a_draft_waits_for_its_kv_too(world: World) -> None:
    await world.ready()
    drafted = CacheOptions(mode=CacheMode.LOSSLESS, refresh=True)
    cold = await world.ask(options=drafted)
    world.files.gate.clear()
    live = await world.start(options=drafted)
    await soon(until_token(live))
    assert live.request.donor is not None
    world.engine.offer(live.request, [live.request.donor])
    other = await world.ask("quite another question")  # the offer was taken before this one was begun
    assert (other.state, live.request.num_passes) == (RequestState.FINISHED, 0)
    world.files.gate.set()
    await soon(asyncio.shield(live.task))
    assert facts(live.request) == facts(cold)
    assert live.request.num_draft_accepted > 1
    assert world.engine.num_failures == 0


def test_kv_that_is_still_arriving_is_not_handed_over() -> None:
    request = request_for([1] * 40, num_restored=40, prompt_logits=torch.zeros(9), is_arriving=True, slot=0)
    no_engine: Any = None
    assert not Handovers(block_tokens=64, piece_bytes=1 << 20).leave(request, no_engine)


async def test_a_file_that_is_gone_before_the_answer_begins_is_no_promise(world: World) -> None:
    await world.ready()
    cold = await world.ask()
    name = world.block_names(cold)[1]
    [path] = (Path(world.store._folder.path) / "kv").rglob(f"{name}.safetensors")
    path.unlink()
    request = await world.ask()
    assert facts(request) == facts(cold)
    assert request.num_cached_tokens == MODEL.block_tokens
    assert world.store.counters()["damaged_blocks"] == 1


async def test_an_unload_and_a_stop_do_not_forget_who_waits_for_kv(world: World) -> None:
    await world.ready()
    cold = await world.ask()
    world.files.gate.clear()
    live = await world.start()
    await soon(until_token(live))
    world.engine.unload()
    world.files.gate.set()
    await soon(asyncio.shield(live.task))
    assert facts(live.request) == facts(cold)
    await world.until(lambda: world.engine.model.state == "unloaded")
    world.files.gate.clear()
    live = await world.start()
    await soon(until_token(live))
    stopping = threading.Thread(target=world.engine.stop, args=(TIMEOUT_S,))
    stopping.start()
    await soon(until_end(live))
    stopping.join()
    assert live.request.state is RequestState.FAILED
    assert isinstance(live.request.error, UnavailableError)
    world.files.gate.set()
    await world.until(lambda: world.headroom.held_bytes == 0)


@pytest.mark.parametrize("may_arrive_late", [False, True])
@pytest.mark.parametrize("changed", ["weights", "numerics"])
async def test_kv_of_a_model_is_not_used_with_its_successor(
    world: World, tmp_path: Path, *, changed: str, may_arrive_late: bool
) -> None:
    await world.ready()
    cold = await world.ask()
    world.engine.unload()
    await world.until(lambda: world.engine.model.state == "unloaded")
    await world.service.settled()
    stored = world.store.tier_status()["disk"]
    if changed == "weights":
        world.loaded = load(save_model(tmp_path / "retrained", initializer_range=0.3))
    else:
        world.exactness = "rounding"
    refused = await world.ask(TEXT if may_arrive_late else TEXT + " and how much snow?")
    assert refused.num_cached_tokens >= 2 * CHUNK_TOKENS, "the look-up knew of no other model"
    assert (refused.state, refused.output_tokens) == (RequestState.FAILED, [])
    assert isinstance(refused.error, UnavailableError)
    await world.service.settled()
    assert world.store.tier_status()["disk"] == stored
    again = await world.ask()
    assert (again.state, again.num_cached_tokens) == (RequestState.FINISHED, 0)
    assert (again.output_tokens == cold.output_tokens) == (changed == "numerics")
    await world.until(lambda: world.headroom.held_bytes == 0)


async def test_a_prompt_that_waits_for_a_slot_may_lose_its_kv_too(world: World) -> None:
    await world.ready()
    cold = await world.ask()
    world.files.damage[world.block_names(cold)[2]] = "flipped"
    busy = [await world.start(f"busy {i}" * 5, max_tokens=100) for i in range(2)]
    for live in busy:
        await soon(until_token(live))
    request = await world.ask()
    assert facts(request) == facts(cold)
    assert request.num_cached_tokens == 2 * MODEL.block_tokens
    for live in busy:
        await soon(asyncio.wait([live.task]))


def test_a_receipt_says_what_was_lost() -> None:
    request = Request(
        id="r", user=USER, model="m", messages=(Message("user", "hi"),), prompt_tokens=[1] * 40, sampling=Sampling(),
        options=CacheOptions(), publish=lambda event: None, num_restored=40, prompt_logits=object(),
    )  # fmt: skip
    request.lose_restored(32)
    assert (request.num_restored, request.prompt_logits, request.receipt) == (32, None, None)
    told = Receipt(Outcome.PREFIX, "empty", "per_user", scope="user", prefix_tokens=40)
    request.receipt = told
    request.lose_restored(16)
    assert request.receipt == replace(told, prefix_tokens=16)
    request.lose_restored(0)
    assert request.receipt == Receipt(Outcome.MISS, "unreadable", "per_user")
