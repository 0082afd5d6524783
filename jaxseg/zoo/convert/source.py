"""What every converter meets in: a peer's arrays that remember which were used, the settings that shapes cannot tell, and the result.

The converters beside this file use it; `zoo.convert` and `zoo.pretrained` hand it in and print what came of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError, ConfigError


class Source:
    """A peer's `state_dict` as numpy arrays by name; `source[key]` gives an array and notes that it was used, and for what.

    Raises CheckpointError for a key that is not there, naming the `layout` that expects it.
    """

    def __init__(self, state: Mapping[str, np.ndarray], layout: str):
        self.state, self.layout = state, layout
        self.used: set[str] = set()
        self.ignored: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.state:
            raise CheckpointError(
                f"not a {self.layout}: {key} is missing among its {len(self.state)} arrays (starting with {min(self.state, default='')})"
            )
        self.used.add(key)
        return np.asarray(self.state[key])

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of an array, without noting it as used. CheckpointError if it is not there."""
        if key not in self.state:
            raise CheckpointError(f"not a {self.layout}: {key} is missing among its {len(self.state)} arrays")
        return tuple(self.state[key].shape)

    def ignore(self, matches: Callable[[str], bool], why: str) -> None:
        """Say of the arrays whose name `matches` that the network has no use for them, and why."""
        self.ignored |= {key: why for key in self.state if key not in self.used and matches(key)}

    def unknown(self) -> list[str]:
        """Arrays that were neither used nor said to be of no use."""
        return sorted(key for key in self.state if key not in self.used and key not in self.ignored)

    def check_all_used(self) -> None:
        """CheckpointError if the file holds arrays that this layout has no place for."""
        if left := self.unknown():
            raise CheckpointError(f"not a {self.layout}: {len(left)} arrays have no place here, among them {left[:5]}")


class Settings:
    """What shapes cannot tell (heads, window, image size): given by the user, else the published default, which is then said aloud."""

    def __init__(self, given: Mapping[str, Any] | None = None):
        self.given, self.said = dict(given or {}), []
        self._asked: set[str] = set()

    def take(self, name: str, default: Any, why: str) -> Any:
        """The given value of `name`, or `default`; `why` says where the default comes from."""
        self._asked.add(name)
        if name in self.given:
            return self.given[name]
        self.said.append(f"{name} = {default} ({why}; --set {name}=… changes it)")
        return default

    def need(self, name: str, why: str) -> Any:
        """The given value of `name`. ConfigError if it was not given: there is no default that would be right."""
        self._asked.add(name)
        if name not in self.given:
            raise ConfigError(f"{name} cannot be told from the arrays ({why}): give it with --set {name}=…")
        return self.given[name]

    def check_all_asked(self) -> None:
        """ConfigError if a setting was given that the converter has no use for."""
        if left := sorted(set(self.given) - self._asked):
            raise ConfigError(f"--set {left[0]}: this checkpoint has no such setting; known: {', '.join(sorted(self._asked)) or 'none'}")


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network of ours with a peer's arrays.

    Attributes:
        config: a frozen config of `jaxseg.models`, from which the zoo builds the network.
        arrays: by the names of `zoo.names`. A file that holds only a part of the network (an encoder) gives only that part.
        missing: what of the network the file does not hold, and why, by name prefix; empty for a whole network.
        notes: facts that the user should see (token order found, norm folded, …).
        card: fields of the model card that the layout settles, such as `axes` where they are not x, y, z.
    """

    config: Any
    arrays: dict[str, np.ndarray]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    card: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published key layout. Each converter module has one or several, in its tuple `LAYOUTS`.

    Attributes:
        name: as the field calls it, such as "MONAI SwinUNETR".
        recognise: from names and shapes alone, whether a state (wrappers' prefixes taken off) is of this layout. Exactly one must say yes.
        convert: Source and Settings to Converted.
    """

    name: str
    recognise: Callable[[Mapping[str, tuple[int, ...]]], bool]
    convert: Callable[[Source, Settings], Converted]


def whole_number(name: str, value: Any) -> int:
    """The value of a setting that counts something. ConfigError if it is no whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1 (--set {name}=…)")
    return value


def kernel(weight: np.ndarray) -> np.ndarray:
    """Torch's convolution (out, in, x, y, z) as ours (x, y, z, in, out)."""
    return weight.transpose(2, 3, 4, 1, 0)


def transposed_kernel(weight: np.ndarray) -> np.ndarray:
    """Torch's transposed convolution (in, out, x, y, z) as ours (x, y, z, in, out)."""
    return weight.transpose(2, 3, 4, 0, 1)


def linear(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    """`theirs.weight` (out, in) and, where there is one, `theirs.bias` as `ours.kernel` (in, out) and `ours.bias`."""
    arrays = {f"{ours}.kernel": source[f"{theirs}.weight"].T}
    return arrays | ({f"{ours}.bias": source[f"{theirs}.bias"]} if f"{theirs}.bias" in source else {})


def norm(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    """`theirs.weight` and `theirs.bias` of a norm as `ours.scale` and `ours.bias`."""
    return {f"{ours}.scale": source[f"{theirs}.weight"], f"{ours}.bias": source[f"{theirs}.bias"]}
