"""What answers teach about the policy: decisions are recorded, compared with what the model itself says, and labelled.

A request that wants nothing stored teaches nothing. Knows no engine: somebody else computes, this file compares. On
pool threads.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from semcache.daemon.cache.equivalence import Equivalence
from semcache.daemon.cache.identity import Identity, identify
from semcache.daemon.cache.lookup import Match
from semcache.daemon.cache.marks import MarkedPairs
from semcache.daemon.cache.policy import Candidate, Considered
from semcache.daemon.cache.strategy import is_within
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.request import Outcome, Request, RequestState
from semcache.errors import StoreError
from semcache.store.aliases import Alias
from semcache.store.decisions import Decision, Source
from semcache.store.entries import Entry
from semcache.store.store import Store

# Every semantic hit of a scope is audited until it has this many; a 2 % budget at 95 % needs about as many clean ones.
FIRST_AUDITS = 150
# Candidates farther than this teach nothing about serving and are not recorded.
MIN_RECORDED_SCORE = 0.6
MAX_RECORDED = 3
_MAX_OPEN = 256


@dataclass(frozen=True)
class OpenQuestion:
    """Two answers that the text leaves open; a judge may close it."""

    request_id: str
    user: str
    prompt: str
    answer: str
    considered: Considered
    served: bool
    regret: float | None


class Lessons:
    """One for the daemon; `policy` is None where the configured policy does not learn."""

    def __init__(
        self, store: Store, policy: VerifiedPolicy | None, equivalence: Equivalence, *, marks: MarkedPairs,
        audit_rate: float,
        asks_judge: bool = False, clock: Callable[[], float] = time.time, seed: int | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._policy = policy
        self._equivalent = equivalence
        self._marks = marks
        self._audit_rate = audit_rate
        self._asks_judge = asks_judge
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._lock = Lock()
        self._open: deque[OpenQuestion] = deque(maxlen=_MAX_OPEN)
        self._asked: OpenQuestion | None = None  # what the judge has now

    # What requests teach

    def served(self, request: Request, match: Match) -> None:
        """Record a semantic hit and whether it is to be audited."""
        verdict = match.verdict
        if request.options.no_store or match.receipt.outcome is not Outcome.SEMANTIC:
            return
        if verdict is None or verdict.candidate is None:
            return
        chosen = next(item for item in verdict.considered if item.candidate == verdict.candidate)
        wanted = verdict.audit or (self._policy is None and self._samples(chosen.candidate.scope))
        audit = wanted and request.sampling.is_repeatable  # asked again, chance would answer otherwise
        self._store.decisions.record([_decision(request, chosen, self._clock(), served=True, audit=audit)])

    def computed(self, request: Request, match: Match) -> None:
        """Compare the model's own answer with those of the candidates that were not served."""
        verdict = match.verdict
        is_whole = request.state is RequestState.FINISHED and request.finish_reason == "stop"
        if request.options.no_store or verdict is None or not is_whole or not request.sampling.is_repeatable:
            return
        near = [item for item in verdict.considered if item.chosen or item.candidate.score >= MIN_RECORDED_SCORE]
        near = sorted(near, key=lambda item: not item.chosen)[:MAX_RECORDED]  # the chosen one is recorded first
        rows, questions = [], []
        for item in near:
            is_donor = bool(match.donors) and match.donors[0].entry.id == item.candidate.entry_id
            regret = request.donor_regret if is_donor else None
            same = self._equivalent(request.answer, item.candidate.answer)
            source: Source = "draft" if is_donor and same and request.num_draft_accepted else "equivalence"
            rows.append(_decision(request, item, self._clock(), same=same, source=None if same is None else source))
            if same is not None:
                self._learn(request.last_user_message, item, same, source, served=False, regret=regret)
            else:
                questions.append(_question(request, item, regret))
        self._store.decisions.record(rows)
        self._ask(questions)
        self._flush({item.candidate.scope for item in near})

    # What audits teach

    def audited(self, decision: Decision, entry: Entry, identity: Identity, fresh: Request) -> tuple[bool, bool | None]:
        """Compare a served answer with what the model says now.

        Returns whether that could be recorded, and the label: None where it cannot be decided.
        """
        considered = considered_of(decision, entry)
        same = self._equivalent(fresh.answer, entry.answer) if fresh.finish_reason == "stop" else None
        if same is None:
            closed = self._store.decisions.close_audit(decision.request_id, entry.id)
            if fresh.finish_reason == "stop":
                question = OpenQuestion(
                    decision.request_id, decision.user, decision.prompt, fresh.answer, considered, True,
                    fresh.donor_regret,
                )  # fmt: skip
                self._ask([question])
            return closed, None
        if not self._store.decisions.label(decision.request_id, entry.id, same, "audit"):
            # The user's own word is there already, or the machine refuses.
            return self._store.decisions.close_audit(decision.request_id, entry.id), None
        self._learn(decision.prompt, considered, same, "audit", served=True, regret=fresh.donor_regret)
        if same and self._marks.holds(decision.scope, decision.prompt, entry.prompt) is False:
            self._store.aliases.put(
                Alias(
                    scope=decision.scope, request_key=identity.request_key, entry_id=entry.id, prompt=decision.prompt,
                    user=decision.user, created_at=self._clock(),
                )
            )  # fmt: skip
        self._flush({decision.scope})
        return True, same

    def marked(self, decision: Decision, entry: Entry, same: bool) -> bool:
        """A user's own word about a semantic hit; it overrides every other label. True when a negative pair is left.

        StoreError where the word could not be kept.
        """
        if not same:
            self._mark(decision.scope, decision.prompt, entry)
            for alias in self._store.aliases.of(entry.id):
                if alias.prompt == decision.prompt:
                    self._store.aliases.delete(alias.scope, alias.request_key)
        # After the pair: what is said again because that failed must not look like what was learned already.
        if not self._store.decisions.label(decision.request_id, entry.id, same, "user"):
            raise StoreError(f"could not note that {decision.request_id} was {'right' if same else 'wrong'}; try again")
        if (decision.label, decision.source) != (same, "user"):  # saying it again teaches nothing new
            self._learn(decision.prompt, considered_of(decision, entry), same, "user", served=True, regret=None)
            self._flush({decision.scope})
        return not same

    def unaliased(self, request: Request, entry_id: str) -> bool:
        """A user says that a verified wording was wrong after all: the key goes, the pair stays as a negative one.

        False where the entry is gone; StoreError where the pair could not be kept.
        """
        entry = self._store.get_entry(entry_id)
        if entry is None:
            return False
        self._mark(entry.scope, request.last_user_message, entry)
        self._store.aliases.delete(entry.scope, identify(entry.fingerprint, request).request_key)
        item = Considered(Candidate(entry.id, entry.scope, entry.prompt, entry.answer, 1.0), "alias")
        self._learn(request.last_user_message, item, False, "user", served=True, regret=None)
        self._flush({entry.scope})
        return True

    # What is kept, and what is gone

    def save(self, scope: str | None = None) -> None:
        """Write down what was counted since the last label: everywhere, or in a scope and its namespaces."""
        if self._policy is not None:
            self._flush({name for name in self._policy.scopes() if scope is None or is_within(name, scope)})

    def forget_scope(self, scope: str) -> None:
        """The scope was cleared, its namespaces too: nothing that was learned there may be written back."""
        self._withdraw(lambda candidate: is_within(candidate.scope, scope))
        self._marks.forget_scope(scope)
        if self._policy is not None:
            self._policy.forget_scope(scope)

    def forget_entry(self, scope: str, entry_id: str) -> None:
        self._withdraw(lambda candidate: candidate.entry_id == entry_id)
        if self._policy is not None:
            self._policy.forget(scope, entry_id)

    # The judge

    def next_open(self) -> OpenQuestion | None:
        """Take the oldest pair of answers that waits for a judge."""
        with self._lock:
            self._asked = self._open.popleft() if self._open else None
            return self._asked

    def reopen(self, question: OpenQuestion) -> None:
        """The judge was interrupted; the question is the next one again, unless its answer was removed meanwhile."""
        with self._lock:
            if self._asked is question:
                self._open.appendleft(question)

    def judged(self, question: OpenQuestion, same: bool | None) -> None:
        """The judge's word; None, a reply that was not understood, is no label."""
        if same is None:
            return
        source: Source = "audit" if question.served else "equivalence"
        candidate = question.considered.candidate
        if not self._store.decisions.label(question.request_id, candidate.entry_id, same, source):
            return
        self._learn(question.prompt, question.considered, same, source, served=question.served, regret=question.regret)
        self._flush({candidate.scope})

    @property
    def num_open(self) -> int:
        return len(self._open)

    # Helpers of the above

    def _mark(self, scope: str, prompt: str, entry: Entry) -> None:
        """First of all: no look-up serves an alias of a marked pair, so the alias may then go or stay."""
        if not self._marks.mark(scope, prompt, entry.prompt):
            raise StoreError(f"could not keep that the answer of {entry.id} is wrong for this wording; try again")

    def _withdraw(self, is_gone: Callable[[Candidate], bool]) -> None:
        """No judge reads an answer that was removed."""
        with self._lock:
            kept = [question for question in self._open if not is_gone(question.considered.candidate)]
            self._open = deque(kept, maxlen=_MAX_OPEN)
            if self._asked is not None and is_gone(self._asked.considered.candidate):
                self._asked = None

    def _ask(self, questions: Sequence[OpenQuestion]) -> None:
        if self._asks_judge:
            with self._lock:
                self._open.extend(questions)

    def _samples(self, scope: str) -> bool:
        num_audits, _num_wrong = self._store.decisions.wrong_hits(scopes=[scope])
        return num_audits < FIRST_AUDITS or self._random.random() < self._audit_rate

    def _learn(
        self, prompt: str, item: Considered, same: bool, source: Source, *, served: bool, regret: float | None
    ) -> None:
        if self._policy is not None:
            self._policy.learn(prompt, item, same, source=source, served=served, regret=regret)

    def _flush(self, scopes: set[str]) -> None:
        if self._policy is not None:
            for scope in scopes:
                self._policy.flush(scope)


def considered_of(decision: Decision, entry: Entry) -> Considered:
    """What the policy saw when it decided, from the record of it."""
    candidate = Candidate(entry.id, decision.scope, entry.prompt, entry.answer, decision.score)
    return Considered(candidate, decision.reason, dict(decision.features), decision.p_correct, chosen=True)


def _question(request: Request, item: Considered, regret: float | None) -> OpenQuestion:
    return OpenQuestion(request.id, request.user, request.last_user_message, request.answer, item, False, regret)


def _decision(
    request: Request, item: Considered, now: float, *, served: bool = False, audit: bool = False,
    same: bool | None = None, source: Source | None = None,
) -> Decision:  # fmt: skip
    candidate = item.candidate
    return Decision(
        request_id=request.id, at=now, scope=candidate.scope, user=request.user, entry_id=candidate.entry_id,
        prompt=request.last_user_message, matched_prompt=candidate.prompt, score=candidate.score,
        p_correct=item.p_correct, served=served, audit=audit, label=same, source=source, reason=item.reason,
        features=dict(item.features),
    )  # fmt: skip
