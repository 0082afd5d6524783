"""Warnings of a command as lines of its own, without the line of source that raised them. Used by the programs: `cli`, studies, `restore_overflow`."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """While it lasts a warning is written as `PROGRAM: warning: MESSAGE`; whoever records or filters warnings sees them as ever."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_named: f"{program}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
