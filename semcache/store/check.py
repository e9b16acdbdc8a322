"""Compares rows with files, and repairs by deleting: a cache can compute again what it loses."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from semcache.store.aliases import Aliases
from semcache.store.blocks import BlockRow, Blocks
from semcache.store.database import Database
from semcache.store.entries import Entries
from semcache.store.evidence import EvidenceTable
from semcache.store.files import TEMP_SUFFIX, Files
from semcache.store.pins import Pins
from semcache.store.rows import Fault, Rowids
from semcache.store.tensors import DamageError
from semcache.store.tiers import Tiers
from semcache.store.usage import UsageBook


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit. `item` is an entry id, a path below `kv/`, a scope, or the database."""

    # damaged_entry, damaged_block, unreadable_block, stray_file, leftover_temp, database, damaged_alias, orphan_alias,
    # damaged_evidence, orphan_evidence, damaged_pin, orphan_pin, damaged_history
    kind: str
    item: str
    detail: str


@dataclass(frozen=True)
class CheckResult:
    entries: int
    blocks: int
    size_bytes: int  # of verified block files
    problems: tuple[Problem, ...]
    fixed: bool  # every problem was repaired
    database: str  # what SQLite says about its file; "ok" when nothing

    @property
    def ok(self) -> bool:
        return not self.problems or self.fixed


def files_below(folder: Path) -> Iterator[str]:
    """Every file, as a path relative to the folder."""
    skip = len(str(folder)) + 1
    for parent, _, names in os.walk(folder):
        below = f"{parent[skip:]}/" if len(parent) >= skip else ""
        for name in names:
            yield below + name


def strays(folder: Path, db: Database, blocks: Blocks, files: Files) -> Iterator[tuple[Path, str]]:
    """(file, kind) below `folder` that no row speaks for, while nobody can add one."""
    unknown = set(files_below(folder))
    unknown -= blocks.paths()
    for relative in sorted(unknown):
        path = folder / relative
        if path.name.endswith(TEMP_SUFFIX):
            # In this order: a write that ended since the folder was listed has given its file another name.
            if not files.is_open_temp(path) and os.path.lexists(path):
                yield path, "leftover_temp"
            continue
        with db.lock:  # a block may have come or gone since the folder was listed
            hash_ = path.name.split(".", 1)[0]
            if path.exists() and relative not in {row.relative_path for row in blocks.by_hashes([hash_])}:
                yield path, "stray_file"


def sweep(folder: Path, db: Database, blocks: Blocks, files: Files) -> tuple[int, list[str]]:
    """Remove what a killed process left behind; returns how many files, and a line for each that cannot be removed."""
    return remove((path for path, _ in strays(folder, db, blocks, files)), files)


def remove(paths: Iterable[Path], files: Files) -> tuple[int, list[str]]:
    """Remove files that are of no use; returns how many, and a line for each that cannot be removed."""
    num_removed, stuck = 0, []
    for path in paths:
        try:
            files.unlink(path)
            num_removed += 1
        except OSError as error:
            stuck.append(f"cannot remove leftover file {path}: {error.strerror}; remove it by hand")
    return num_removed, stuck


class Check:
    """One pass over everything that is stored."""

    def __init__(
        self,
        db: Database,
        entries: Entries,
        aliases: Aliases,
        evidence: EvidenceTable,
        pins: Pins,
        usage: UsageBook,
        blocks: Blocks,
        tiers: Tiers,
        files: Files,
    ) -> None:
        self._db = db
        self._entries = entries
        self._aliases = aliases
        self._evidence = evidence
        self._pins = pins
        self._usage = usage
        self._blocks = blocks
        self._tiers = tiers
        self._files = files
        self._problems: list[Problem] = []
        self._num_unfixed = 0

    def run(self, *, fix: bool) -> CheckResult:
        """What does not fit; with `fix` it is gone afterwards, so that a second check is clean."""
        database = self._check_database(fix=fix)
        size_bytes = self._check_blocks(fix=fix)
        # Entries first: what only leads to a damaged one goes with it.
        for table in (self._entries, self._aliases, self._evidence, self._pins, self._usage):
            for fault in table.faults():
                fixed = fix and self._delete(fault, table.faults)
                self._found(fault.kind, fault.item, fault.detail, fixed=fixed)
        self._check_strays(fix=fix)
        return CheckResult(
            entries=self._db.number("SELECT count(*) FROM entries"),
            blocks=self._db.number("SELECT count(*) FROM blocks"),
            size_bytes=size_bytes,
            problems=tuple(self._problems),
            fixed=fix and bool(self._problems) and self._num_unfixed == 0,
            database=database or "ok",
        )

    def _check_database(self, *, fix: bool) -> str | None:
        """What is wrong with the file after the repair; an index can be made anew, a table cannot."""
        found = left = self._db.find_damage(thorough=True)
        # Only the next start can replace the file under the connection.
        self._db.is_corrupt = found is not None
        if found is not None and fix:
            with suppress(sqlite3.Error):
                self._db.rebuild_indexes()
            left = self._db.find_damage(thorough=True)
            self._db.is_corrupt = left is not None
        if found is not None:
            self._found("database", self._db.path.name, found, fixed=left is None)
        return left

    def _found(self, kind: str, item: str, detail: str, *, fixed: bool) -> None:
        self._problems.append(Problem(kind, item, detail))
        self._num_unfixed += not fixed

    def _check_blocks(self, *, fix: bool) -> int:
        size_bytes = 0
        for row in self._blocks.all():
            problem = self._problem_of(row)
            if problem is None:
                size_bytes += row.size_bytes
                continue
            kind, detail = problem
            fixed = fix and bool(self._tiers.delete([row]))
            self._found(kind, row.relative_path or str(row.hash), detail, fixed=fixed)
        return size_bytes

    def _problem_of(self, row: BlockRow) -> tuple[str, str] | None:
        try:
            self._read(row)
        except DamageError as error:
            return "damaged_block", str(error)
        except OSError as error:
            return "unreadable_block", str(error.strerror)
        if not isinstance(row.token_ids, bytes) or len(row.token_ids) != 4 * row.num_tokens:
            return "damaged_block", f"its row does not hold the ids of {row.num_tokens} tokens"
        return None

    def _read(self, row: BlockRow) -> None:
        try:
            self._tiers.disk.read(row)
        except DamageError:
            self._tiers.disk.read_alone(row)  # evicted or written again meanwhile is no problem

    def _delete(self, fault: Fault, faults: Callable[[Rowids], list[Fault]]) -> bool:
        with self._db.transaction() as connection:
            # It may be gone since it was found, and its rowid may be that of a new row.
            if fault in faults((fault.number - 1, fault.number)):
                connection.execute(f"DELETE FROM {fault.table} WHERE rowid = ?", (fault.number,))  # noqa: S608
            return True

    def _check_strays(self, *, fix: bool) -> None:
        folder = self._tiers.disk.folder
        for path, kind in strays(folder, self._db, self._blocks, self._files):
            fixed = False
            if fix:
                try:
                    self._files.unlink(path)
                    fixed = True
                except OSError:
                    fixed = False
            detail = "left by an interrupted write" if kind == "leftover_temp" else "no row speaks for it"
            self._found(kind, path.relative_to(folder).as_posix(), detail, fixed=fixed)
