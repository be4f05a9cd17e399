"""How the command line shows things: tables that fit the width, notes under them, JSON.

Nothing here decides anything; next to `cli` (the commands) and `cli_input` (what they are given).
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from featurekit_dagster.intervals import Interval, IntervalSet, as_utc, format_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SHOWN_INTERVALS = 5
SHOWN_CHARACTERS = 40
_NEVER = 9999

_STYLES = {
    "SUCCESS": "green",
    "PRESENT": "green",
    "RUNNING": "cyan",
    "FAILURE": "red",
    "ERROR": "red",
    "MISSING_DATA": "yellow",
    "UNKNOWN": "yellow",
}


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on the present standard output or error; colours only where that is a terminal."""
    from rich.console import Console

    return Console(
        file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def print_json(value: Any) -> None:
    """Print a value as indented JSON; times as ISO text, bytes as hex, NaN and infinities as text."""
    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Interval):
        end = None if is_endless(value) else format_time(value.end)
        return {"start_time": format_time(value.start), "end_time": end}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return str(value)


def cell(value: Any) -> str:
    """Return a value as a table shows it: empty for None, floats to six digits, numbers with separators."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:,.6g}"
        return text + ".0" if re.fullmatch(r"-?[\d,]+", text) else text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return short_time(value)
    if isinstance(value, Interval):
        return short_interval(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def short_time(time: datetime) -> str:
    """Return the date alone for midnight UTC, else the time to the minute or second."""
    return to_the_second(time).removesuffix("T00:00Z")


def to_the_second(time: datetime) -> str:
    """Return a time to the minute or second, as people read it; what is less than a second is left out."""
    return format_time(time.replace(microsecond=0))


def is_endless(interval: Interval) -> bool:
    """Tell whether an interval is that of a stream, which has no end."""
    return interval.end.year == _NEVER


def short_interval(interval: Interval) -> str:
    """Return `[start, end)`, as dates where both are midnight UTC; without an end that of a stream."""
    if is_endless(interval):
        return f"[{format_time(interval.start)}, ...)"
    if all(time == as_utc(time).replace(hour=0, minute=0, second=0, microsecond=0) for time in _ends(interval)):
        return f"[{short_time(interval.start)}, {short_time(interval.end)})"
    ends = [to_the_second(time) for time in _ends(interval)]
    return str(interval) if ends[0] == ends[1] else f"[{ends[0]}, {ends[1]})"


def short_intervals(intervals: IntervalSet) -> str:
    """Return the first intervals of a set and how many more there are."""
    shown = [short_interval(interval) for interval in intervals.intervals[:SHOWN_INTERVALS]]
    more = len(intervals) - SHOWN_INTERVALS
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "") or "nothing"


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    >>> count_of(1, "query", "queries"), count_of(1200, "job")
    ('1 query', '1,200 jobs')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def print_table(
    console: Console, titles: Sequence[str], rows: Sequence[Sequence[Any]], total: Sequence[Any] | None = None
) -> None:
    """Print rows as a table.

    Where that is wider than the console, the first cell gets a line of its own; where that is too wide as well, every
    cell does. Columns that hold only numbers are aligned to the right. Nothing is cut off or wrapped inside a cell.

    Args:
        console: Where to print.
        titles: One per column.
        rows: Cells; see `cell` for how values look.
        total: A last row under a line.
    """
    table = _table(titles, rows, total)
    if _width(console, table) <= console.width:
        console.print(table)
    else:
        lines = _stacked(titles, rows, total)
        if max(line.cell_len for line in lines) > console.width:
            lines = _blocks(titles, [*rows, *([total] if total else [])])
        for line in lines:
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def print_frame(console: Console, names: Sequence[str], types: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print the first rows of a frame; where they are too wide, a line per column with as many rows as fit.

    Args:
        console: Where to print.
        names: Column names.
        types: Column types.
        rows: The first rows, a value per column.
    """
    cells = [[value_text(value) for value in row] for row in rows]
    raw = [[value if _is_number(value) else value_text(value) for value in row] for row in rows]
    if _width(console, _table(names, raw, None)) <= console.width:
        print_table(console, names, raw)
        return
    for count in range(len(rows), -1, -1):
        titles = ("Column", "Type", *(f"Row {number}" for number in range(1, count + 1)))
        lines = [(n, t, *(row[i] for row in cells[:count])) for i, (n, t) in enumerate(zip(names, types, strict=True))]
        if count == 0 or _width(console, _table(titles, lines, None)) <= console.width:
            print_table(console, titles, lines)
            return


