"""KV in RAM over KV on disk. RAM holds only what has a row or waits for it, so a deleted block is gone from both."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from semcache.store.behind import WriteBehind
from semcache.store.blocks import BlockKey, BlockRow, Blocks, Continuation, Owner, key_of
from semcache.store.database import Database, batches
from semcache.store.disk import DiskTier, Unwritten
from semcache.store.incidents import Incidents
from semcache.store.plan import Piece, Planner, TierName
from semcache.store.ram import RamTier
from semcache.store.tensors import DamageError, KVSpan, Stored, TailRecord


@dataclass(frozen=True)
class _Found:
    """One block of a run: in RAM, or still to be read. `row` is None while it waits to be written."""

    row: BlockRow | None
    stored: Stored | None
    piece: Piece


@dataclass(frozen=True)
class PromptLoad:
    """What is stored of one prompt; `record` only where all of its blocks are there too, as far as rows and files say.

    `blocks` gives the leading ones in order, verified, and ends early where one is damaged. It reads as it is asked, on
    the thread that asks, once; nothing has to be read where `is_at_hand`.
    """

    record: TailRecord | None
    blocks: Generator[KVSpan, None, None]
    is_at_hand: bool


class Tiers:
    """Where KV is kept: look in RAM, then on disk; write to both. Nothing here raises for what a machine does."""

    def __init__(
        self,
        ram: RamTier,
        disk: DiskTier,
        *,
        db: Database,
        blocks: Blocks,
        incidents: Incidents,
        clock: Callable[[], float],
        added: Callable[[str, int], None],
        queue_bytes: int,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.ram = ram
        self.disk = disk
        self.planner = Planner()
        self.behind = WriteBehind(queue_bytes, self._write_late, incidents)
        self._is_behind = queue_bytes > 0
        self._db = db
        self._blocks = blocks
        self._incidents = incidents
        self._clock = clock
        self._added = added
        self._timer = timer

    def close(self) -> None:
        """Write what waits; the database must still be open."""
        self.behind.close()
        self.disk.close()

    # Loading

    def load(self, keys: Sequence[BlockKey], *, ms_per_token: float | None = None) -> list[Stored]:
        """The longest leading run of `keys` that is present and verified, and no slower to load than to compute."""
        run = self._worth_loading(self._present(keys), ms_per_token)
        return self._settle(list(self._read(run)))

    def load_prompt(
        self, blocks: Sequence[BlockKey], tail: BlockKey, *, ms_per_token: float | None = None
    ) -> PromptLoad:
        """The record of a prompt before its blocks: with that the answer can begin while these are read."""
        run = self._worth_loading(self._present(blocks), ms_per_token)
        record = None
        if len(run) == len(blocks) and all(self._is_there(found) for found in run):
            record = next((stored for stored in self.load([tail]) if isinstance(stored, TailRecord)), None)
        return PromptLoad(record, self._each_block(run), all(found.piece.tier == "ram" for found in run))

    def _each_block(self, run: Sequence[_Found]) -> Generator[KVSpan, None, None]:
        read: list[tuple[BlockRow | None, Stored]] = []
        try:
            with closing(self._read(run)) as reads:
                for row, stored in reads:
                    read.append((row, stored))
                    assert isinstance(stored, KVSpan), row
                    yield stored
        finally:
            self._settle(read)  # also where nobody wants the rest

    def _is_there(self, found: _Found) -> bool:
        """Whether a block can be had, without reading it."""
        return found.row is None or found.piece.tier == "ram" or self.disk.has_file(found.row)

    def _worth_loading(self, run: list[_Found], ms_per_token: float | None) -> list[_Found]:
        """The leading part that loads faster than it is computed; all of it where nobody says how fast that is."""
        if ms_per_token is None:
            return run
        num = self.planner.worth_loading([found.piece for found in run], ms_per_token)
        self._incidents.count("computed_instead", len(run) - num)
        return run[:num]

    def load_continuation(self, wanted: Continuation, *, ms_per_token: float | None = None) -> KVSpan | None:
        """KV of the leading tokens that a stored block or record shares with `wanted`: the most that can be had."""
        for key, num_shared in self._sharing(wanted):
            run = self._present([key])
            pieces = [replace(found.piece, num_tokens=num_shared) for found in run]
            if ms_per_token is not None and not self.planner.worth_loading(pieces, ms_per_token):
                self._incidents.count("computed_instead", len(run))
                continue
            for stored in self._settle(list(self._read(run))):
                span = stored.span if isinstance(stored, TailRecord) else stored
                return span.slice(0, num_shared)
        return None

    def _sharing(self, wanted: Continuation) -> list[tuple[BlockKey, int]]:
        """Stored children of `wanted.parent` that begin as the prompt goes on, the one that shares most first."""
        # The queue before the rows: what leaves it in between has its row by then.
        keys = self.behind.children(wanted.parent)
        try:
            rows = self._blocks.around(wanted.parent, wanted.token_ids, self._clock())
        except sqlite3.Error as error:
            self._incidents.failure("read_failures", "blocks", error)
            rows = []
        for row in rows:
            key = key_of(wanted.root, row)
            if key is not None:
                keys.append(key)
            else:
                self._incidents.damage(
                    "hash_collisions", f"block {str(row.hash)[:12]}", "its row is about other tokens"
                )
        shared = {key: wanted.num_shared(key.token_ids) for key in keys if key.first_token == wanted.first_token}
        return sorted(((key, num) for key, num in shared.items() if num), key=lambda pair: -pair[1])

    def _present(self, keys: Sequence[BlockKey]) -> list[_Found]:
        """The leading run, by what its rows say; nothing is read."""
        # The queue before the rows: what leaves it in between has its row by then.
        waiting = {key.hash: stored for key in keys if (stored := self.behind.get(key)) is not None}
        rows = self.find(keys)
        run: list[_Found] = []
        for key in keys:
            row, stored, num_tokens = rows.get(key.hash), waiting.get(key.hash), len(key.token_ids)
            if row is not None and row.matches(key):
                tier: TierName = "ram" if self.ram.holds(row) else "disk"
                run.append(_Found(row, None, Piece(tier, row.size_bytes, num_tokens)))
            elif stored is not None:
                run.append(_Found(None, stored, Piece("ram", stored.size_bytes, num_tokens)))
            else:
                if row is not None:
                    self._incidents.damage("hash_collisions", f"block {key.hash[:12]}", "its row is about other tokens")
                break
        return run

    def _read(self, run: Sequence[_Found]) -> Generator[tuple[BlockRow | None, Stored], None, None]:
        """The leading part of a run that can be read and is whole, as it comes."""
        started_s = self._timer()
        at_hand = [found.stored if found.row is None else self.ram.get(found.row) for found in run]
        self._learn("ram", [found.piece for found, stored in zip(run, at_hand, strict=True) if stored], started_s)
        cold = [found.row for found, stored in zip(run, at_hand, strict=True) if stored is None and found.row]
        pieces: list[Piece] = []
        started_s = self._timer()
        with closing(self.disk.read_ahead(cold)) as reads:
            for found, at_once in zip(run, at_hand, strict=True):
                stored = at_once
                if stored is None and found.row is not None:
                    stored = self._next(reads, found.row)
                    pieces.append(found.piece)
                if stored is None:
                    break
                yield found.row, stored
        self._learn("disk", pieces, started_s)

    def _learn(self, tier: TierName, pieces: Sequence[Piece], started_s: float) -> None:
        self.planner.observe(tier, sum(piece.size_bytes for piece in pieces), (self._timer() - started_s) * 1e3)

    def _next(self, reads: Iterator[Callable[[], Stored]], row: BlockRow) -> Stored | None:
        try:
            return next(reads)()
        except DamageError:
            return self._read_or_drop(row)
        except OSError as error:
            self._incidents.failure("read_failures", f"block {row.hash[:12]}", error)
        return None

    def _read_or_drop(self, row: BlockRow) -> Stored | None:
        """A second read, under the lock; what is damaged then is counted and deleted."""
        try:
            with self._db.lock:
                try:
                    return self.disk.read_alone(row)
                except DamageError as damage:
                    self._incidents.damage("damaged_blocks", f"block {row.hash[:12]}", damage)
                    self.delete([row])
        except (OSError, sqlite3.Error) as error:
            self._incidents.failure("read_failures", f"block {row.hash[:12]}", error)
        return None

    def _settle(self, run: Sequence[tuple[BlockRow | None, Stored]]) -> list[Stored]:
        """Count the uses, and keep in RAM what still has its row."""
        stored_run = [stored for _, stored in run]
        if not any(row for row, _ in run):
            return stored_run
        try:
            with self._db.lock:  # between this look at the rows and RAM nobody may delete them
                live = self._blocks.touch([row for row, _ in run if row], self._clock())
                for row, stored in run:
                    if row is not None and row.hash in live:
                        self.ram.put(row, stored)
        except sqlite3.Error as error:
            self._incidents.failure("write_failures", "last use of blocks", error)
        return stored_run

    def find(self, keys: Sequence[BlockKey]) -> dict[str, BlockRow]:
        """Live rows by hash; none when the database cannot say."""
        try:
            return self._blocks.find([key.hash for key in keys], self._clock()) if keys else {}
        except sqlite3.Error as error:
            self._incidents.failure("read_failures", "blocks", error)
            return {}

    def missing(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """The keys that neither have a live row nor wait for one."""
        absent = [key for key in keys if self.behind.get(key) is None]
        rows = self.find(absent)
        return [key for key in absent if (row := rows.get(key.hash)) is None or not row.matches(key)]

    # Writing and deleting

    def put(self, key: BlockKey, stored: Stored, owner: Owner, compute_ms: float) -> bool:
        """Write a block, or queue it; False when it could not be written or was not worth a place in the queue."""
        if self.behind.get(key) is not None:
            return True
        if not self._is_behind and self._is_stored(key):
            return True
        block = Unwritten.of(key, stored, owner, now_s=self._clock(), compute_ms=compute_ms)
        # With a queue nothing here may wait for the database, which the writer holds again and again.
        return self.behind.offer(block) if self._is_behind else self._write(block)

    def _is_stored(self, key: BlockKey) -> bool:
        row = self.find([key]).get(key.hash)
        return row is not None and row.matches(key)

    def _write_late(self, block: Unwritten) -> None:
        if not self._is_stored(block.key):
            self._write(block)

    def _write(self, block: Unwritten) -> bool:
        row = self.disk.write(block, published=self.ram.put)
        if row is None:
            return False
        self._added(row.user, row.size_bytes)
        return True

    def delete(self, rows: Sequence[BlockRow]) -> list[BlockRow]:
        """Delete from both; returns the rows that were there and are gone. May raise sqlite3.Error."""
        gone: list[BlockRow] = []
        for batch in batches(rows):
            deleted = self.disk.delete(batch)
            self.ram.discard(deleted)
            gone += deleted
        return gone
