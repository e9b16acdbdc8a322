"""From the look-up to the engine: who is refused reads no KV, KV that waits is bounded, followers hear the truth."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.headroom import Headroom
from semcache.daemon.live import Ask, Live
from semcache.daemon.request import CacheMode, CacheOptions, End, Message, Outcome, Request, RequestState, Sampling
from semcache.daemon.served import Served
from semcache.daemon.service import Service
from semcache.errors import BusyError
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import KVSpan
from tests.daemon.cache.school import School
from tests.daemon.cache.words import MODEL, asked
from tests.daemon.engine.conftest import load, request_for, save_model
from tests.daemon.idling import TIMEOUT_S, FakeLoop, drained, engine_loop, soon
from tests.daemon.serving import service_of

ONLY_KV = CacheOptions(mode=CacheMode.PREFIX)
NUM_TOKENS = 64
PROMPT_BYTES = NUM_TOKENS * 128 + 8 * 4  # KV and logits of one prompt in the small cache


class CountedFiles(Files):
    """Counts what is read, waits in it for as long as the gate is closed, and fails where it is told to."""

    error: Exception | None = None

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0
        self.is_reading, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def read(self, path: Path, size_bytes: int) -> memoryview:
        self.num_reads += 1
        self.is_reading.set()
        assert self.gate.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return super().read(path, size_bytes)


class Line(FakeLoop):
    """An engine whose requests wait until the test gives them a slot, or ends them."""

    def __init__(self) -> None:
        super().__init__()
        self.served.cuts = MODEL.cuts
        self.waiting: set[str] = set()
        self.takes_kv = True
        self.brought: list[KVSpan | None] = []

    def bring(self, request: Request, span: KVSpan | None) -> None:
        self.brought.append(span)
        if self.takes_kv:
            super().bring(request, span)

    def submit(
        self, request: Request, hand_over: Callable[[Request, PromptKV | None], None], served: Served | None
    ) -> None:
        self.waiting.add(request.id)
        self.num_waiting = len(self.waiting)
        super().submit(request, hand_over, served)

    async def next(self) -> Request:
        return await soon(self.submitted.get())

    def give_slot(self, request: Request) -> None:
        self._leave(request)
        super().give_slot(request)

    def end(self, request: Request, text: str = "", **how: Any) -> None:
        self._leave(request)
        super().end(request, text, **how)

    def _leave(self, request: Request) -> None:
        self.waiting.discard(request.id)
        self.num_waiting = len(self.waiting)


def prompt(i: int) -> str:
    return f"{i}".ljust(NUM_TOKENS, "x")


def ask(text: str, options: CacheOptions = ONLY_KV, user: str = "os:1/ann") -> Ask:
    return Ask(user, (Message("user", text),), Sampling(max_tokens=8), options)


@pytest.fixture
def files() -> CountedFiles:
    return CountedFiles()


@pytest.fixture
def store(tmp_path: Path, files: CountedFiles) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=1, disk_bytes=10**8), files=files)
    yield store
    store.close()


@pytest.fixture
def school(store: Store) -> School:
    """Eight warm prompts, of which the disk has the KV."""
    school = School(store)
    for i in range(8):
        school.cache.answer(asked(prompt(i)), "water")
    return school


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def make_service(school: School, line: Line, pool: ThreadPoolExecutor) -> Callable[..., Service]:
    return lambda **options: service_of(school, line, pool, **options)


async def until(pool: ThreadPoolExecutor, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await drained(pool)


async def ended(live: Live) -> Request:
    await soon(asyncio.shield(live.task))
    return live.request


async def test_what_was_counted_since_the_last_label_is_saved_at_the_end(
    store: Store, line: Line, pool: ThreadPoolExecutor
) -> None:
    school = School(store, learns=True)
    service = service_of(school, line, pool)
    assert school.policy is not None
    school.policy.decide("what is rain", [], ["user:os:1/ann", "user:os:1/ben"])
    await soon(service.drain(TIMEOUT_S))
    again = School(store, learns=True).policy
    assert again is not None
    assert [again.status(f"user:os:1/{name}").requests for name in ("ann", "ben")] == [1, 1]


async def test_a_request_that_is_refused_reads_no_kv(
    make_service: Callable[..., Service], line: Line, files: CountedFiles
) -> None:
    service = make_service(max_queue=1)
    first = await service.start(ask("never asked before"))
    waits = await line.next()
    refused = await ended(await service.start(ask(prompt(0))))
    assert isinstance(refused.error, BusyError)
    assert (refused.state, files.num_reads) == (RequestState.FAILED, 0)
    stored = await ended(await service.start(ask(prompt(0), CacheOptions())))
    assert (stored.state, stored.answer) == (RequestState.FINISHED, "water"), "what needs no engine waits for none"
    line.end(waits)
    await ended(first)
    warm = await service.start(ask(prompt(0)))
    line.end(await line.next())
    assert (await ended(warm)).num_restored == NUM_TOKENS
    assert files.num_reads > 0


async def test_kv_of_waiting_requests_is_within_the_headroom_and_all_are_served(
    make_service: Callable[..., Service], line: Line, pool: ThreadPoolExecutor
) -> None:
    headroom = Headroom(2 * PROMPT_BYTES)
    service = make_service(headroom=headroom)
    lives = [await service.start(ask(prompt(i))) for i in range(6)]
    first, second = await line.next(), await line.next()
    await until(pool, lambda: service.num_waiting == 6)
    assert (line.submitted.empty(), headroom.held_bytes) == (True, 2 * PROMPT_BYTES)
    line.give_slot(first)
    third = await line.next()
    assert headroom.held_bytes <= 2 * PROMPT_BYTES
    for request in (second, third):
        line.give_slot(request)
    line.end(first)
    for _ in range(3):
        request = await line.next()
        line.give_slot(request)
        line.end(request)
    for request in (second, third):
        line.end(request)
    assert [(await ended(live)).num_restored for live in lives] == [NUM_TOKENS] * 6
    await until(pool, lambda: (headroom.held_bytes, service.num_waiting) == (0, 0))


async def test_a_request_without_stored_kv_holds_none(make_service: Callable[..., Service], line: Line) -> None:
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    cold = [await service.start(ask(f"never asked before {i}")) for i in range(4)]
    for request in [await line.next() for _ in cold]:
        line.end(request)
    for live in cold:
        assert (await ended(live)).state is RequestState.FINISHED
    assert headroom.held_bytes == 0


async def test_who_reads_nothing_waits_for_no_headroom(make_service: Callable[..., Service], line: Line) -> None:
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    warm = await service.start(ask(prompt(0)))
    waits = await line.next()
    plain = await service.start(ask(prompt(1), CacheOptions(strategy="no_cache", mode=CacheMode.OFF)))
    line.end(await line.next())
    assert (await ended(plain)).state is RequestState.FINISHED
    assert headroom.held_bytes == PROMPT_BYTES
    line.end(waits)
    await ended(warm)


async def test_the_queue_counts_who_waits_for_headroom(
    make_service: Callable[..., Service], line: Line, pool: ThreadPoolExecutor
) -> None:
    service = make_service(headroom=Headroom(PROMPT_BYTES), max_queue=3)
    lives = [await service.start(ask(prompt(i))) for i in range(3)]
    first = await line.next()
    await until(pool, lambda: service.num_waiting == 3)
    refused = await ended(await service.start(ask(prompt(3))))
    assert isinstance(refused.error, BusyError)
    assert "3 requests are waiting" in refused.error.message
    line.end(first)
    for _ in range(2):
        request = await line.next()
        line.give_slot(request)
        line.end(request)
    assert [(await ended(live)).state for live in lives] == [RequestState.FINISHED] * 3


@pytest.mark.parametrize("leaves", ["in the line", "with its KV"])
async def test_who_is_cancelled_gives_its_headroom_to_the_next(
    make_service: Callable[..., Service], line: Line, pool: ThreadPoolExecutor, leaves: str
) -> None:
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    one, two, three = [await service.start(ask(prompt(i))) for i in range(3)]
    first = await line.next()
    await until(pool, lambda: service.num_waiting == 3)
    leaver, stayer = (two, three) if leaves == "in the line" else (one, two)
    service.cancel(leaver)
    await soon(asyncio.wait([leaver.task]))
    assert leaver.request.state is RequestState.CANCELLED
    if leaves == "in the line":
        assert line.submitted.empty()
        line.end(first)
    later = await line.next()
    assert later is stayer.request
    line.end(later)
    if leaves == "with its KV":
        line.end(await line.next())
    for live in (one, two, three):
        await soon(asyncio.wait([live.task]))
    await until(pool, lambda: (headroom.held_bytes, service.num_waiting) == (0, 0))


async def test_what_the_pool_still_reads_for_a_request_that_left_is_counted_until_it_is_read(
    make_service: Callable[..., Service], line: Line, files: CountedFiles, pool: ThreadPoolExecutor
) -> None:
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    files.gate.clear()
    try:
        leaving = await service.start(ask(prompt(0)))
        assert await soon(asyncio.get_running_loop().run_in_executor(None, files.is_reading.wait, TIMEOUT_S))
        service.cancel(leaving)
        await soon(asyncio.wait([leaving.task]))
        assert leaving.request.state is RequestState.CANCELLED
        assert (headroom.held_bytes, service.num_waiting) == (PROMPT_BYTES, 0)
    finally:
        files.gate.set()
    await until(pool, lambda: headroom.held_bytes == 0)
    staying = await service.start(ask(prompt(1)))
    line.end(await line.next())
    assert (await ended(staying)).num_restored == NUM_TOKENS
    await until(pool, lambda: headroom.held_bytes == 0)


@pytest.mark.parametrize("how", ["taken", "ended"])
async def test_what_is_read_and_not_yet_taken_is_counted(
    make_service: Callable[..., Service], line: Line, pool: ThreadPoolExecutor, how: str
) -> None:
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    line.takes_kv = False
    live = await service.start(ask(prompt(0)))
    request = await line.next()
    assert request.is_arriving
    line.give_slot(request)
    await until(pool, lambda: line.brought[-1:] == [None])
    for _ in range(3):
        await drained(pool)
    assert headroom.held_bytes == PROMPT_BYTES
    if how == "taken":
        request.on_arrived()
        await until(pool, lambda: headroom.held_bytes == 0)
    line.end(request)
    await ended(live)
    assert headroom.held_bytes == 0


@pytest.mark.parametrize("what", ["the donor's text", "the news"])
async def test_what_fails_on_the_way_to_the_engine_leaves_the_headroom_to_others(
    make_service: Callable[..., Service], school: School, line: Line, what: str
) -> None:
    school.cache.answer(asked("what is rain"), "water", model=replace(MODEL, fingerprint="another"))
    headroom = Headroom(PROMPT_BYTES)
    service = make_service(headroom=headroom)
    is_news = what == "the news"  # of KV that is there already
    live = await service.start(ask(prompt(0)) if is_news else ask("so what is rain", CacheOptions()))
    publish = live.request.publish

    def fail(event: object) -> None:
        if not isinstance(event, End):
            raise RuntimeError("no")
        publish(event)

    if is_news:
        live.request.publish = fail
    else:
        line.served.tokenizer.encode_text = fail
    assert (await ended(live)).state is RequestState.FAILED
    assert (line.submitted.empty(), headroom.held_bytes) == (True, 0)


async def test_the_event_loop_leaves_tokenising_to_the_pool(
    make_service: Callable[..., Service], school: School, line: Line
) -> None:
    """A donor of another model has to be cut into tokens anew, and the tokenizer may be busy with a long prompt."""
    school.cache.answer(asked("what is rain"), "water", model=replace(MODEL, fingerprint="another"))
    service = make_service()
    live = await service.start(ask("so what is rain", CacheOptions()))
    request = await line.next()
    assert request.donor is not None
    assert bytes(request.donor.tokens) == b"water"
    assert threading.get_ident() not in line.served.tokenizer.threads
    line.end(request)
    await ended(live)


async def test_a_read_that_fails_leaves_the_headroom_to_others(
    make_service: Callable[..., Service], line: Line, files: CountedFiles
) -> None:
    service = make_service(headroom=Headroom(PROMPT_BYTES))
    files.error = MemoryError()
    failed = await ended(await service.start(ask(prompt(0))))
    assert failed.state is RequestState.FAILED
    files.error = None
    live = await service.start(ask(prompt(0)))
    line.end(await line.next())
    assert (await ended(live)).num_restored == NUM_TOKENS


async def test_users_take_turns_in_the_line(
    make_service: Callable[..., Service], school: School, line: Line, pool: ThreadPoolExecutor
) -> None:
    school.cache.answer(asked(prompt(7), user="os:1/bob"), "water")
    service = make_service(headroom=Headroom(PROMPT_BYTES))
    lives = [await service.start(ask(prompt(i))) for i in range(4)]
    request = await line.next()
    await until(pool, lambda: service.num_waiting == 4)
    lives.append(await service.start(ask(prompt(7), user="os:1/bob")))
    await until(pool, lambda: service.num_waiting == 5)
    served = []
    for _ in lives:
        served.append(request.user[-3:])
        line.end(request)
        if len(served) < len(lives):
            request = await line.next()
    assert served == ["ann", "ann", "bob", "ann", "ann"]
    for live in lives:
        await ended(live)


async def test_a_follower_hears_through_which_of_its_scopes_it_was_answered(
    make_service: Callable[..., Service], line: Line
) -> None:
    service = make_service()
    shared = replace(ONLY_KV, strategy="global_user", mode=CacheMode.EXACT)
    leader = await service.start(ask("what is hail", shared, "os:1/ann"))
    computing = await line.next()
    bob = await service.start(ask("what is hail", shared, "os:1/bob"))
    again = await service.start(ask("what is hail", shared, "os:1/ann"))
    line.end(computing, "ice")
    scopes = []
    for live in (bob, again):
        receipt = (await ended(live)).receipt
        assert receipt is not None
        assert (receipt.outcome, receipt.reason) == (Outcome.EXACT, "in_flight")
        scopes.append(receipt.scope)
    assert scopes == ["global", "user"]
    await ended(leader)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


async def test_a_burst_of_warm_requests_through_a_real_engine(
    loaded: LoadedModel, store: Store, pool: ThreadPoolExecutor
) -> None:
    """One slot and room for one prompt: each loads its KV when the one before has started."""
    headroom = Headroom(1)
    with engine_loop(loaded, chunk_tokens=16) as engine:
        await until(pool, lambda: engine.model.state == "ready")
        service = service_of(School(store), engine, pool, headroom=headroom)
        questions = [replace(ask(prompt(i)), sampling=Sampling(max_tokens=4)) for i in range(6)]
        answers: list[list[Any]] = []
        for _ in ("cold", "warm"):
            lives = [await service.start(question) for question in questions]
            answers.append([(await ended(live)).answer for live in lives])
        assert answers[0] == answers[1]
        assert {live.request.receipt.outcome for live in lives if live.request.receipt} == {Outcome.PREFIX}
        await until(pool, lambda: (headroom.held_bytes, service.num_waiting) == (0, 0))
        await soon(service.drain(TIMEOUT_S))


async def test_a_request_says_that_it_has_its_slot_before_its_first_token(loaded: LoadedModel) -> None:
    happened: list[str] = []
    ending = asyncio.get_running_loop().create_future()
    request = request_for(list(range(40)), Sampling(max_tokens=2), on_slot=lambda: happened.append("slot"))
    request.publish = lambda event: happened.append(type(event).__name__)
    with engine_loop(loaded, chunk_tokens=16) as engine:
        loop = asyncio.get_running_loop()
        engine.submit(request, lambda *_: loop.call_soon_threadsafe(ending.set_result, None), engine.served)
        await soon(ending)
    assert happened[0] == "slot"
    assert (happened.count("slot"), happened[-1]) == (1, "End")