def value_text(value: Any) -> str:
    """Return a feature value for a table: at most 40 characters, control characters escaped."""
    text = cell(value)
    text = text if text.isprintable() else json.dumps(text)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def print_notes(
    console: Console, notes: Sequence[tuple[str, str]], *, title: str | None = None, style: str = ""
) -> None:
    """Print an empty line, the title and `subject: text` paragraphs, later lines indented; without notes nothing."""
    from rich.text import Text

    if notes:
        console.print()
    if notes and title is not None:
        print_line(console, title, style="bold")
    for subject, text in notes:
        lines = textwrap.wrap(
            f"{subject}: {text}",
            width=max(console.width - 1, 40),
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        paragraph = Text("\n".join(lines), style=style, no_wrap=True, overflow="ignore")
        paragraph.stylize("bold", 2, 3 + len(subject))
        console.print(paragraph, no_wrap=True, overflow="ignore", crop=False)


def print_line(console: Console, text: str, *, style: str = "", indent: str = "") -> None:
    """Print a sentence, wrapped at words, every line after `indent`, later ones twice as far."""
    lines = textwrap.wrap(
        text,
        max(console.width - 1, 40),
        initial_indent=indent,
        subsequent_indent=2 * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines or [""]:
        console.print(line, style=style, no_wrap=True, overflow="ignore", crop=False)


def _width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(width=100_000)).maximum


def _ends(interval: Interval) -> tuple[datetime, datetime]:
    return interval.start, interval.end


def _is_number(value: Any) -> bool:
    """Tell whether a cell is a number, or the text of one, or empty."""
    if isinstance(value, str):
        return re.fullmatch(r"-?[\d,]+(\.\d+)?", value) is not None
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], total: Sequence[Any] | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look = box.SIMPLE_HEAD if total is None else box.SIMPLE
    table = Table(box=look, show_footer=total is not None, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for position, title in enumerate(titles):
        numbers = bool(rows) and all(_is_number(row[position]) for row in rows)
        footer = cell(total[position]) if total else ""
        table.add_column(title, justify="right" if numbers else "left", no_wrap=True, overflow="crop", footer=footer)
    for row in rows:
        texts = [cell(value) for value in row]
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in texts))
    return table


def _stacked(titles: Sequence[str], rows: Sequence[Sequence[Any]], total: Sequence[Any] | None) -> list[Text]:
    """Return the lines of a table in which each row's first cell stands above the others."""
    from rich.text import Text

    everything = [titles, *rows, *([total] if total else [])]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(1, len(titles))]
    split = [[cell(value).split("\n") for value in row[1:]] for row in everything]
    widths = [max(len(text) for row in split for text in row[i]) for i in range(len(titles) - 1)]
    rule = "\u2500" * (2 + sum(widths) + 2 * (len(widths) - 1))
    lines = []
    for number, (row, cells) in enumerate(zip(everything, split, strict=True)):
        bold = "bold" if row is titles or row is total else ""
        if row is total or number == 1:
            lines.append(Text(rule))
        lines.append(Text(cell(row[0]), style="bold"))
        for texts in zip_longest(*cells, fillvalue=""):
            line = Text(" ", style=bold)
            for text, width, is_number in zip(texts, widths, numeric, strict=True):
                line.append(" " if line.cell_len == 1 else "  ")
                line.append(text.rjust(width) if is_number else text.ljust(width), style=_STYLES.get(text, bold))
            lines.append(line)
    return lines


def _blocks(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Text]:
    """Return every row as its first cell and a line per further cell."""
    from rich.text import Text

    lines, width = [], max(len(title) for title in titles[1:])
    for row in rows:
        lines.append(Text(cell(row[0]), style="bold"))
        for title, value in zip(titles[1:], row[1:], strict=True):
            for number, text in enumerate(cell(value).split("\n") if value not in (None, "") else ()):
                line = Text(f"  {title if number == 0 else '':<{width}}  ", style="dim")
                lines.append(line.append(text, style=_STYLES.get(text, "not dim")))
    return lines
