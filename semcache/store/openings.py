"""Stored answers by how they begin. A donor found so needs no checksum: whoever uses it verifies every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from semcache.store.database import Database
from semcache.store.incidents import Incidents

# Of answers to real questions three tokens tell almost all apart; fewer tokens would find many, more would find late.
OPENING_TOKENS = 3
MAX_FOUND = 4

# The index of migration 0008 is used only for this very expression.
_FIND = f"""
    SELECT id, prompt, answer_tokens, finish_reason, created_at, max(last_used_at) AS newest FROM entries
    WHERE scope = ? AND fingerprint = ? AND substr(answer_tokens, 1, {4 * OPENING_TOKENS}) = ?
    AND (pinned = 1 OR expires_at IS NULL OR expires_at > ?)
    GROUP BY answer_tokens ORDER BY newest DESC LIMIT {MAX_FOUND}"""  # noqa: S608 - constants of our own


@dataclass(frozen=True)
class Opening:
    """One stored answer and whose it is."""

    entry_id: str
    prompt: str
    tokens: tuple[int, ...]
    has_ended: bool  # the model stopped there by itself
    created_at: float


class Openings:
    """The first tokens of the `entries` table's answers."""

    def __init__(self, db: Database, incidents: Incidents, clock: Callable[[], float]) -> None:
        self._db = db
        self._incidents = incidents
        self._clock = clock

    def find(self, scope: str, fingerprint: str, tokens: Sequence[int]) -> list[Opening]:
        """Answers of one model that begin with exactly these tokens, the last used first."""
        assert len(tokens) == OPENING_TOKENS, tokens
        opening = np.asarray(tokens, dtype="<i4").tobytes()
        with self._incidents.reading("openings"):
            rows = self._db.rows(_FIND, (scope, fingerprint, opening, self._clock()))
            return [
                Opening(
                    row["id"],
                    row["prompt"],
                    tuple(np.frombuffer(row["answer_tokens"], dtype="<i4").tolist()),
                    row["finish_reason"] == "stop",
                    row["created_at"],
                )
                for row in rows
                if len(row["answer_tokens"]) % 4 == 0
            ]
        return []
