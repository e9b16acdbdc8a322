"""Answers: rows in SQLite and their embeddings in memory, kept together. Knows no user's rights and no policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from semcache.store.aliases import Aliases
from semcache.store.database import Database, batches
from semcache.store.entries import Entries, Entry
from semcache.store.incidents import Incidents
from semcache.store.pins import Pins
from semcache.store.vectors import Partition, VectorIndex, unit


def partition_of(entry: Entry) -> Partition:
    """What an entry's neighbours must share with it."""
    return Partition(entry.fingerprint, entry.context_key, entry.params_key, entry.embedder or "")


class Answers:
    """Rows change first, the index follows; an id in the index without a row is dropped when it is met."""

    def __init__(
        self,
        db: Database,
        entries: Entries,
        aliases: Aliases,
        pins: Pins,
        incidents: Incidents,
        clock: Callable[[], float],
    ) -> None:
        self._db = db
        self.entries = entries
        self._aliases = aliases
        self._pins = pins
        self._vectors = VectorIndex(entries.vectors)
        self._incidents = incidents
        self._clock = clock

    def nearest(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition | None, embedder: str | None
    ) -> list[tuple[Entry, float]]:
        """The k closest verified entries of a scope, best first, with their cosines."""
        while True:
            found = self._vectors.nearest(scope, vector, k, partition, embedder)
            entries = self.entries.by_ids([entry_id for entry_id, _ in found], self._clock())
            gone = [(scope, entry_id) for entry_id, _ in found if not _belongs(entries.get(entry_id), scope, partition)]
            if not gone:
                return [(entries[entry_id], score) for entry_id, score in found]
            self.unindex(gone)  # deleted, damaged or expired: ask again, so that k are found where k are left

    def nearest_and_donor(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition
    ) -> tuple[list[tuple[Entry, float]], tuple[Entry, float] | None]:
        """`nearest` of a partition, and the nearest entry of any partition of its embedder."""
        while True:
            found, donor = self._vectors.nearest_and_donor(scope, vector, k, partition)
            wanted = [*found, donor] if donor is not None else found
            entries = self.entries.by_ids([entry_id for entry_id, _ in wanted], self._clock())
            gone = {entry_id for entry_id, _ in found if not _belongs(entries.get(entry_id), scope, partition)}
            gone |= {entry_id for entry_id, _ in wanted if not _belongs(entries.get(entry_id), scope, None)}
            if not gone:
                near = [(entries[entry_id], score) for entry_id, score in found]
                return near, None if donor is None else (entries[donor[0]], donor[1])
            self.unindex([(scope, entry_id) for entry_id in gone])

    def has_neighbours(self, scope: str, partition: Partition | None) -> bool:
        """Whether `nearest` could find anything, rows not verified."""
        return self._vectors.has(scope, partition)

    def put(self, entry: Entry, blocks: Sequence[str]) -> None:
        """Keep an answer in place of older ones to the same request, whose aliases it inherits if it says the same.

        `blocks` are the names of its prompt's KV blocks. May raise sqlite3.Error.
        """
        if entry.vector is not None and (entry.embedder is None or unit(entry.vector) is None):
            self._refused(entry, "its vector has no direction or no embedder")
            entry = replace(entry, embedding=None, embedder=None)
        if entry.last_used_at < entry.created_at:
            entry = replace(entry, last_used_at=entry.created_at)
        with self._db.transaction() as connection:
            aliases = self._aliases.inherited(connection, entry)
            replaced = self.entries.insert(connection, entry)
            self._pins.note(connection, entry.id, blocks)
            gone = {entry_id for _, entry_id in replaced}
            self._aliases.move(connection, [row for row in aliases if row["entry_id"] in gone], entry)
        self.unindex(replaced)
        vector = entry.vector
        if vector is not None and not self._vectors.add(entry.scope, entry.id, partition_of(entry), vector):
            self._refused(entry, "its vector has another dimension than its embedder's others")

    def _refused(self, entry: Entry, why: str) -> None:
        self._incidents.failure("refused_embeddings", f"entry {entry.id}", why)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows and their vectors; returns how many there were."""
        return self.delete_where("id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))

    def delete_where(self, where: str, params: Sequence[Any]) -> int:
        return self.delete_rows(self.entries.numbers(where, params), where, params)

    def delete_rows(self, numbers: Sequence[int], where: str, params: Sequence[Any]) -> int:
        """Delete of these rows what is still `where`."""
        num = 0
        for batch in batches(numbers):
            deleted = self.entries.delete(batch, where, params)
            self.unindex(deleted)
            for scope in {scope for scope, _ in deleted}:
                self._vectors.let_go(scope)
            num += len(deleted)
        return num

    def unindex(self, dropped: Sequence[tuple[str, str]]) -> None:
        for scope, entry_id in dropped:
            self._vectors.remove(scope, entry_id)


def _belongs(entry: Entry | None, scope: str, partition: Partition | None) -> bool:
    return entry is not None and entry.scope == scope and partition in (None, partition_of(entry))
