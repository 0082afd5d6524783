"""What the devices of a compiled program send each other: its collectives, read out of XLA's text. Called by `bench.scaling`."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{")
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(-start)?\((.*)")
_CALLS = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)")
_GROUPS = {
    "iota": re.compile(r"replica_groups=\[\d+,(\d+)\]<="),
    "mesh": re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}"),
    "list": re.compile(r"replica_groups=\{\{([\d,]*)\}"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
        bytes: of its result on one device.
        devices: how many take part in one group of it.
        times: how often it runs in one call of the program, loops counted.
    """

    kind: str
    bytes: int
    devices: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends in all of its runs, by the ring algorithms, which send the fewest."""
        others = self.devices - 1
        share = {
            "all-reduce": 2 * others / self.devices,
            "all-gather": others / self.devices,
            "reduce-scatter": float(others),
            "all-to-all": others / self.devices,
            "collective-permute": 1.0,
        }
        return self.times * self.bytes * share[self.kind]


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`) that reach another device; of a condition, those of all branches.

    Raises ValueError for a loop of unknown length, and for asynchronous collectives, as a GPU has them: this reads programs of simulated devices.
    """
    bodies, entry = _computations(text)
    return [each for each in _walk(bodies, entry, 1) if each.devices > 1]


def result_bytes(found: Iterable[Collective]) -> dict[str, int]:
    """Bytes of all results by kind, loops counted."""
    totals: dict[str, int] = {}
    for each in found:
        totals[each.kind] = totals.get(each.kind, 0) + each.times * each.bytes
    return totals


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            lines = bodies[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _walk(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies[name]:
        if found := _COLLECTIVE.search(line):
            if found[3]:
                raise ValueError(f"an asynchronous collective, which this does not read: {line.strip()[:120]}")
            yield Collective(found[2], _size(found[1]), _devices(found[2], found[4]), times)
        elif " while(" in line:
            length, body = re.search(r'known_trip_count":\{"n":"(\d+)"', line), re.search(r"body=%([\w.\-]+)", line)
            if length is None or body is None:
                raise ValueError(f"a loop of unknown length: {line.strip()[:120]}")
            yield from _walk(bodies, body[1], times * int(length[1]))
        else:
            for names in _CALLS.findall(line):
                for called in re.findall(r"%([\w.\-]+)", names):
                    yield from _walk(bodies, called, times)


def _size(shapes: str) -> int:
    """Bytes of `f32[4,16]{1,0}`, or of a tuple of such."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(_BYTES[kind] * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in found)


def _devices(kind: str, rest: str) -> int:
    """Members of one group, in any of the three ways that XLA writes groups."""
    if kind == "collective-permute":
        return 2
    if found := _GROUPS["iota"].search(rest):
        return int(found[1])
    if found := _GROUPS["mesh"].search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := _GROUPS["list"].search(rest):
        return len(found[1].split(","))
    raise ValueError(f"a collective whose groups this cannot read: {rest[:200]}")
