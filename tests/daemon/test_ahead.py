"""What is prefilled ahead is what the next turn would have computed, bit for bit, and nothing that was forgotten."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from semcache.daemon.ahead import PrefillAhead
from semcache.daemon.asked import model_key
from semcache.daemon.cache.admit import Admission, PromptKV, cut
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey, PromptKeys
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.idle import Compute, IdleTime
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheOptions, Message, Outcome, Request, RequestState, Sampling
from semcache.daemon.served import ModelState, Served
from semcache.daemon.turns import Turn, Turns
from semcache.store.store import Store
from tests.daemon.cache.words import span
from tests.daemon.engine.conftest import CHUNK_TOKENS, load, save_model
from tests.daemon.idling import FakeLoop, drained, engine_loop, soon, through

BLOCK_TOKENS = 8
_numbers = itertools.count()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama", eos_token_id=None))


@pytest.fixture(scope="module")
def real(llama: LoadedModel) -> Iterator[EngineLoop]:
    with engine_loop(llama, chunk_tokens=CHUNK_TOKENS) as engine:
        yield engine


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Talk:
    """A cache and its idle time over an engine loop, with requests made and stored as the service does."""

    def __init__(self, engine: EngineLoop | FakeLoop, store: Store, pool: ThreadPoolExecutor, **options: Any) -> None:
        self.engine: Any = engine
        self.store, self.pool = store, pool
        self.lookup = Lookup(store, OffPolicy(), lambda: None)
        self.admission = Admission(store, lambda: None)
        self.turns = Turns(chunk_tokens=CHUNK_TOKENS)
        self.told: asyncio.Queue[Turn] = asyncio.Queue()
        self.ahead = PrefillAhead(
            turns=self.turns, lookup=self.lookup, admission=self.admission, store=store, pool=pool,
            chunk_tokens=CHUNK_TOKENS, block_tokens=BLOCK_TOKENS, on_done=self.told.put_nowait, **options,
        )  # fmt: skip
        self.time = IdleTime(engine=self.engine, chores=[self.ahead], idle_s=0)

    @property
    def served(self) -> Served:
        served: Served = self.engine.served
        return served

    @property
    def model(self) -> ModelKey:
        return model_key(self.served, block_tokens=BLOCK_TOKENS)

    def request(self, *messages: Message, max_tokens: int = 40) -> Request:
        return Request(
            id=f"req_{next(_numbers)}", user="os:1", model="m", messages=messages,
            prompt_tokens=self.served.tokenizer.encode_chat(messages, {}), sampling=Sampling(max_tokens=max_tokens),
            options=CacheOptions(), publish=lambda event: None,
        )  # fmt: skip

    def find(self, request: Request, strategy: str = "per_user") -> Match:
        match = self.lookup.find(request, granted(strategy), self.model)
        match.give_kv(request)
        return match

    async def computed(self, request: Request) -> PromptKV:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[PromptKV | None] = loop.create_future()
        served = self.engine.served
        self.engine.submit(request, lambda _done, kv: loop.call_soon_threadsafe(ended.set_result, kv), served)
        kv = await soon(ended)
        assert request.state is RequestState.FINISHED
        assert kv is not None
        return kv

    async def answer(self, *messages: Message, strategy: str = "per_user") -> Request:
        """Compute an answer, store its prompt and note that the conversation may go on."""
        request = self.request(*messages)
        kv = await self.computed(request)
        assert self.admission.store_kv(request, granted(strategy), self.model, kv)
        self.turns.note(request, granted(strategy), self.served)
        return request

    def missing(self, turn: Turn) -> int:
        return sum(
            len(self.store.missing(PromptKeys.of(scope, self.model, turn.tokens).blocks)) for scope in turn.access.write
        )

    async def through(self) -> None:
        await soon(through(self.time, self.pool))


def granted(strategy: str = "per_user") -> Access:
    return access(strategy, user="os:1", allow_global="own")


def going_on(request: Request, question: str) -> tuple[Message, ...]:
    return (*request.messages, Message("assistant", request.answer), Message("user", question))


async def loaded(engine: EngineLoop) -> EngineLoop:
    """Any request waits for the model."""
    if engine.served is None:
        running, done = asyncio.get_running_loop(), asyncio.Event()
        probe = Request(
            id="probe", user="os:1", model="m", messages=(Message("user", "?"),), prompt_tokens=[1],
            sampling=Sampling(max_tokens=1), options=CacheOptions(), publish=lambda event: None,
        )  # fmt: skip
        engine.submit(probe, lambda _done, _kv: running.call_soon_threadsafe(done.set), None)
        await soon(done.wait())
    return engine


@pytest.mark.parametrize("strategy", ["per_user", "global_user", "global_only"])
async def test_the_next_turn_restores_prompt_and_answer_bit_for_bit(
    real: EngineLoop, store: Store, pool: ThreadPoolExecutor, strategy: str
) -> None:
    talk = Talk(await loaded(real), store, pool)
    first = await talk.answer(Message("system", "Be brief."), Message("user", "what is rain"), strategy=strategy)
    assert len(first.output_tokens) == 40
    talk.time.begin()
    turn = await soon(talk.told.get())
    await talk.through()
    assert talk.missing(turn) == 0
    assert store.missing([PromptKeys.of(granted(strategy).write[0], talk.model, turn.tokens).tail]), "no record of it"

    warm = talk.request(*going_on(first, "and snow?"))
    match = talk.find(warm, strategy)
    assert match.receipt.outcome is Outcome.PREFIX
    assert match.num_restored >= first.num_prompt_tokens + len(first.output_tokens) - CHUNK_TOKENS
    assert match.num_restored > first.num_prompt_tokens
    cold = talk.request(*going_on(first, "and snow?"))
    warm.num_stored = 0  # so that all of its KV is handed over
    warm_kv, cold_kv = await talk.computed(warm), await talk.computed(cold)
    assert torch.equal(warm_kv.logits, cold_kv.logits)
    assert warm.output_tokens == cold.output_tokens
    num = warm.num_prompt_tokens
    for name in ("keys", "values"):
        assert torch.equal(getattr(cut(warm_kv.spans, 0, num), name), getattr(cut(cold_kv.spans, 0, num), name))
    await talk.time.stop()


async def test_it_goes_piece_by_piece_and_an_interruption_loses_no_stored_piece(
    real: EngineLoop, store: Store, pool: ThreadPoolExecutor
) -> None:
    first = await Talk(await loaded(real), store, pool).answer(Message("user", "what is rain"))
    spoken, real_served = FakeLoop(), real.served
    spoken.served = real_served
    talk = Talk(spoken, store, pool, piece_tokens=CHUNK_TOKENS)
    talk.turns.note(first, granted(), talk.served)
    turn = talk.turns.next()
    assert turn is not None
    own = first.num_prompt_tokens // CHUNK_TOKENS * CHUNK_TOKENS
    stops = list(range(own + CHUNK_TOKENS, len(turn.tokens) + 1, CHUNK_TOKENS))
    assert len(stops) > 1
    for number, stop in enumerate(stops):
        talk.time.begin()
        if number == 1:  # somebody asks
            interrupted = await soon(spoken.submitted.get())
            talk.time.end()
            assert interrupted.state is RequestState.CANCELLED
            for _ in range(3):
                await drained(pool)
            assert talk.turns.next() is turn
            talk.time.begin()
        piece = await soon(spoken.submitted.get())
        assert (piece.num_prompt_tokens, piece.num_restored) == (stop, stop - CHUNK_TOKENS)
        assert piece.sampling.max_tokens == 1
        spoken.end(piece, kv=await real_kv(real, piece))
    assert await soon(talk.told.get()) is turn
    await talk.through()
    assert len(talk.turns) == 0
    assert talk.missing(turn) == 0
    await talk.time.stop()


async def real_kv(real: EngineLoop, piece: Request) -> PromptKV:
    again = Request(
        id=f"{piece.id}_again", user=piece.user, model="m", messages=piece.messages, prompt_tokens=piece.prompt_tokens,
        sampling=piece.sampling, options=piece.options, publish=lambda event: None, restored=piece.restored,
        num_restored=piece.num_restored,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[PromptKV | None] = loop.create_future()
    real.submit(again, lambda _done, kv: loop.call_soon_threadsafe(ended.set_result, kv), real.served)
    kv = await soon(ended)
    assert kv is not None
    return kv


class Letters:
    """One token for each letter, questions without any markup."""

    def encode_chat(self, messages: tuple[Message, ...], options: dict[str, str]) -> list[int]:
        return [ord(letter) for message in messages for letter in message.content]


def spoken(
    store: Store, pool: ThreadPoolExecutor, num: int = 1, answer: str = "water " * 8, **options: Any
) -> tuple[Talk, FakeLoop]:
    """A talk with `num` queued conversations over a loop that the test drives."""
    loop = FakeLoop()
    loop.served.tokenizer = Letters()
    talk = Talk(loop, store, pool, **options)
    for number in range(num):
        request = talk.request(Message("user", f"what is {number}"))
        request.state, request.answer = RequestState.FINISHED, answer
        request.output_tokens = list(request.answer.encode())
        assert talk.admission.store_kv(request, granted(), talk.model, made_up(request))
        talk.turns.note(request, granted(), talk.served)
    return talk, loop


async def test_interruptions_make_the_pieces_smaller_until_one_is_stored(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    talk, _ = spoken(store, pool, answer="water " * 60, piece_tokens=4 * CHUNK_TOKENS)
    turn = talk.turns.next()
    assert turn is not None
    sizes: list[int] = []

    def piece(state: RequestState) -> Compute:
        async def compute(request: Request) -> PromptKV | None:
            sizes.append((request.num_prompt_tokens - request.num_restored) // CHUNK_TOKENS)
            request.state = RequestState.WAITING
            request.end(state)
            return made_up(request) if state is RequestState.FINISHED else None

        return compute

    interrupted, finished = piece(RequestState.CANCELLED), piece(RequestState.FINISHED)
    for compute in (*[interrupted] * 4, *[finished] * 4, interrupted, interrupted, finished, finished):
        await talk.ahead.work(talk.served, compute)
    assert sizes == [4, 2, 1, 1, 1, 2, 4, 4, 4, 2, 1, 2]
    assert turn.num_done == 14 * CHUNK_TOKENS
    assert talk.turns.next() is turn


def made_up(request: Request) -> PromptKV:
    return PromptKV([span(request.prompt_tokens)], torch.arange(8.0), 1.0)


async def test_what_is_cleared_meanwhile_is_not_written_back(store: Store, pool: ThreadPoolExecutor) -> None:
    talk, loop = spoken(store, pool, num=2)
    talk.time.begin()
    request = await soon(loop.submitted.get())
    turn = talk.turns.next()
    assert turn is not None
    talk.turns.forget_scope("user:os:1")
    store.clear(user="os:1")
    loop.end(request, kv=made_up(request))
    await talk.through()
    assert talk.told.empty()
    assert store.tier_status()["disk"].used_bytes == 0
    assert talk.missing(turn) == len(turn.tokens) // BLOCK_TOKENS
    assert len(loop.requests) == 1
    await talk.time.stop()


async def test_what_is_stored_already_is_not_computed(store: Store, pool: ThreadPoolExecutor) -> None:
    talk, loop = spoken(store, pool)
    turn = talk.turns.next()
    assert turn is not None
    known = talk.request(Message("user", "".join(map(chr, turn.tokens))))
    assert talk.admission.store_kv(known, granted(), talk.model, made_up(known))
    talk.time.begin()
    await talk.through()
    assert (loop.requests, len(talk.turns)) == ([], 0)
    await talk.time.stop()


async def test_a_prefill_that_fails_keeps_no_other_waiting(
    store: Store, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    talk, loop = spoken(store, pool, num=3)
    talk.time.begin()
    loop.end(await soon(loop.submitted.get()), state=RequestState.FAILED)
    broken = await soon(loop.submitted.get())
    loop.end(broken, kv=PromptKV([], torch.arange(8.0), 1.0))
    last = await soon(loop.submitted.get())
    assert last.messages[-1].content == "what is 0"
    loop.end(last, kv=made_up(last))
    assert (await soon(talk.told.get())).messages == last.messages
    await talk.through()
    assert (len(loop.requests), len(talk.turns)) == (3, 0)
    assert [record.name for record in caplog.records] == ["semcache.ahead"]
    await talk.time.stop()


async def test_another_model_or_none_prefills_nothing(store: Store, pool: ThreadPoolExecutor) -> None:
    talk, loop = spoken(store, pool)
    loop.model = ModelState("unloaded")
    talk.time.begin()
    await talk.through()
    assert (loop.requests, len(talk.turns)) == ([], 1)
    loop.model = ModelState("ready")
    loop.served.info.fingerprint = "another"
    talk.time.begin()
    await talk.through()
    assert (loop.requests, len(talk.turns)) == ([], 0)
    await talk.time.stop()
