"""A prompt's neighbours: whose stored answer may stand for it, and whose may be offered to the model as a draft.

An answer is served only from the same model, context and parameters, and only where the policy trusts it. A donor may
be anything readable, since the model checks every token of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semcache.daemon.cache.embedder import Embedder, Vector
from semcache.daemon.cache.identity import Identity, fits
from semcache.daemon.cache.policy import Candidate, Policy, Verdict
from semcache.daemon.cache.strategy import Access, Scope
from semcache.daemon.request import Request
from semcache.store.entries import Entry
from semcache.store.store import Store
from semcache.store.vectors import Partition

# Nearest neighbours shown to the policy.
NUM_CANDIDATES = 5
# Below this cosine two prompts share a topic at most, and so do their answers.
MIN_DONOR_SCORE = 0.5


@dataclass(frozen=True)
class Neighbour:
    """A stored answer near the prompt and the scope it was found in."""

    scope: Scope
    entry: Entry
    score: float


@dataclass(frozen=True)
class Found:
    """What the search gave; `reason` says why `served` is None, or that it is similar."""

    reason: str
    served: Neighbour | None = None
    nearest: Neighbour | None = None  # what the verdict is about, else the donor
    donors: tuple[Neighbour, ...] = ()  # the likeliest first
    verdict: Verdict | None = None
    vector: Vector | None = None
    embed_ms: float | None = None


class Similarity:
    """Searches the scopes that a request may read."""

    def __init__(self, store: Store, policy: Policy, embedder: Callable[[], Embedder | None]) -> None:
        self._store = store
        self._policy = policy
        self._embedder = embedder

    def search(
        self, request: Request, access: Access, identity: Identity, *, may_serve: bool, may_draft: bool,
        preview: bool = False,
    ) -> Found:  # fmt: skip
        """Embed the prompt if anybody could be near it, then ask the policy; `preview` leaves no trace in it."""
        embedder = self._embedder()
        if embedder is None or not (may_serve or may_draft):
            return Found("disabled")
        prompt = request.last_user_message
        if embedder.num_tokens(prompt) > embedder.max_tokens:
            return Found("too_long")
        partition = Partition(identity.fingerprint, identity.context_key, identity.params_key, embedder.name)
        has_candidates = may_serve and self._has_any(access, partition)
        if not has_candidates and not (may_draft and self._has_any(access, None)):
            # Nobody to compare with: the embedding is made when the answer is stored, off the hot path.
            return Found("no_candidate" if self._has_any(access, None) else "empty")
        started = time.perf_counter()
        vector = embedder.embed(prompt)
        embed_ms = (time.perf_counter() - started) * 1e3
        near, others = self._near(request, access, vector, partition)
        verdict, served = None, None
        if may_serve:
            candidates = [_candidate(neighbour) for neighbour in near if _may_stand(neighbour, request)]
            verdict = self._policy.decide(prompt, candidates, [scope.name for scope in access.read], preview=preview)
        chosen = _named(near, verdict)
        if verdict is not None and verdict.serve:
            served = chosen
        donors = _donors(chosen, near, others) if served is None and may_draft else ()
        reason = verdict.reason if verdict is not None else "disabled"
        nearest = chosen or (donors[0] if donors else None)
        return Found(reason, served, nearest, donors, verdict, vector, embed_ms)

    def _has_any(self, access: Access, partition: Partition | None) -> bool:
        return any(self._store.has_neighbours(scope.name, partition) for scope in access.read)

    def _near(
        self, request: Request, access: Access, vector: Vector, partition: Partition
    ) -> tuple[list[Neighbour], list[Neighbour]]:
        """Neighbours of the same identity over all readable scopes, and the nearest of any, each best first.

        A tie goes to the scope that is read first.
        """
        near, others = [], []
        for scope in access.read:
            found, donor = self._store.nearest_and_donor(scope.name, vector, NUM_CANDIDATES, partition)
            near += [Neighbour(scope, entry, score) for entry, score in found]
            others += [Neighbour(scope, *donor)] if donor is not None else []
        return _best_first(near), _best_first(others)


def _best_first(found: list[Neighbour]) -> list[Neighbour]:
    return sorted(found, key=lambda neighbour: -neighbour.score)


def _may_stand(neighbour: Neighbour, request: Request) -> bool:
    """An answer cut by its limit says less than the other wording's own would."""
    entry = neighbour.entry
    is_whole = entry.finish_reason != "length"
    return is_whole and fits(request.sampling, entry.finish_reason, entry.num_completion_tokens)


def _donors(chosen: Neighbour | None, near: list[Neighbour], others: list[Neighbour]) -> tuple[Neighbour, ...]:
    """The policy's choice first, then by score; of equal answers one."""
    ordered = ([chosen] if chosen is not None else []) + _best_first(near + others)
    by_answer: dict[tuple[int, ...], Neighbour] = {}
    for neighbour in ordered:
        if neighbour.score >= MIN_DONOR_SCORE:
            by_answer.setdefault(neighbour.entry.answer_tokens, neighbour)
    return tuple(by_answer.values())


def _candidate(neighbour: Neighbour) -> Candidate:
    entry = neighbour.entry
    return Candidate(entry.id, neighbour.scope.name, entry.prompt, entry.answer, neighbour.score)


def _named(near: Sequence[Neighbour], verdict: Verdict | None) -> Neighbour | None:
    if verdict is None or verdict.candidate is None:
        return None
    about = verdict.candidate
    return next((n for n in near if (n.entry.id, n.scope.name) == (about.entry_id, about.scope)), None)
