"""Why an answer was reused and how far that can be trusted, for people: explanations, audits, feedback, other budgets.

Shapes of the wire; all of it blocking, for the pool. A caller sees its own sub-users and the global scope it shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from semcache.config import Config
from semcache.daemon.cache.embedder import Embedder
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Match
from semcache.daemon.cache.policy import Considered
from semcache.daemon.cache.status import ScopeStatus
from semcache.daemon.cache.strategy import access, global_scope, principal_of, user_scope
from semcache.daemon.cache.tune import replay
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.receipts import candidate_row, iso, owner_of, scope_kind, wrong_hits
from semcache.daemon.request import Outcome, Request
from semcache.errors import NotFoundError, UsageError
from semcache.store.decisions import Decision
from semcache.store.store import Store
from semcache.wire.entries import FoundEntry
from semcache.wire.receipts import CandidateRow
from semcache.wire.trust import (
    AUDIT_SCHEMA,
    EXPLAIN_SCHEMA,
    TUNE_SCHEMA,
    AuditReport,
    AuditRow,
    Budgets,
    Explanation,
    FeedbackResult,
    ScopeEvidence,
    TuneReport,
    TuneRow,
)

_MAX_TUNED = 50_000


class Trust:
    """Reads and labels recorded decisions."""

    def __init__(
        self, *, config: Config, store: Store, policy: VerifiedPolicy | None, lessons: Lessons, library: Library,
        journal: Journal,
    ) -> None:  # fmt: skip
        self._config = config
        self._store = store
        self._policy = policy
        self._lessons = lessons
        self._library = library
        self._journal = journal

    # Explanations

    def explanation(self, request: Request, match: Match) -> Explanation:
        """What would be done with a request that was only looked up."""
        receipt = match.receipt
        drafts = bool(match.donors)
        considered = match.verdict.considered if match.verdict is not None else ()
        return {
            **self._settings(request.last_user_message, request.user, request.options.strategy),
            "outcome": receipt.outcome.value if not drafts else Outcome.DRAFT.value,
            "reason": receipt.reason,
            "candidates": [candidate_row(item, served=_is_served(match, item)) for item in considered],
            "donor": match.donors[0].entry.id if match.donors else None,
            "prefix_tokens": receipt.prefix_tokens,
            "evidence": self._evidence(self._scopes_of(request)),
        }

    def explained(self, caller: str, request_id: str) -> Explanation:
        """What was considered for a past request of the caller."""
        request = self._journal.request(request_id)
        if request is not None and principal_of(request.user) == caller and request.receipt is not None:
            receipt = request.receipt
            is_semantic = receipt.outcome is Outcome.SEMANTIC
            return {
                **self._settings(request.last_user_message, request.user, request.options.strategy),
                "outcome": receipt.outcome.value,
                "reason": receipt.reason,
                "candidates": [
                    candidate_row(item, served=is_semantic and item.candidate.entry_id == receipt.entry_id)
                    for item in request.considered
                ],
                "donor": receipt.entry_id if request.donor is not None else None,
                "prefix_tokens": receipt.prefix_tokens,
                "evidence": self._evidence(self._scopes_of(request)),
            }
        recorded = [d for d in self._store.decisions.of_request(request_id) if principal_of(d.user) == caller]
        if not recorded:
            raise NotFoundError(
                f"nothing is known of request {request_id!r}; `semcache top` shows recent ones", param="id"
            )
        first = recorded[0]
        served = any(d.served for d in recorded)
        return {
            **self._settings(first.prompt, first.user, self._config.cache.strategy),
            "outcome": Outcome.SEMANTIC.value if served else Outcome.MISS.value,
            "reason": first.reason,
            "candidates": [self._recorded_row(decision) for decision in recorded],
            "donor": None,
            "prefix_tokens": 0,
            "evidence": self._evidence(sorted({d.scope for d in recorded})),
        }

    def _settings(self, prompt: str, user: str, strategy: str) -> Explanation:
        semantic = self._config.semantic
        return {
            "schema": EXPLAIN_SCHEMA, "prompt": prompt, "user": user, "strategy": strategy,
            "policy": semantic.policy, "max_error": semantic.max_error, "max_hit_error": semantic.max_hit_error,
            "threshold": semantic.threshold, "outcome": "", "reason": "", "candidates": [], "donor": None,
            "prefix_tokens": 0, "evidence": [],
        }  # fmt: skip

    def _scopes_of(self, request: Request) -> list[str]:
        granted = access(
            request.options.strategy, user=request.user, allow_global=self._config.cache.allow_global,
            namespace=request.options.namespace,
        )  # fmt: skip
        return [scope.name for scope in granted.read]

    def _recorded_row(self, decision: Decision) -> CandidateRow:
        entry = self._store.get_entry(decision.entry_id) if decision.entry_id else None
        return {
            "entry": decision.entry_id or "", "scope": scope_kind(decision.scope),
            "prompt": decision.matched_prompt or "", "answer": entry.answer if entry is not None else "",
            "score": round(decision.score, 4), "features": dict(decision.features), "p_correct": decision.p_correct,
            "verdict": "served" if decision.served else "refused", "reason": decision.reason,
        }  # fmt: skip

    def near(self, user: str, text: str, limit: int, embedder: Embedder | None) -> list[FoundEntry]:
        """Stored prompts nearest to a text, in the user's scope and the shared one."""
        if embedder is None:
            raise UsageError(
                "semantic search is off: there is no embedder (`semcache daemon status` says why)", param="near"
            )
        allow_global = self._config.cache.allow_global
        scopes = [user_scope(user).name]
        if allow_global != "off":
            scopes.append(global_scope(user, allow_global).name)
        vector = embedder.embed(text)
        found = [
            (score, entry)
            for scope in scopes
            for entry, score in self._store.nearest(scope, vector, limit, None, embedder=embedder.name)
        ]
        found.sort(key=lambda pair: -pair[0])
        return [{**self._library.summary(entry), "score": round(score, 4)} for score, entry in found[:limit]]

    # Audits

    def audits(self, caller: str) -> AuditReport:
        users = self._library.users_of(caller)
        recent = self._store.decisions.recent(users=users, limit=50, labelled=True)
        semantic = self._config.semantic
        return {
            "schema": AUDIT_SCHEMA, "policy": semantic.policy, "equivalence": semantic.equivalence,
            "audit_rate": semantic.audit_rate, "due": self._store.decisions.num_due(),
            "scopes": self._evidence(self._scopes(caller)), "recent": [_audit_row(decision) for decision in recent],
        }  # fmt: skip

    def _scopes(self, caller: str) -> list[str]:
        names = [user_scope(user).name for user in self._library.users_of(caller)]
        if self._config.cache.allow_global != "off":
            names.append(global_scope(caller, self._config.cache.allow_global).name)
        return names

    def _evidence(self, scopes: Iterable[str]) -> list[ScopeEvidence]:
        rows = []
        for scope in scopes:
            if self._policy is not None:
                rows.append(_scope_row(scope, self._policy.status(scope)))
            else:
                num_audits, num_wrong = self._store.decisions.wrong_hits(scopes=[scope])
                rows.append(_measured_row(scope, num_audits, num_wrong, self._config.semantic.threshold))
        return [row for row in rows if row["requests"] or row["labels"] or row["audits"]]

    # Feedback

    def feedback(self, caller: str, marked_id: str, verdict: str) -> FeedbackResult:
        """Label the semantic hit of a request, or remove an entry whose answer is wrong in itself."""
        if marked_id.startswith("req_"):
            return self._mark_request(caller, marked_id, verdict)
        if verdict == "wrong":
            self._library.remove(caller, marked_id)
        else:
            self._library.entry(caller, marked_id)
        return {"request": None, "entry": marked_id, "verdict": verdict, "removed": verdict == "wrong",
                "negative_pair": False}  # fmt: skip

    def _mark_request(self, caller: str, request_id: str, verdict: str) -> FeedbackResult:
        mine = [d for d in self._store.decisions.of_request(request_id) if principal_of(d.user) == caller]
        decision = next((d for d in mine if d.served), None)
        if decision is not None and decision.entry_id is not None:
            entry = self._store.get_entry(decision.entry_id)
            if entry is None:
                raise _gone(request_id)
            left = self._lessons.marked(decision, entry, verdict == "right")
            return {"request": request_id, "entry": entry.id, "verdict": verdict, "removed": False,
                    "negative_pair": left}  # fmt: skip
        request = self._journal.request(request_id)
        receipt = request.receipt if request is not None and principal_of(request.user) == caller else None
        if request is None or receipt is None:
            raise NotFoundError(f"no semantic hit is known of request {request_id!r}", param="id")
        if request.options.no_store and (receipt.outcome is Outcome.SEMANTIC or receipt.reason == "alias"):
            raise UsageError(
                f"request {request_id!r} was asked with no-store, so nothing about its wording can be kept; "
                f"`semcache cache rm {receipt.entry_id}` removes the answer that served it",
                param="id",
            )
        if receipt.reason == "alias" and receipt.entry_id is not None and verdict == "wrong":
            if not self._lessons.unaliased(request, receipt.entry_id):
                raise _gone(request_id)
            return {"request": request_id, "entry": receipt.entry_id, "verdict": verdict, "removed": False,
                    "negative_pair": True}  # fmt: skip
        if receipt.outcome.is_answer_hit and receipt.entry_id is not None:
            return {**self.feedback(caller, receipt.entry_id, verdict), "request": request_id}
        raise UsageError(
            f"request {request_id!r} was computed ({receipt.outcome}), so no hit can be marked", param="id"
        )

    # Other budgets

    def tune(self, caller: str, max_error: Sequence[float], max_hit_error: Sequence[float]) -> TuneReport:
        """What every pair of budgets would have served of the caller's recorded requests; changes nothing."""
        recorded = self._store.decisions.recent(users=self._library.users_of(caller), limit=_MAX_TUNED)
        recorded.reverse()  # in the order in which they were taken
        rows: list[TuneRow] = []
        for error in max_error:
            for hit_error in max_hit_error:
                outcome = replay(
                    recorded, max_error=error, max_hit_error=hit_error, audit_rate=self._config.semantic.audit_rate
                )
                rows.append({
                    "max_error": error, "max_hit_error": hit_error, "requests": outcome.requests,
                    "labelled": outcome.labelled, "served": outcome.served,
                    "share": outcome.served / outcome.requests if outcome.requests else 0.0, "wrong": outcome.wrong,
                    "rate": outcome.rate, "ci95": outcome.ci95, "words": outcome.words,
                })  # fmt: skip
        semantic = self._config.semantic
        current: Budgets = {"max_error": semantic.max_error, "max_hit_error": semantic.max_hit_error}
        return {"schema": TUNE_SCHEMA, "current": current, "rows": rows}


