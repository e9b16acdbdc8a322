"""Deletes on somebody's request: nothing of it stays in the database file or its log, and what could not go is named.

Eviction and TTL make room and may fail quietly (`budget.py`); here whoever asked must know.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semcache.errors import StoreError
from semcache.store.aliases import Aliases
from semcache.store.answers import Answers
from semcache.store.blocks import Blocks
from semcache.store.budget import DiskBudget
from semcache.store.check import remove, sweep
from semcache.store.database import Database
from semcache.store.decisions import Decisions
from semcache.store.entries import is_owners, where_owner
from semcache.store.evidence import EvidenceTable
from semcache.store.files import Files
from semcache.store.incidents import Incidents
from semcache.store.pins import LOOSE
from semcache.store.recovery import put_aside_before
from semcache.store.tiers import Tiers
from semcache.store.usage import UsageBook


class Erasure:
    """Goes through everything that holds something of an owner; StoreError says what is still there."""

    def __init__(
        self,
        *,
        db: Database,
        answers: Answers,
        aliases: Aliases,
        decisions: Decisions,
        evidence: EvidenceTable,
        usage: UsageBook,
        blocks: Blocks,
        tiers: Tiers,
        budget: DiskBudget,
        incidents: Incidents,
        files: Files,
    ) -> None:
        self._db = db
        self._answers = answers
        self._aliases = aliases
        self._decisions = decisions
        self._evidence = evidence
        self._usage = usage
        self._blocks = blocks
        self._tiers = tiers
        self._budget = budget
        self._incidents = incidents
        self._files = files

    @contextmanager
    def _deleting(self) -> Iterator[None]:
        """Whoever deletes must know when it did not happen."""
        try:
            yield
            self._db.truncate_log()
        except sqlite3.Error as error:
            raise StoreError(f"could not delete everything that was asked: {error}; try again") from error

    def delete_entries(self, ids: Sequence[str]) -> int:
        """Delete entries with what leads to them; returns how many there were."""
        with self._deleting():
            num = self._answers.delete(ids)
            self._usage.forget_matches()
            return num
        return 0

    def clear(
        self, *, scopes: Sequence[str] | None, user: str | None, namespace: str | None, keep_pinned: bool
    ) -> tuple[int, int]:
        """Delete what matches every given filter, all but pins with `keep_pinned`; how many entries and blocks."""
        deleted, stuck = self._clear(scopes, user, namespace, keep_pinned=keep_pinned)
        if stuck:
            raise StoreError(
                f"of what was deleted {len(stuck)} files could not be removed and are still below "
                f"{self._tiers.disk.folder} (one is {stuck[0]}); fix the permissions there, then run "
                "`semcache cache check --fix` or restart the daemon"
            )
        return deleted

    def _clear(
        self, scopes: Sequence[str] | None, user: str | None, namespace: str | None, *, keep_pinned: bool
    ) -> tuple[tuple[int, int], list[Path]]:
        """How many entries and blocks were deleted, and which of their files could not be."""
        where, params = where_owner(scopes=scopes, user=user, namespace=namespace)
        entries = self._answers.entries
        if keep_pinned:
            self._tiers.behind.flush()
        with self._deleting():
            num_waiting = self._tiers.behind.discard(
                lambda owner: is_owners(owner.scope, owner.user, scopes=scopes, user=user, namespace=namespace)
            )
            touched = entries.scopes(where, params)
            loose, loose_blocks = (f"{where} AND {it}" for it in LOOSE) if keep_pinned else (where, where)
            # Blocks first: once the entries are gone, nothing says any more which blocks were pinned.
            blocks = self._tiers.delete(self._blocks.select(loose_blocks, params))
            num_entries = self._answers.delete_where(loose, params)
            with self._db.transaction() as connection:
                self._aliases.clear(connection, where, params)
                self._decisions.clear(connection, where, params)
                self._evidence.clear(connection, scopes=scopes, user=user, namespace=namespace, touched=touched)
            self._usage.forget_matches()
            self._budget.refresh()
            stuck = self._tiers.disk.remaining(blocks)
        return (num_entries, num_waiting + len(blocks)), stuck

    def forget_user(self, user: str) -> tuple[int, int]:
        """Delete everything of a user, history and databases that were put aside too; how many entries and blocks."""
        deleted, _ = self._clear(None, user, None, keep_pinned=False)
        with self._deleting():
            damaged = self._usage.faults()
            with self._db.transaction() as connection:
                self._usage.forget(connection, user, damaged)
            # What an eviction or a broken write left behind may have been this user's: no row says so any more.
            num_swept, stuck = sweep(self._tiers.disk.folder, self._db, self._blocks, self._files)
        self._incidents.count("swept_files", num_swept)
        stuck += remove(put_aside_before(self._db.path), self._files)[1]
        if stuck:
            raise StoreError(f"{len(stuck)} files that may be of {user} are still there: {stuck[0]}, or forget again")
        return deleted
