"""What is stored, shown to those it belongs to: entries, statistics, check. All of it blocking, for the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from semcache.config import Config
from semcache.daemon.cache.strategy import global_scope, principal_of, user_scope
from semcache.daemon.receipts import iso, scope_kind, wrong_hits
from semcache.errors import NotFoundError, StoreError, UsageError
from semcache.store.entries import SORTS, Entry
from semcache.store.store import Store
from semcache.store.usage import UserUsage
from semcache.wire.entries import CheckReport, Cleared, EntryDetail, EntryEvidence, EntrySummary, PinResult
from semcache.wire.status import STATS_SCHEMA, Stats, UserStats


class Library:
    """The store as one principal may see it: the entries its sub-users wrote, and the global scope it shares."""

    def __init__(
        self, *, config: Config, store: Store, forget_scope: Callable[[str], None],
        forget_entry: Callable[[str, str], None], save_scope: Callable[[str], None],
        forget_turns: Callable[[str], None] = lambda scope: None,
        forget_conversation: Callable[[str, Sequence[tuple[str, str]]], None] = lambda scope, messages: None,
        forget_matches: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._config = config
        self._store = store
        self._forget_scope = forget_scope  # so that what was learned goes with what was stored
        self._forget_entry = forget_entry
        self._save_scope = save_scope
        self._forget_turns = forget_turns  # conversations that are still to be written
        self._forget_conversation = forget_conversation  # one of them
        self._forget_matches = forget_matches  # what others were told of answers that are gone

    # Entries

    def entries(self, caller: str, user: str | None, limit: int, sort: str, match: str | None) -> list[EntrySummary]:
        if sort not in SORTS:
            raise UsageError(f"sort = {sort!r}: must be one of {', '.join(SORTS)}", param="sort")
        rows = self._store.list_entries(
            principal=caller, shared=self._shared_scope(caller), user=user, limit=limit, sort=sort, match=match
        )
        return [_summary(entry) for entry in rows if self._may_see(caller, entry)]

    def entry(self, caller: str, entry_id: str) -> EntryDetail:
        entry = self._visible(caller, entry_id)
        stored = self._store.prompt_stored(entry.id)
        return {
            **_summary(entry),
            "messages": [{"role": role, "content": content} for role, content in entry.messages],
            "sampling": dict(entry.sampling),
            "finish_reason": entry.finish_reason,
            "strategy": entry.strategy,
            "fingerprint": entry.fingerprint,
            "blocks": stored.num_stored if stored is not None else None,
            "kv_bytes": stored.size_bytes if stored is not None else None,
            "embedded": entry.embedding is not None,
            "expires": iso(entry.expires_at) if entry.expires_at is not None else None,
            "aliases": [alias.prompt for alias in self._store.aliases.of(entry.id)],
            "evidence": self._evidence(entry),
        }

    def summary(self, entry: Entry) -> EntrySummary:
        return _summary(entry)

    def users_of(self, caller: str) -> list[str]:
        """The caller and every sub-user of it that asked or stored anything."""
        return sorted(user for user in {caller, *self._store.users()} if principal_of(user) == caller)

    def _evidence(self, entry: Entry) -> EntryEvidence | None:
        found = self._store.evidence.of_entry(entry.id)
        if found is None:
            return None
        regret = found.mean_regret if found.num_regrets else None
        return {"same": found.num_same, "other": found.num_other, "mean_regret": regret}

    def remove(self, caller: str, entry_id: str) -> None:
        """Remove an entry of the caller's, pinned or not, and what would be written of its conversation."""
        entry = self._own(caller, entry_id)
        self._forget_conversation(entry.scope, entry.messages)
        self._store.delete_entries([entry.id])
        self._forget_entry(entry.scope, entry.id)
        self._forget_matches()

    def pin(self, caller: str, entry_id: str, *, pinned: bool) -> PinResult:
        """Pin or unpin an entry of the caller's; doing so twice changes nothing. Raises PinLimitError."""
        entry = self._own(caller, entry_id)
        if not self._store.pin_entry(entry.id, pinned=pinned):
            raise _not_there(entry_id)
        stored = self._store.prompt_stored(entry.id)
        kv = (stored.num_stored, stored.size_bytes) if stored is not None else (0, 0)
        return {"id": entry.id, "pinned": pinned, "blocks": kv[0], "bytes": entry.size_bytes + kv[1]}

    def clear(self, caller: str, user: str | None, namespace: str | None, *, keep_pinned: bool = False) -> Cleared:
        """Remove what one sub-user wrote, or all of the caller's sub-users; within one namespace of theirs."""
        users = [user] if user is not None else self.users_of(caller)
        scopes = [user_scope(name, namespace or "").name for name in users]
        shared = global_scope(caller, self._config.cache.allow_global, namespace or "").name
        scopes.append(shared)
        # The store keeps what a shared scope learned as long as others have anything there.
        self._save_scope(shared)
        # Before, so that nothing is written behind the removal; after, for what was queued while it ran.
        for scope in scopes:
            self._forget_turns(scope)
        removed, problem = [], None
        for name in users:
            try:
                removed.append(self._store.clear(user=name, namespace=namespace, keep_pinned=keep_pinned))
            except StoreError as error:  # what can be removed of the others is
                problem = error
        for scope in scopes:
            self._forget_turns(scope)
            self._forget_scope(scope)
        self._forget_matches()
        if problem is not None:
            raise problem
        return {
            "entries": sum(entries for entries, _ in removed),
            "blocks": sum(blocks for _, blocks in removed),
            "pinned": sum(self._store.num_pinned(user=name, namespace=namespace) for name in users),
        }

    def _visible(self, caller: str, entry_id: str) -> Entry:
        entry = self._store.get_entry(entry_id)
        if entry is None or not self._may_see(caller, entry):
            raise _not_there(entry_id)
        return entry

    def _own(self, caller: str, entry_id: str) -> Entry:
        entry = self._visible(caller, entry_id)
        if principal_of(entry.user) != caller:
            raise NotFoundError(f"entry {entry_id!r} belongs to somebody else", param="id")
        return entry

    def _may_see(self, caller: str, entry: Entry) -> bool:
        return principal_of(entry.user) == caller or entry.scope == self._shared_scope(caller)

    def _shared_scope(self, caller: str) -> str | None:
        """The scope whose entries everybody sees, whoever wrote them."""
        allowed = self._config.cache.allow_global
        return global_scope(caller, allowed).name if allowed == "all" else None

    # Statistics

    def stats(self, caller: str) -> Stats:
        mine = [row for row in self._store.usage().users if principal_of(row.user) == caller]
        audited = self._store.decisions.wrong_hits_by_user()
        counts = [audited.get(row.user, (0, 0)) for row in mine]
        return {
            "schema": STATS_SCHEMA,
            "total": self._user_stats(_sum(mine), sum(c[0] for c in counts), sum(c[1] for c in counts)),
            "users": [self._user_stats(row, *count) for row, count in zip(mine, counts, strict=True)],
        }

    def _user_stats(self, row: UserUsage, num_audits: int, num_wrong: int) -> UserStats:
        answer_hits = row.exact + row.semantic
        compute_hits = answer_hits + row.draft + row.prefix
        answered = max(1, compute_hits + row.miss)
        return {
            "user": row.user,
            "requests": row.requests,
            "errors": row.errors,
            "outcomes": row.outcomes,
            "answer_hits": answer_hits,
            "compute_hits": compute_hits,
            "answer_share": answer_hits / answered,
            "compute_share": compute_hits / answered,
            "prompt_tokens": row.prompt_tokens,
            "cached_tokens": row.cached_tokens,
            "completion_tokens": row.completion_tokens,
            "drafted_tokens": row.drafted_tokens,
            "accepted_tokens": row.accepted_tokens,
            "saved_ms": round(row.saved_ms, 1),
            "stored_bytes": {"ram": row.ram_bytes, "disk": row.disk_bytes},
            "quota_bytes": self._config.cache.user_quota_bytes or None,
            "wrong_hits": wrong_hits(num_audits, num_wrong),
        }

    # Upkeep

    def check(self, fix: bool) -> CheckReport:
        result = self._store.check(fix)
        return {
            "ok": result.ok,
            "fixed": result.fixed,
            "entries": result.entries,
            "blocks": result.blocks,
            "bytes": result.size_bytes,
            "problems": [{"kind": p.kind, "id": p.item, "detail": p.detail} for p in result.problems],
        }


def _not_there(entry_id: str) -> NotFoundError:
    return NotFoundError(f"no entry {entry_id!r}; `semcache cache ls` lists them", param="id")


def _summary(entry: Entry) -> EntrySummary:
    return {
        "id": entry.id,
        "user": entry.user,
        "scope": scope_kind(entry.scope),
        "model": entry.model,
        "prompt": entry.prompt,
        "answer": entry.answer,
        "created": iso(entry.created_at),
        "last_used": iso(entry.last_used_at),
        "hits": entry.hits,
        "prompt_tokens": entry.num_prompt_tokens,
        "completion_tokens": entry.num_completion_tokens,
        "size_bytes": entry.size_bytes,
        "pinned": entry.pinned,
    }


def _sum(rows: Sequence[UserUsage]) -> UserUsage:
    counts = [f.name for f in fields(UserUsage) if f.name not in ("user", "first_seen", "last_seen")]
    return UserUsage(user="all", **{name: sum(getattr(row, name) for row in rows) for name in counts})
