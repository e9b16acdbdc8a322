"""Audits happen while nobody asks, stop when somebody does, and none is lost, repeated or in the way of others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semcache.daemon.audits import Auditor
from semcache.daemon.cache.equivalence import judge_prompt
from semcache.daemon.idle import IdleTime
from semcache.daemon.live import Ask
from semcache.daemon.request import CacheOptions, Message, RequestState, Sampling
from semcache.daemon.served import ModelState
from semcache.errors import PromptTooLongError
from semcache.store.decisions import Decision
from semcache.store.entries import Entry
from semcache.store.store import Store
from tests.daemon.cache.school import School
from tests.daemon.cache.words import MODEL, asked, per_user
from tests.daemon.engine.conftest import load, save_model
from tests.daemon.idling import TIMEOUT_S, FakeLoop, drained, engine_loop, soon, through
from tests.daemon.serving import service_of


class Idle:
    """Idle time of an auditor over a small cache, with what it told."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.school, self.store, self.loop = School(store, **options), store, FakeLoop()
        self.pool = ThreadPoolExecutor(1)
        self.told: asyncio.Queue[tuple[Decision, bool | None]] = asyncio.Queue()
        engine: Any = self.loop
        auditor = Auditor(
            store=store, lessons=self.school.lessons, pool=self.pool,
            on_audited=lambda decision, same: self.told.put_nowait((decision, same)),
        )  # fmt: skip
        self.time = IdleTime(engine=engine, chores=[auditor], idle_s=0)

    def hit(self, thing: str = "rain", **changed: Any) -> tuple[Decision, Entry]:
        self.school.cache.answer(asked(f"what is {thing}", **changed), "water")
        return self.school.hit(f"so what is {thing}", **changed)

    async def through(self) -> None:
        """Until the auditor has found nothing more to do."""
        await through(self.time, self.pool)

    async def drained(self) -> None:
        """What was given to the pool before now is done, and the event loop has heard of it."""
        await drained(self.pool)


@pytest.fixture
async def idle(store: Store) -> AsyncIterator[Callable[..., Idle]]:
    made: list[Idle] = []

    def make(**options: Any) -> Idle:
        made.append(Idle(store, **options))
        return made[-1]

    yield make
    for one in made:
        await one.time.stop()
        one.pool.shutdown()


async def test_a_hit_is_audited_when_nobody_asks(idle: Callable[..., Idle], store: Store) -> None:
    one = idle()
    decision, entry = one.hit()
    one.time.begin()
    request = await soon(one.loop.submitted.get())
    assert (request.user, request.last_user_message) == (decision.user, "so what is rain")
    assert request.options.no_store
    assert not request.options.mode.allows_semantic
    assert request.donor is not None
    assert request.donor.tokens == entry.answer_tokens
    one.loop.end(request, "water")
    told, same = await soon(one.told.get())
    assert (told.request_id, same) == (decision.request_id, True)
    await soon(one.through())
    assert store.decisions.num_due() == 0
    assert len(store.aliases.of(entry.id)) == 1
    assert one.school.outcome("so what is rain") == ("exact", "alias")


async def test_nothing_begins_while_somebody_asks(idle: Callable[..., Idle]) -> None:
    one = idle()
    one.hit()
    one.time.begin()
    one.time.end()
    for _ in range(5):
        await one.drained()
    assert one.loop.requests == []
    one.time.begin()
    assert (await soon(one.loop.submitted.get())).last_user_message == "so what is rain"


async def test_who_asks_interrupts_an_audit_and_it_stays_due(idle: Callable[..., Idle], store: Store) -> None:
    one = idle()
    decision, _ = one.hit()
    one.time.begin()
    first = await soon(one.loop.submitted.get())
    one.time.end()
    assert first.state is RequestState.CANCELLED
    await one.drained()
    assert store.decisions.num_due() == 1
    assert one.told.empty()
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), "water")
    assert (await soon(one.told.get()))[0].request_id == decision.request_id
    await soon(one.through())
    assert len(one.loop.requests) == 2
    assert store.decisions.wrong_hits() == (1, 0)


