"""Progress of long work: a bar on a terminal, and in a log file a line now and then."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Seconds between two lines: a twentieth of the time so far, within these bounds.
SHORTEST, LONGEST = 30.0, 600.0


class Bar(Protocol):
    """What :func:`progress` gives; to be used as a context manager."""

    def update(self, n: int) -> Any: ...
    def set_postfix(self, **values: Any) -> Any: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> Any: ...


def progress(
    title: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    shown: bool = True,
    scaled: bool = True,
    leave: bool = False,
) -> Bar:
    """A bar on stderr, or where that is no terminal, lines without end in a log.

    Args:
        title: says what is done, of which run; runs side by side write into one log.
        total: None: not known.
        done: of it, before now: it does not count as speed.
        shown: of several ranks, one shows what all do.
        scaled: large numbers in thousands and millions.
        leave: whether the terminal keeps the bar at the end.
    """
    if not shown or sys.stderr.isatty():
        return tqdm(
            desc=title,
            total=total,
            unit=unit,
            initial=done,
            unit_scale=scaled,
            leave=leave,
            disable=not shown,
            mininterval=0.5,
        )
    return _Lines(title, total, unit, done, scaled)


def counted(items: Sequence[T], title: str, unit: str) -> Iterator[T]:
    """The items, one after the other, with their progress."""
    with progress(title, len(items), unit, scaled=False) as bar:
        for item in items:
            yield item
            bar.update(1)


def say(text: str) -> None:
    """Print a line between bars."""
    tqdm.write(text)


class _Lines:
    """A line on stderr now and then; nothing of work that is done sooner."""

    def __init__(self, title: str, total: int | None, unit: str, done: int, scaled: bool) -> None:
        self.title, self.total, self.unit, self.scaled = title, total, unit, scaled
        self.first = self.done = done
        self.start = self.last = time.monotonic()
        self.postfix = ""

    def update(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= min(max((now - self.start) / 20, SHORTEST), LONGEST):
            self.last = now
            print(self._line(now - self.start), file=sys.stderr, flush=True)

    def set_postfix(self, **values: Any) -> None:
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def _line(self, seconds: float) -> str:
        count = tqdm.format_sizeof if self.scaled else str
        speed = (self.done - self.first) / seconds
        text = f"{self.title}: {count(self.done)}"
        if self.total is not None:
            text += f"/{count(self.total)} {self.unit} ({self.done / self.total:.0%})"
        text += f", {count(round(speed, 1))} {self.unit}/s{self.postfix}"
        if self.total is not None and speed:
            text += f", {tqdm.format_interval((self.total - self.done) / speed)} left"
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass
