"""The disk tier: one file and one row for each block.

Order of writes: temporary file, rename, row. Order of deletes: row, commit, unlink. Rename and unlink happen under the
database lock, so a block that is deleted and written again at the same time cannot lose its new file to the old unlink.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from semcache.store.blocks import BlockKey, BlockRow, Blocks, Owner, pack_tokens
from semcache.store.database import Database
from semcache.store.files import Files, WrongFileError
from semcache.store.incidents import Incidents
from semcache.store.tensors import DamageError, Stored, checksum, compact, decode, encode

# Files of one prompt that are read at the same time: enough to keep a drive busy, few enough to leave it to others.
NUM_READERS = min(4, 2 * (os.cpu_count() or 1))
# Files whose memory is made at the start; a budget in bytes bounds them too.
NUM_READY = 256


@dataclass(frozen=True)
class Unwritten:
    """A block that is to be written. Its tensors are the store's from now on: nobody changes them."""

    key: BlockKey
    stored: Stored
    owner: Owner
    created_at: float
    compute_ms: float

    @staticmethod
    def of(key: BlockKey, stored: Stored, owner: Owner, *, now_s: float, compute_ms: float) -> Unwritten:
        """With copies of tensors that are a part of larger ones."""
        return Unwritten(key, compact(stored), owner, now_s, compute_ms)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.stored.size_bytes

    def row(self, pieces: Sequence[memoryview]) -> BlockRow:
        """The row of the file with these bytes."""
        key, owner = self.key, self.owner
        return BlockRow(
            hash=key.hash, kind=key.kind, scope=owner.scope, model=owner.model, fingerprint=owner.fingerprint,
            parent=key.parent, first_token=key.first_token, num_tokens=len(key.token_ids),
            token_ids=pack_tokens(key.token_ids), size_bytes=sum(map(len, pieces)), checksum=checksum(*pieces),
            user=owner.user, created_at=self.created_at, last_used_at=self.created_at, compute_ms=self.compute_ms,
        )  # fmt: skip


class DiskTier:
    """Reads verify size, checksum and shape; writes either happen completely or leave nothing."""

    def __init__(
        self, folder: Path, db: Database, blocks: Blocks, files: Files, incidents: Incidents, *, durable: bool
    ) -> None:
        self.folder = folder
        self._db = db
        self._blocks = blocks
        self._files = files
        self._incidents = incidents
        self._durable = durable
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="semcache-read")

    def close(self) -> None:
        """Let the readers go; what is being read is finished."""
        self._files.buffers.close()
        self._readers.shutdown()

    def prepare(self, limit_bytes: int) -> Future[None]:
        """Have memory ready for what was used last, in the background: it is what a new process is asked for first."""
        sizes_bytes = self._blocks.last_sizes(NUM_READY)
        while sum(sizes_bytes) > limit_bytes:
            sizes_bytes.pop()
        return self._readers.submit(self._files.buffers.prepare, sizes_bytes)

    def read_ahead(self, rows: Sequence[BlockRow]) -> Generator[Callable[[], Stored], None, None]:
        """For each row a call that gives what `read` gives; several files are read at once. Close it to stop early."""
        if len(rows) == 1:  # nothing to overlap with
            yield partial(self.read, rows[0])
            return
        pending: list[Future[Stored]] = []
        try:
            pending += [self._readers.submit(self.read, row) for row in rows]
            for future in pending:
                yield future.result
        except RuntimeError as error:  # no new reads after `close`
            raise OSError(f"the store is closing: {error}") from error
        finally:
            for future in pending:
                future.cancel()

    def has_file(self, row: BlockRow) -> bool:
        """Whether a file of the row's size lies where its block should be."""
        try:
            return self.path_of(row).stat().st_size == row.size_bytes
        except (OSError, DamageError):
            return False

    def read(self, row: BlockRow) -> Stored:
        """The tensors of a row; DamageError when the file is not what the row says, OSError when it cannot be read."""
        path = self.path_of(row)
        try:
            content = self._files.read(path, row.size_bytes)
        except FileNotFoundError as error:
            raise DamageError("its file is missing") from error
        except WrongFileError as error:
            raise DamageError(f"its file {error}") from error
        if checksum(content) != row.checksum:
            raise DamageError("checksum does not match")
        return decode(content, is_tail=row.kind == "tail", num_tokens=row.num_tokens)

    def read_alone(self, row: BlockRow) -> Stored | None:
        """Read while nobody writes or deletes; None when the row is gone, so that DamageError is really damage.

        Without the lock a block can be evicted and written again between the look at its row and at its file.
        """
        with self._db.lock:
            same = [now for now in self._blocks.by_hashes([row.hash]) if now.checksum == row.checksum]
            return self.read(row) if same else None

    def path_of(self, row: BlockRow) -> Path:
        relative = row.relative_path
        if relative is None:
            raise DamageError("its row names no valid path")
        return self.folder / relative

    def write(self, block: Unwritten, *, published: Callable[[BlockRow, Stored], None]) -> BlockRow | None:
        """Write and publish a block; None when the machine refuses, with nothing left behind.

        `published` is called before anybody can delete the new row.
        """
        pieces = encode(block.stored)
        row = block.row(pieces)
        path = self.path_of(row)
        try:
            temp = self._files.write_temp(path, pieces, durable=self._durable)
            with self._db.lock:
                self._publish(temp, path, row)
                published(row, block.stored)
        except (OSError, sqlite3.Error) as error:
            self._incidents.failure("write_failures", f"block {row.hash[:12]}", error)
            return None
        return row

    def _publish(self, temp: Path, path: Path, row: BlockRow) -> None:
        try:
            self._db.require_open()
            self._files.publish(temp, path, durable=self._durable)
        except BaseException:
            self._files.discard_temp(temp)
            raise
        try:
            with self._db.transaction() as connection:
                self._blocks.insert(connection, row)
        except BaseException:
            self._files.unlink(path)  # no row speaks for it
            raise

    def delete(self, rows: Sequence[BlockRow]) -> list[BlockRow]:
        """Delete rows and their files; a row that was replaced since it was read stays. Returns what was deleted."""
        with self._db.lock:
            with self._db.transaction() as connection:
                deleted = self._blocks.delete(connection, rows)
            for row in deleted:
                try:
                    self._files.unlink(self.path_of(row))
                except (OSError, DamageError) as error:
                    # The next start sweeps files without a row; who must know at once asks `remaining`.
                    self._incidents.failure("unlink_failures", f"block {str(row.hash)[:12]}", error)
        return deleted

    def remaining(self, deleted: Sequence[BlockRow]) -> list[Path]:
        """Files that are still there although their rows were deleted; not those of blocks that were stored again."""
        stuck: list[Path] = []
        for row in deleted:
            if row.relative_path is None or not _is_there(self.path_of(row)):
                continue
            with self._db.lock:  # while nobody stores or deletes it
                if _is_there(self.path_of(row)) and not self._blocks.by_hashes([row.hash]):
                    stuck.append(self.path_of(row))
        return stuck


def _is_there(path: Path) -> bool:
    """Where a folder cannot be looked into, what was in it is taken to be still there."""
    try:
        path.lstat()
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, NotADirectoryError))
    return True
