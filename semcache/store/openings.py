"""Stored answers by how they begin. Whoever uses one verifies its tokens; whose they are the entry itself must say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from semcache.store.database import Database
from semcache.store.entries import LIVE, Entries
from semcache.store.incidents import Incidents

# Of answers to real questions three tokens tell almost all apart; fewer tokens would find many, more would find late.
OPENING_TOKENS = 3
MAX_FOUND = 4

# The index of migration 0008 is used only for this very expression.
_FIND = f"""
    SELECT id, max(last_used_at) AS newest FROM entries
    WHERE scope = ? AND fingerprint = ? AND substr(answer_tokens, 1, {4 * OPENING_TOKENS}) = ?
    AND {LIVE}
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

    def __init__(self, db: Database, entries: Entries, incidents: Incidents, clock: Callable[[], float]) -> None:
        self._db = db
        self._entries = entries
        self._incidents = incidents
        self._clock = clock

    def find(self, scope: str, fingerprint: str, tokens: Sequence[int]) -> list[Opening]:
        """Answers of one model that begin with exactly these tokens, the last used first."""
        assert len(tokens) == OPENING_TOKENS, tokens
        opening = np.asarray(tokens, dtype="<i4").tobytes()
        wanted = (scope, fingerprint, tuple(tokens))
        with self._incidents.reading("openings"):
            now_s = self._clock()
            oldest = self._entries.oldest_live(now_s)
            ids = [row["id"] for row in self._db.rows(_FIND, (scope, fingerprint, opening, oldest))]
            whole = self._entries.by_ids(ids, now_s)
            found = [whole[entry_id] for entry_id in ids if entry_id in whole]
            # SQLite believes its index; what is shown of a donor must be its own, and the asker's to see.
            right = [e for e in found if (e.scope, e.fingerprint, e.answer_tokens[:OPENING_TOKENS]) == wanted]
            self._entries.note_misled(len(found) - len(right))
            return [
                Opening(entry.id, entry.prompt, entry.answer_tokens, entry.finish_reason == "stop", entry.created_at)
                for entry in right
            ]
        return []
