"""An engine loop whose requests end when a test says so, and idle time over it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.idle import IdleTime
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import Message, Request, RequestState
from semcache.daemon.served import ModelState, Served
from semcache.errors import SemcacheError
from semcache.store.tensors import KVSpan
from tests.daemon.cache.words import MODEL
from tests.daemon.engine.conftest import CHUNK_TOKENS

TIMEOUT_S = 60
T = TypeVar("T")


class Bytes:
    """One token for each byte of the last message; takes its time where it is told to."""

    def __init__(self) -> None:
        self.slow = ""
        self.threads: set[int] = set()  # that encoded anything
        self.is_at_it, self.gate = threading.Event(), threading.Event()

    def encode_text(self, text: str) -> list[int]:
        self.threads.add(threading.get_ident())
        return list(text.encode())

    def encode_chat(self, messages: tuple[Message, ...], options: dict[str, str]) -> list[int]:
        self.threads.add(threading.get_ident())
        if messages[-1].content == self.slow:
            self.is_at_it.set()
            assert self.gate.wait(TIMEOUT_S)
        return list(messages[-1].content.encode())


class FakeLoop:
    """Takes requests as the engine's loop does; the test decides when and how they end."""

    def __init__(self) -> None:
        self.model = ModelState("ready")
        info = SimpleNamespace(
            name="m", folder_id="m-1", context_tokens=1000, fingerprint=MODEL.fingerprint, kv_bytes_per_token=128,
            vocab_size=8,
        )  # fmt: skip
        self.served: Any = SimpleNamespace(
            info=info, tokenizer=Bytes(), numerics=MODEL.numerics, cuts=Cuts(CHUNK_TOKENS, CHUNK_TOKENS)
        )
        self.num_waiting = 0
        self.submitted: asyncio.Queue[Request] = asyncio.Queue()
        self.requests: list[Request] = []
        self._hand_over: dict[str, Callable[[Request, PromptKV | None], None]] = {}

    def submit(
        self, request: Request, hand_over: Callable[[Request, PromptKV | None], None], served: Served | None
    ) -> None:
        self._hand_over[request.id] = hand_over
        request.state = RequestState.WAITING
        self.requests.append(request)
        self.submitted.put_nowait(request)

    def bring(self, request: Request, span: KVSpan | None) -> None:
        """Whatever comes is taken at once."""
        if span is None:
            request.on_arrived()

    def give_slot(self, request: Request) -> None:
        """As the engine's thread does."""
        thread = threading.Thread(target=request.on_slot)
        thread.start()
        thread.join()

    def cancel(self, request: Request, error: SemcacheError | None = None) -> None:
        self.end(request, state=RequestState.CANCELLED)

    def end(
        self, request: Request, text: str = "", *, state: RequestState = RequestState.FINISHED,
        kv: PromptKV | None = None,
    ) -> None:  # fmt: skip
        """From any thread, as the engine's."""
        request.answer, request.finish_reason = text, "stop"
        request.end(state)
        hand_over = self._hand_over.pop(request.id)
        thread = threading.Thread(target=hand_over, args=(request, kv))
        thread.start()
        thread.join()


async def soon(waiting: Awaitable[T]) -> T:
    async with asyncio.timeout(TIMEOUT_S):
        return await waiting


async def through(time: IdleTime, pool: ThreadPoolExecutor) -> None:
    """Until the chores have found nothing more to do."""
    while time._idle.is_set():
        await drained(pool)


async def drained(pool: ThreadPoolExecutor) -> None:
    """What was given to the pool before now is done, and the event loop has heard of it."""
    await asyncio.get_running_loop().run_in_executor(pool, lambda: None)


@contextmanager
def engine_loop(loaded: LoadedModel, *, chunk_tokens: int) -> Iterator[EngineLoop]:
    """A real engine on its thread; it is loaded when it first serves."""
    engine = EngineLoop(lambda _progress: Engine(loaded, num_slots=1, prefill_chunk_tokens=chunk_tokens))
    engine.start()
    engine.load()
    try:
        yield engine
    finally:
        engine.stop(TIMEOUT_S)