def _gone(request_id: str) -> NotFoundError:
    return NotFoundError(f"the entry that served {request_id!r} is gone already", param="id")


def _is_served(match: Match, item: Considered) -> bool:
    return (
        match.answer is not None
        and match.receipt.outcome is Outcome.SEMANTIC
        and (item.candidate.entry_id == match.answer.id)
    )


def _scope_row(scope: str, status: ScopeStatus) -> ScopeEvidence:
    return {
        "scope": scope_kind(scope), "user": _user(scope), "state": status.state, "requests": status.requests,
        "labels": status.labels, "served": status.served, "audits": status.audits, "wrong": status.wrong,
        "rate": status.rate, "ci95": status.ci95, "threshold": status.threshold, "words": status.words,
    }  # fmt: skip


def _measured_row(scope: str, audits: int, wrong: int, threshold: float) -> ScopeEvidence:
    return {
        "scope": scope_kind(scope), "user": _user(scope), "state": "serving", "requests": 0, "labels": 0,
        "served": 0, "threshold": threshold, "words": "a fixed threshold: measured, not bounded",
        **wrong_hits(audits, wrong),
    }  # fmt: skip


def _user(scope: str) -> str | None:
    return owner_of(scope) if scope.startswith("user:") else None


def _audit_row(decision: Decision) -> AuditRow:
    return {
        "request": decision.request_id, "at": iso(decision.at), "user": decision.user,
        "entry": decision.entry_id or "", "prompt": decision.prompt, "matched_prompt": decision.matched_prompt or "",
        "score": round(decision.score, 4), "p_correct": decision.p_correct, "served": decision.served,
        "same": decision.label, "source": decision.source,
    }  # fmt: skip
