"""An interpreter of pickle's instructions that can only put data together: it imports nothing and calls no object that a file names.

What a file names ("module name") is handed as text to `Rules`, which decide what it stands for or refuse. `archive` and `legacy` run it.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

from jaxseg.errors import CheckpointError

MOST_BYTES = 64 << 20
"""Of one pickle. That of a whole training state (weights, optimizer, logs) stays under 5 MB, since the numbers lie outside of it."""
MOST_STEPS = 2_000_000
"""Instructions in one pickle; each makes one object at most, so this bounds memory (to about 0.3 GB) as well as time."""
_LONGEST_INT = 16
_LONGEST_KEY = 16
_HIGHEST_PROTOCOL = 5


class Rules(Protocol):
    """What a pickle may name and build. Every method raises CheckpointError to refuse."""

    def find(self, module: str, name: str) -> Any:
        """The inert stand-in of a named object."""
        ...

    def call(self, function: Any, arguments: tuple) -> Any:
        """What a call of the stand-in `function` stands for."""
        ...

    def build(self, made: Any, state: Any) -> None:
        """Give `made` its state, in place."""
        ...

    def persistent(self, identity: Any) -> Any:
        """What an identity that lies outside of the pickle stands for."""
        ...


class PickleMachine:
    """Runs one pickle of `data` (bytes) from `start`; `position` is then behind it.

    Raises CheckpointError, with `where` in front, for anything that is cut off, malformed, too large, or that `rules` refuse.
    """

    def __init__(self, data: Any, rules: Rules, where: str, start: int = 0):
        self.position = start
        self._data, self._rules, self._where, self._start = data, rules, where, start
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes."""
        for _ in range(MOST_STEPS):
            code = self._take(1)[0]
            if code == ord("."):
                return self._pop()
            if code not in _INSTRUCTIONS:
                raise self._broken(f"instruction {bytes([code])!r} at byte {self.position - 1}, which torch.save never writes")
            _INSTRUCTIONS[code](self)
        raise self._broken(f"more than {MOST_STEPS} instructions: too large for a checkpoint's description")

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: not a usable pickle: {what}. Nothing of it was executed; get the file from its source again"
        )

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise self._broken("it ends in the middle (the file is cut off?)")
        if end - self._start > MOST_BYTES:
            raise self._broken(f"it is longer than {MOST_BYTES >> 20} MiB, too large for a checkpoint's description")
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        for length in range(1024):
            if self._take(1) == b"\n":
                self.position -= length + 1
                line = self._text(length, "utf-8")
                self.position += 1
                return line
        raise self._broken("a name of more than 1024 characters")

    def _text(self, length: int, encoding: str = "utf-8") -> str:
        # torch's own strings are UTF-8; a lone surrogate in a file's name is kept rather than refused, as pickle does.
        raw = self._take(length)
        try:
            return raw.decode(encoding, "surrogatepass")
        except UnicodeDecodeError:
            raise self._broken("a text that is not UTF-8") from None

    def _pop(self) -> Any:
        if not self._stack:
            raise self._broken("it takes more from its stack than it put there")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise self._broken(f"it fills a {kind.__name__} where there is none")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._below:
            raise self._broken("it takes more from its stack than it put there")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def _long(self, length: int) -> None:
        if not 0 <= length <= _LONGEST_INT:
            raise self._broken(f"a whole number of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _remember(self, place: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[place] = value

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise self._broken("it recalls an object that it never made")
        self._push(self._memo[place])

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise self._broken("a dictionary with a key that has no value")
        for key, value in zip(items[::2], items[1::2]):
            target[self._key(key)] = value

    def _add_items(self, items: list[Any]) -> None:
        self._top(set).update(self._key(item) for item in items)

    def _key(self, key: Any) -> Any:
        parts = key if type(key) is tuple and len(key) <= _LONGEST_KEY else (key,)
        if not all(is_plain_key(part) for part in parts):
            raise self._broken(f"a {type(key).__name__} as the key of a dictionary or a member of a set")
        return key

    def _name(self) -> None:
        self._push(self._rules.find(self._line(), self._line()))

    def _name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._broken("it names an object by something other than text")
        self._push(self._rules.find(module, name))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise self._broken("a call whose arguments are no tuple")
        self._push(self._rules.call(function, arguments))

    def _build(self) -> None:
        state, made = self._pop(), self._pop()
        self._rules.build(made, state)
        self._push(made)

    def _protocol(self) -> None:
        if (found := self._number("<B")) > _HIGHEST_PROTOCOL:
            raise self._broken(f"pickle protocol {found}; known are those up to {_HIGHEST_PROTOCOL}")


def is_plain_key(value: Any) -> bool:
    """Whether a value may be a key. Others could make hashing endless (tuples in tuples) or collide on purpose (huge integers)."""
    return type(value) in (str, bytes, bool, float, type(None)) or (type(value) is int and abs(value) < 1 << 60)


_INSTRUCTIONS: dict[int, Callable[[PickleMachine], object]] = {
    ord(code) if isinstance(code, str) else code: instruction
    for code, instruction in {
        0x80: PickleMachine._protocol,
        0x95: lambda m: m._number("<Q"),
        "(": PickleMachine._mark,
        "0": lambda m: m._pop(),
        "1": lambda m: m._pop_mark(),
        "N": lambda m: m._push(None),
        0x88: lambda m: m._push(True),
        0x89: lambda m: m._push(False),
        "J": lambda m: m._push(m._number("<i")),
        "K": lambda m: m._push(m._number("<B")),
        "M": lambda m: m._push(m._number("<H")),
        0x8A: lambda m: m._long(m._number("<B")),
        0x8B: lambda m: m._long(m._number("<i")),
        "G": lambda m: m._push(m._number(">d")),
        "X": lambda m: m._push(m._text(m._number("<I"))),
        0x8C: lambda m: m._push(m._text(m._number("<B"))),
        0x8D: lambda m: m._push(m._text(m._number("<Q"))),
        # Python 2 wrote its byte strings so; in checkpoints they are names and texts.
        "U": lambda m: m._push(m._text(m._number("<B"), "latin-1")),
        "T": lambda m: m._push(m._text(m._number("<I"), "latin-1")),
        "B": lambda m: m._push(m._take(m._number("<I"))),
        "C": lambda m: m._push(m._take(m._number("<B"))),
        0x8E: lambda m: m._push(m._take(m._number("<Q"))),
        0x96: lambda m: m._push(m._take(m._number("<Q"))),  # of a bytearray, which numpy writes
        "]": lambda m: m._push([]),
        "}": lambda m: m._push({}),
        ")": lambda m: m._push(()),
        0x8F: lambda m: m._push(set()),
        "l": lambda m: m._push(m._pop_mark()),
        "t": lambda m: m._push(tuple(m._pop_mark())),
        0x85: lambda m: m._tuple(1),
        0x86: lambda m: m._tuple(2),
        0x87: lambda m: m._tuple(3),
        0x91: lambda m: m._push(frozenset(m._key(item) for item in m._pop_mark())),
        "a": lambda m: m._append([m._pop()]),
        "e": lambda m: m._append(m._pop_mark()),
        "s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m._set_items(m._pop_mark()),
        0x90: lambda m: m._add_items(m._pop_mark()),
        "q": lambda m: m._remember(m._number("<B")),
        "r": lambda m: m._remember(m._number("<I")),
        0x94: lambda m: m._remember(len(m._memo)),
        "h": lambda m: m._recall(m._number("<B")),
        "j": lambda m: m._recall(m._number("<I")),
        "c": PickleMachine._name,
        0x93: PickleMachine._name_on_stack,
        "Q": lambda m: m._push(m._rules.persistent(m._pop())),
        "R": PickleMachine._call,
        0x81: PickleMachine._call,
        "b": PickleMachine._build,
    }.items()
}
"""Protocols 2 to 5 without calls by keyword, registered extensions and buffers outside of the pickle; the text forms of protocol 0 are out."""
