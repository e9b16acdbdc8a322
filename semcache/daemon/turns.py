"""Finished conversations whose next turn could begin with more KV than is stored: a short queue, newest first.

In `bitwise` only KV that a prefill computed may be reused, and an answer's KV came from decoding. So what the next
turn's prompt will begin with is worked out here, and prefilled once nobody asks. In `rounding` the answer's own KV is
reused and nothing is queued. Thread-safe; blocking, for the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from semcache.config import Exactness
from semcache.daemon.cache.admit import wants_storing
from semcache.daemon.cache.strategy import Access, is_within
from semcache.daemon.request import Message, Request, RequestState
from semcache.daemon.served import Served
from semcache.errors import UsageError

MAX_TURNS = 64
# Templates put fewer tokens than this between an answer and the next question; more would only be overlooked.
_MARKUP_TOKENS = 64
# Two questions that begin differently: what their prompts share does not depend on the question.
_QUESTIONS = ("a", "1")


@dataclass(eq=False)
class Turn:
    """A conversation that may go on, as the tokens that its next turn begins with: full chunks only."""

    request_id: str
    user: str
    messages: tuple[Message, ...]
    access: Access
    fingerprint: str
    tokens: list[int]
    num_done: int = 0  # leading tokens whose KV is stored


class Turns:
    """At most `max_turns` conversations; the oldest gives way. None where answers' own KV is reused."""

    def __init__(self, *, chunk_tokens: int, exactness: Exactness = "bitwise", max_turns: int = MAX_TURNS) -> None:
        self._is_needed = exactness == "bitwise"
        self._chunk = chunk_tokens
        self._max = max_turns
        self._queue: list[Turn] = []  # oldest first
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._queue)

    def concerns(self, request: Request, access: Access) -> bool:
        """Whether a finished request may be worth a `note`; cheap, for any thread.

        Not where neither the answer nor the markup behind it can reach the next chunk boundary.
        """
        if not self._is_needed or request.state is not RequestState.FINISHED:
            return False
        if not access.write or not wants_storing(request):
            return False
        num_prompt, num_answer = request.num_prompt_tokens, len(request.output_tokens)
        may_have = num_prompt + num_answer + _MARKUP_TOKENS
        return num_answer > 0 and may_have // self._chunk > num_prompt // self._chunk

    def note(self, request: Request, access: Access, served: Served) -> None:
        """Queue a conversation if its next turn begins with more full chunks than its prompt has, which are stored."""
        if not self.concerns(request, access):
            return
        tokens = next_turn(request, served)
        # A prompt that fills the context leaves no token to answer with.
        num_usable = min(len(tokens), served.info.context_tokens - 1) // self._chunk * self._chunk
        if num_usable <= request.num_prompt_tokens // self._chunk * self._chunk:
            return
        turn = Turn(request.id, request.user, request.messages, access, served.info.fingerprint, tokens[:num_usable])
        with self._lock:
            kept = [other for other in self._queue if not _covers(turn, other)]
            self._queue = [*kept, turn][-self._max :]

    def next(self) -> Turn | None:
        """The newest; it stays queued until it is dropped."""
        with self._lock:
            return self._queue[-1] if self._queue else None

    def drop(self, turn: Turn) -> None:
        with self._lock:
            self._queue = [other for other in self._queue if other is not turn]

    def keep(self, turn: Turn, store: Callable[[], bool]) -> bool:
        """Run `store` unless the turn was dropped; no scope is forgotten meanwhile. False where nothing was stored."""
        with self._lock:
            return turn in self._queue and store()

    def forget_scope(self, scope: str) -> None:
        """Drop what would be written into the scope or its namespaces; what is just being written is waited for."""
        with self._lock:
            self._queue = [turn for turn in self._queue if not _writes(turn, scope)]

    def forget_conversation(self, scope: str, messages: Sequence[tuple[str, str]]) -> None:
        """Drop what would be written into the scope of conversations that begin with these (role, content)."""
        begin = tuple(Message(role, content) for role, content in messages)
        with self._lock:
            self._queue = [
                turn for turn in self._queue if not (_writes(turn, scope) and turn.messages[: len(begin)] == begin)
            ]


def next_turn(request: Request, served: Served) -> list[int]:
    """The tokens that every further question after this answer begins with; empty where there is no next turn.

    Found by asking two questions, so it holds for every template: those that fold the system text into a user's
    message, drop earlier reasoning, or refuse the conversation.
    """
    encode, options = served.tokenizer.encode_chat, dict(request.template_options)
    conversation = (*request.messages, Message("assistant", request.answer))
    try:
        if encode(request.messages, options) != list(request.prompt_tokens):
            return []  # a raw prompt, or another template by now: nobody goes on with it as a conversation
        first, second = (encode((*conversation, Message("user", text)), options) for text in _QUESTIONS)
    except UsageError:
        return []  # the template refuses it
    num_shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return first[:num_shared]


def _covers(turn: Turn, other: Turn) -> bool:
    """Whether `other` has nothing that `turn` has not: an earlier turn of the conversation, or the same one."""
    if (turn.access, turn.fingerprint) != (other.access, other.fingerprint):
        return False
    return turn.tokens[: len(other.tokens)] == other.tokens


def _writes(turn: Turn, scope: str) -> bool:
    return any(is_within(written.name, scope) for written in turn.access.write)
