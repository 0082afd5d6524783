"""What became of every array of a converted file: mapped, unused or missing; what was assumed; said to the user and kept in the card."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """The table of a conversion; `str()` draws it.

    Attributes:
        file: where the arrays come from.
        layout: the published layout that was recognised, and in which part of the file (`place`).
        model: the network of ours that they make.
        mapped: our arrays that the file gave, with their shapes.
        unused: the file's arrays that the network does without, each with the reason; "" where no reason is known.
        missing: our arrays that the file did not give, each with the reason.
        said: settings that shapes cannot tell, and the published defaults that were taken for them.
        notes: facts about the file.
    """

    file: str
    layout: str
    place: str
    model: str
    mapped: Mapping[str, tuple[int, ...]]
    unused: Mapping[str, str]
    missing: Mapping[str, str]
    said: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def unknown(self) -> list[str]:
        """The file's arrays that nobody knows a reason to leave out."""
        return [key for key, why in self.unused.items() if not why]

    @property
    def whole(self) -> bool:
        """Whether the network is complete and nothing of unknown meaning was left out."""
        return not self.missing and not self.unknown

    def __str__(self) -> str:
        found = f"{self.layout}" + (f" (in {self.place})" if self.place else "")
        lines = [f"{self.file}: recognised as {found}, loaded into {self.model}"]
        lines += [f"  {said}" for said in self.said] + [f"  note: {note}" for note in self.notes]
        lines += _section("mapped", self.mapped, (f"{name}  {shape}" for name, shape in self.mapped.items()))
        lines += _section("unused", self.unused, (f"{key}  ({why or 'unknown'})" for key, why in self.unused.items()))
        lines += _section("missing", self.missing, (f"{name}  ({why})" for name, why in self.missing.items()))
        return "\n".join(lines)

    def for_card(self) -> dict[str, Any]:
        """The same as JSON data for a model card: what was mapped is counted, what was not is named by reason."""
        return {
            "layout": self.layout,
            "place": self.place,
            "mapped": len(self.mapped),
            "unused": _by_reason(self.unused),
            "missing": _by_reason(self.missing),
            "settings": list(self.said),
            "notes": list(self.notes),
        }


def _section(title: str, arrays: Mapping[str, Any], rows: Iterable[str]) -> list[str]:
    """The rows of one kind; those that differ by numbers in their names alone, as blocks do, are one row."""
    counted: dict[str, int] = {}
    for row in rows:
        name, _, rest = row.partition("  ")
        key = f"{_NUMBER.sub('*', name)}  {rest}"
        counted[key] = counted.get(key, 0) + 1
    shown = [f"    {row}{f' × {count}' if count > 1 else ''}" for row, count in list(counted.items())[:_MOST_ROWS]]
    more = [f"    and {len(counted) - _MOST_ROWS} more rows"] if len(counted) > _MOST_ROWS else []
    return [f"  {title}: {len(arrays) or 'none'}", *shown, *more]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names = grouped.setdefault(why or "unknown", [])
        if (short := _NUMBER.sub("*", name)) not in names:
            names.append(short)
    return grouped