async def test_who_asks_while_the_pool_is_at_work_is_not_kept_waiting(idle: Callable[..., Idle], store: Store) -> None:
    one, gate = idle(), threading.Event()
    one.hit()
    blocked = asyncio.get_running_loop().run_in_executor(one.pool, gate.wait, TIMEOUT_S)
    one.time.begin()
    while one.pool._work_queue.empty():
        await asyncio.sleep(0)
    one.time.end()
    gate.set()
    assert await soon(blocked)
    for _ in range(4):
        await one.drained()
    assert all(request.state is RequestState.CANCELLED for request in one.loop.requests)
    assert store.decisions.num_due() == 1
    one.time.begin()
    while (request := await soon(one.loop.submitted.get())).state is RequestState.CANCELLED:
        pass
    one.loop.end(request, "water")
    assert (await soon(one.told.get()))[1] is True


async def test_what_cannot_be_audited_is_closed_and_keeps_no_other_waiting(
    idle: Callable[..., Idle], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    one = idle()
    _, gone = one.hit("rain")
    _, odd = one.hit("snow")
    _, other_model = one.hit("hail")
    last, _ = one.hit("fog")
    store.delete_entries([gone.id])
    for entry, changes in ((odd, {"sampling": {"unknown": 1}}), (other_model, {"context_key": "template options"})):
        store.put_entry(replace(entry, **changes))
    assert store.decisions.num_due() == 4
    one.time.begin()
    request = await soon(one.loop.submitted.get())
    assert request.last_user_message == "so what is fog"
    one.loop.end(request, "water")
    assert (await soon(one.told.get()))[0].request_id == last.request_id
    await soon(one.through())
    assert store.decisions.num_due() == 0
    assert store.decisions.wrong_hits() == (1, 0)
    assert [record.name for record in caplog.records] == ["semcache.audits"]


async def test_an_audit_that_fails_is_not_tried_for_ever(idle: Callable[..., Idle], store: Store) -> None:
    one = idle()
    decision, _ = one.hit()
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), state=RequestState.FAILED)
    await soon(one.through())
    assert store.decisions.num_due() == 0
    assert one.school.now(decision).label is None


async def test_a_machine_that_refuses_to_write_is_not_asked_again_at_once(
    idle: Callable[..., Idle], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = idle()
    one.hit()
    with monkeypatch.context() as refusing:
        refusing.setattr(store.decisions, "_change", lambda *_: False)
        one.time.begin()
        one.loop.end(await soon(one.loop.submitted.get()), "water")
        await soon(one.through())
    assert len(one.loop.requests) == 1
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), "water")
    assert (await soon(one.told.get()))[1] is None
    assert (await soon(one.told.get()))[1] is True


@pytest.mark.parametrize("state", ["unloaded", "loading", "failed"])
async def test_auditing_never_wakes_the_model(idle: Callable[..., Idle], store: Store, state: Any) -> None:
    one = idle()
    one.hit()
    one.loop.model = ModelState(state)
    one.time.begin()
    await soon(one.through())
    assert one.loop.requests == []
    assert store.decisions.num_due() == 1


@pytest.mark.parametrize(("reply", "label"), [("Yes.", True), ("**No**, they differ", False), ("Perhaps", None)])
async def test_the_judge_is_asked_after_the_audits(
    idle: Callable[..., Idle], store: Store, reply: str, label: bool | None
) -> None:
    one = idle(asks_judge=True)
    decision, _ = one.hit()
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), "it is made of water")
    judge = await soon(one.loop.submitted.get())
    assert judge.last_user_message == judge_prompt("so what is rain", "it is made of water", "water")
    assert (judge.user, judge.sampling.is_greedy, judge.options.no_store) == (decision.user, True, True)
    one.loop.end(judge, reply)
    await soon(one.through())
    assert one.school.now(decision).label is label
    assert one.school.lessons.num_open == 0
    assert store.decisions.num_due() == 0
    assert threading.get_ident() not in one.loop.served.tokenizer.threads, "the event loop leaves that to the pool"


