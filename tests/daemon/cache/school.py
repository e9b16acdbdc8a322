"""A small cache with the lessons of its requests, for what learns, audits and marks."""

from __future__ import annotations

from typing import Any

from semcache.daemon.cache.equivalence import text_equivalence
from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.identity import identify
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Match
from semcache.daemon.cache.marks import MarkedPairs
from semcache.daemon.cache.policy import ThresholdPolicy
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.request import Outcome, Request, RequestState
from semcache.store.decisions import Decision
from semcache.store.entries import Entry
from semcache.store.store import Store
from tests.daemon.cache.words import MODEL, Cache, asked, told


class School:
    """A cache whose policy serves by threshold, or learns, and the lessons of its requests."""

    def __init__(self, store: Store, *, learns: bool = False, audit_rate: float = 1.0, **options: Any) -> None:
        self.store = store
        self.policy = VerifiedPolicy(EvidenceBook(store.evidence), seed=1) if learns else None
        self.marks = MarkedPairs(store.evidence.load_negatives, store.evidence.add_negative)
        self.cache = Cache(
            store, self.policy or ThresholdPolicy(0.8, self.marks), marks=self.marks, **options.pop("lookup", {})
        )
        self.lessons = Lessons(
            store, self.policy, text_equivalence, marks=self.marks, audit_rate=audit_rate, seed=1, **options
        )
        self.num_asked = 0

    def hit(self, prompt: str, **changed: Any) -> tuple[Decision, Entry]:
        """Ask what is served from another wording; its recorded decision and the entry."""
        request, match = self.ask(prompt, **changed)
        assert match.receipt.outcome is Outcome.SEMANTIC
        self.lessons.served(request, match)
        (decision,) = self.decisions(request)
        entry = self.store.get_entry(decision.entry_id)
        assert entry is not None
        return decision, entry

    def ask(self, prompt: str, **changed: Any) -> tuple[Request, Match]:
        request = asked(prompt, **changed)
        self.num_asked += 1
        request.id = f"req_{self.num_asked}"
        return request, self.cache.find(request)

    def compute(self, prompt: str, text: str, finish_reason: str = "stop", **changed: Any) -> list[Decision]:
        """Ask, pretend that the engine answered, and give what was recorded of it."""
        request, match = self.ask(prompt, **changed)
        assert match.answer is None
        request.state, request.answer, request.finish_reason = RequestState.FINISHED, text, finish_reason
        self.lessons.computed(request, match)
        return self.decisions(request)

    def decisions(self, request: Request) -> list[Decision]:
        return self.store.decisions.of_request(request.id)

    def audit(
        self, decision: Decision, entry: Entry, text: str, finish_reason: str = "stop"
    ) -> tuple[bool, bool | None]:
        fresh = asked(decision.prompt, user=decision.user)
        fresh.state, fresh.answer, fresh.finish_reason = RequestState.FINISHED, text, finish_reason
        return self.lessons.audited(decision, entry, identify(MODEL.fingerprint, fresh), fresh)

    def now(self, decision: Decision) -> Decision:
        return next(d for d in self.store.decisions.of_request(decision.request_id) if d.number == decision.number)

    def outcome(self, prompt: str, **changed: Any) -> tuple[str, str]:
        return told(self.ask(prompt, **changed)[1])

    def labels(self) -> int:
        assert self.policy is not None
        return self.policy.status("user:os:1/ann").labels
