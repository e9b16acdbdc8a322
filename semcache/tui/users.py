"""For whom: one row per user since the data directory was made, busiest first."""

from __future__ import annotations

from textual.content import Content

from semcache.tui import units
from semcache.tui.live_table import Column, LiveTable
from semcache.wire.status import Stats, UserStats

USER_COLUMNS = (
    Column("user", "user", 12, grow=1),
    Column("requests", "requests", 8, right=True),
    Column("answers", "answers", 8, right=True),
    Column("compute", "compute", 8, right=True),
    Column("cached", "cached tok", 10, right=True, min_table=58),
    Column("saved", "saved", 8, right=True),
    Column("stored", "stored", 8, right=True),
    Column("quota", "quota", 8, right=True, min_table=90),
)


class UsersTable(LiveTable[UserStats]):
    def __init__(self) -> None:
        super().__init__(USER_COLUMNS, _cells, id="users")
        self.border_title = "Users · all time"

    def show_users(self, stats: Stats) -> None:
        nobody = Content.styled("nobody has asked yet", ".faint")
        self.show({user["user"]: user for user in busiest_first(stats)}, empty=nobody)


def busiest_first(stats: Stats) -> list[UserStats]:
    return sorted(stats["users"], key=lambda user: (-user["requests"], user["user"]))


def user_cells(user: UserStats) -> tuple[str, ...]:
    """In the order of the columns."""
    return (
        user["user"],
        units.count(user["requests"]),
        units.percent(user["answer_share"] if user["requests"] else None),
        units.percent(user["compute_share"] if user["requests"] else None),
        units.count(user["cached_tokens"]),
        units.seconds(user["saved_ms"] / 1e3),
        # RAM holds copies of what lies on disk, so the tiers do not add up.
        units.size(max(user["stored_bytes"].values(), default=0)),
        units.size(user["quota_bytes"]) if user["quota_bytes"] is not None else units.UNKNOWN,
    )


def _cells(user: UserStats) -> tuple[Content, ...]:
    return tuple(Content(text) for text in user_cells(user))