async def test_an_interrupted_judge_is_asked_again(idle: Callable[..., Idle]) -> None:
    one = idle(asks_judge=True)
    decision, _ = one.hit()
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), "it is made of water")
    await soon(one.loop.submitted.get())
    one.time.end()
    await one.drained()
    assert one.school.lessons.num_open == 1
    one.time.begin()
    one.loop.end(await soon(one.loop.submitted.get()), "yes")
    await soon(one.through())
    assert one.school.now(decision).label is True


def ask(prompt: str) -> Ask:
    return Ask("os:1/ann", (Message("user", prompt),), Sampling(max_tokens=8), CacheOptions())


async def test_a_question_that_is_refused_does_not_end_the_audits(idle: Callable[..., Idle]) -> None:
    one = idle()
    one.hit()
    service = service_of(one.school, one.loop, one.pool, idle=one.time)
    one.time.begin()
    audit = await soon(one.loop.submitted.get())
    with pytest.raises(PromptTooLongError):
        await service.start(ask("x" * 1000))
    assert audit.state is RequestState.WAITING
    one.loop.end(audit, "water")
    assert (await soon(one.told.get()))[1] is True
    one.hit("snow")
    with pytest.raises(PromptTooLongError):
        await service.start(ask("x" * 1000))
    one.time.begin()
    assert (await soon(one.loop.submitted.get())).last_user_message == "so what is snow"


async def test_an_audit_that_began_while_a_question_was_read_makes_room(idle: Callable[..., Idle]) -> None:
    """The last request ends, so nobody seems to ask, while the next one is still being tokenised."""
    one, running = idle(), asyncio.get_running_loop()
    tokenizer = one.loop.served.tokenizer
    tokenizer.slow = "what is hail"
    one.hit()
    with ThreadPoolExecutor(2) as pool:
        service = service_of(one.school, one.loop, pool, idle=one.time)
        first = await soon(service.start(ask("what is snow")))
        computing = await soon(one.loop.submitted.get())
        starting = asyncio.create_task(service.start(ask("what is hail")))
        assert await soon(running.run_in_executor(None, tokenizer.is_at_it.wait, TIMEOUT_S))
        one.loop.end(computing, "white")
        await soon(first.task)
        audit = await soon(one.loop.submitted.get())
        assert audit.last_user_message == "so what is rain"
        tokenizer.gate.set()
        second = await soon(starting)
        assert audit.state is RequestState.CANCELLED
        one.loop.end(await soon(one.loop.submitted.get()), "ice")
        await soon(second.task)
        assert second.request.state is RequestState.FINISHED
        await soon(service.drain(TIMEOUT_S))
    assert one.store.decisions.num_due() == 1


async def test_a_real_engine_says_the_same_again(store: Store, tmp_path: Path) -> None:
    loaded = load(save_model(tmp_path / "llama"))
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[bool | None] = asyncio.Queue()
    with ThreadPoolExecutor(2) as pool, engine_loop(loaded, chunk_tokens=16) as engine:
        sampling = Sampling(max_tokens=24)
        fresh = asked("so what is rain", tokens=loaded.tokenizer.encode_chat(asked("so what is rain").messages))
        fresh.sampling, ended = replace(sampling, stop=()), loop.create_future()

        def hand_over(*_: object) -> None:
            loop.call_soon_threadsafe(ended.set_result, None)

        engine.submit(fresh, hand_over, engine.served)
        await soon(ended)
        stop = fresh.answer[-4:]
        sampling = replace(sampling, stop=(stop,))
        school = School(store)
        own = asked("what is rain", sampling=sampling)
        text = fresh.answer[: fresh.answer.index(stop)]
        model = replace(MODEL, fingerprint=loaded.info.fingerprint)
        entry = school.cache.answer(own, text, tokens=fresh.output_tokens, model=model)
        request = asked("so what is rain", sampling=sampling)
        match = school.cache.lookup.find(request, per_user(request), model)
        school.lessons.served(request, match)
        auditor = Auditor(
            store=store, lessons=school.lessons, pool=pool,
            on_audited=lambda _decision, same: told.put_nowait(same),
        )  # fmt: skip
        time = IdleTime(engine=engine, chores=[auditor], idle_s=0)
        time.begin()
        assert await soon(told.get()) is True
        assert [alias.prompt for alias in store.aliases.of(entry.id)] == ["so what is rain"]
        await time.stop()
