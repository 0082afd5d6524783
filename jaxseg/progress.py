"""Progress on the terminal: a rich bar with the time left, or a line now and then where there is no terminal. Used by the command line."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """What whoever does the work calls: so many done, of so many, and perhaps the one in hand."""

    def __call__(self, done: int, total: int, what: str = "") -> None: ...


@contextlib.contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Show `title` with a bar; yields the function that whoever does the work calls."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:22s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None)

        def show(done: int, total: int, what: str = "") -> None:
            bars.update(task, completed=done, total=total)

        yield show


def _lines(title: str, every: float = 10.0) -> Progress:
    start = last = time.monotonic()

    def show(done: int, total: int, what: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < every:
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        text = f"{title}: {done} of {total}" + (f", about {left:.0f} s left" if done < total else f", {now - start:.0f} s")
        with contextlib.suppress(BrokenPipeError):  # nobody reads it any more; the work goes on
            print(text, file=sys.stderr, flush=True)

    return show
