"""A table for rows that come, move and change every second.

Not Textual's DataTable: that one has no flexible columns, inserts only at the end, and its cursor stays at a position
when rows move. Here the cursor belongs to a row key, and only lines that changed are drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

Item = TypeVar("Item")

GUTTER = 2  # cells for the cursor mark
GAP = 1


@dataclass(frozen=True)
class Column:
    """`width` cells, plus a share of what is left if it grows; hidden in tables narrower than `min_table`."""

    key: str
    title: str
    width: int
    grow: int = 0
    right: bool = False
    min_table: int = 0


class LiveTable(ScrollView, Generic[Item], can_focus=True):
    """Items by key under a sticky header, and a cursor that follows its item; on the first row it follows the first.

    `cells` makes the cells of one item, in the order of the columns, and is called for visible rows only.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--header", "table--cursor"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Details", tooltip="The request in full; on a user: their requests", id="table.open"),
        Binding("down,j", "move(1)", "Next row", show=False, id="table.down"),
        Binding("up,k", "move(-1)", "Previous row", show=False, id="table.up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="table.page_down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="table.page_up"),
        Binding("home,g", "first", "First row, and follow it", show=False, id="table.first"),
        Binding("end,G", "last", "Last row", show=False, id="table.last"),
    ]

    class Opened(Message):
        """Enter or a double click on a row."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class HeaderPressed(Message):
        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(
        self, table_columns: Sequence[Column], cells: Callable[[Item], tuple[Content, ...]], *, id: str
    ) -> None:
        super().__init__(id=id)
        self._columns = tuple(table_columns)
        self._cells = cells
        self._items: tuple[Item, ...] = ()
        self._keys: dict[str, int] = {}
        self._widths: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._cursor: str | None = None
        self._follows_first = True
        self._mark = ("", "")
        self._empty = Content("")

    @property
    def cursor_key(self) -> str | None:
        return self._cursor

    @property
    def row_keys(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def mark_sorted(self, column: str, *, descending: bool) -> None:
        """Show in the header by what the rows are ordered."""
        self._mark = (column, "▾" if descending else "▴")
        self.refresh_line(self.scroll_offset.y)

    def show(self, items: Mapping[str, Item], *, empty: Content) -> None:
        """Replace the rows; the cursor and the line on which it stands stay where they are."""
        old_items, old_keys = self._items, self._keys
        self._items, self._keys = tuple(items.values()), {key: index for index, key in enumerate(items)}
        if self._follows_first or self._cursor not in self._keys:
            self._put_cursor(self._nearest(old_keys))
        elif self._cursor in old_keys and self.scroll_offset.y > 0:
            shift = self._keys[self._cursor] - old_keys[self._cursor]
            self.call_after_refresh(self.scroll_to, y=self.scroll_offset.y + shift, animate=False, force=True)
        self.virtual_size = Size(self.scrollable_content_region.width, len(items) + 1)
        if list(old_keys) != list(self._keys) or not empty.is_same(self._empty):
            self._empty = empty
            self.refresh()
            return
        top = self.scroll_offset.y
        for index in range(top, min(top + self.size.height, len(self._items))):
            if old_items[index] != self._items[index]:
                self.refresh_line(index + 1)

    def _nearest(self, old_keys: dict[str, int]) -> str | None:
        """The first row, or what now stands where the cursor's row stood before it went."""
        if not self._keys:
            return None
        gone_from = old_keys.get(self._cursor or "", 0)
        index = 0 if self._follows_first else min(gone_from, len(self._keys) - 1)
        return self.row_keys[index]

    def _put_cursor(self, key: str | None) -> None:
        for moved in (self._cursor, key):
            if moved in self._keys:
                self.refresh_line(self._keys[moved] + 1)
        self._cursor = key

    def _go(self, index: int) -> None:
        if not self._keys:
            return
        index = min(len(self._keys) - 1, max(0, index))
        self._follows_first = index == 0
        self._put_cursor(self.row_keys[index])
        top, visible = self.scroll_offset.y, max(1, self.scrollable_content_region.height - 1)
        if index < top:
            self.scroll_to(y=index, animate=False, force=True)
        elif index >= top + visible:
            self.scroll_to(y=index - visible + 1, animate=False, force=True)

    @property
    def _cursor_index(self) -> int:
        return self._keys.get(self._cursor or "", 0)

    def action_move(self, step: int) -> None:
        self._go(self._cursor_index + step)

    def action_page(self, step: int) -> None:
        self._go(self._cursor_index + step * max(1, self.scrollable_content_region.height - 2))

    def action_first(self) -> None:
        self._go(0)

    def action_last(self) -> None:
        self._go(len(self._keys) - 1)

    def action_open(self) -> None:
        if self._cursor is not None:
            self.post_message(self.Opened(self._cursor))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            start = GUTTER
            for column, width in self._layout():
                if start <= offset.x < start + width:
                    self.post_message(self.HeaderPressed(self._columns[column].key))
                start += width + GAP
            return
        index = self.scroll_offset.y + offset.y - 1
        if index < len(self._keys):
            self._go(index)
            if event.chain == 2:
                self.action_open()

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._keys) + 1)

    # Drawing

    def _layout(self) -> list[tuple[int, int]]:
        """(column, width) of what is shown; columns that grow share what is left."""
        room = self.scrollable_content_region.width - GUTTER
        if self._widths[0] != room:
            shown = [(index, column) for index, column in enumerate(self._columns) if room >= column.min_table]
            left = max(0, room + GAP - sum(column.width + GAP for _index, column in shown))
            shares = sum(column.grow for _index, column in shown)
            widths: list[tuple[int, int]] = []
            for index, column in shown:
                more = left * column.grow // shares if shares else 0
                left, shares = left - more, shares - column.grow
                widths.append((index, column.width + more))
            self._widths = (room, widths)
        return self._widths[1]

    def render_line(self, y: int) -> Strip:
        index = self.scroll_offset.y + y - 1
        if y == 0:
            sorted_by, arrow = self._mark
            titles = [Content(c.title + (arrow if c.key == sorted_by else "")) for c in self._columns]
            return self._strip("  ", titles, "table--header")
        if not self._items:
            return self._empty_line(y)
        if index >= len(self._items):
            return self._draw([], 0)
        cells = self._cells(self._items[index])
        if self.has_focus and self._keys.get(self._cursor or "") == index:
            return self._strip("▸ ", cells, "table--cursor")
        return self._strip("  ", cells)

    def _empty_line(self, y: int) -> Strip:
        lines = self._empty.split("\n")
        first = max(1, (self.scrollable_content_region.height - len(lines)) // 2)
        if not 0 <= y - first < len(lines):
            return self._draw([], 0)
        line = lines[y - first]
        blank = max(0, self.scrollable_content_region.width - line.cell_length) // 2
        return self._draw([Content(" " * blank), line], blank + line.cell_length)

    def _strip(self, gutter: str, cells: Sequence[Content], *component: str) -> Strip:
        parts: list[Content] = [Content(gutter)]
        used = GUTTER
        for index, width in self._layout():
            cell = cells[index].truncate(width, ellipsis=True)
            blank, gap = " " * (width - cell.cell_length), " " * (GAP if used > GUTTER else 0)
            used += len(gap) + width
            right = self._columns[index].right
            parts += [Content(gap + blank), cell] if right else [Content(gap), cell, Content(blank)]
        return self._draw(parts, used, *component)

    def _draw(self, parts: Sequence[Content], used: int, *component: str) -> Strip:
        """One line in the style of a component, filled up to the width of the table."""
        width = self.scrollable_content_region.width
        content = Content("").join([*parts, Content(" " * max(0, width - used))])
        return Visual.to_strips(self, content, width, 1, self.get_visual_style(*component))[0]
