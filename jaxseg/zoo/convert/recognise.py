"""Which published layout a file of weights has: wrappers and prefixes taken off, then every converter is asked. Called by `zoo.pretrained`."""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.zoo.convert.source import Layout, Settings

CONVERTERS = ("monai_unetr", "monai_vit", "monai_swin", "monai_convnets", "nnssl_primus", "nnunet_unet", "cinema")
"""The modules of this package that have LAYOUTS."""
_WRAPPERS = ("network_weights", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "student", "teacher")
"""Keys under which files keep their arrays, the most telling first."""
_PREFIXES = ("module", "_orig_mod", "model", "net", "network", "backbone", "student", "teacher", "params", "ema")
"""What wrapping modules put before every name."""
_PLAN = "nnssl_adaptation_plan"
_DEEPEST = 4

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A file whose layout is known.

    Attributes:
        layout: the one that said yes.
        state: its arrays, by names without wrappers and prefix.
        place: where in the file they were, such as "state_dict, module."; empty for a bare dictionary.
        outside: arrays of the file without that prefix, and why they are not in `state` (None: nobody knows).
        plan: nnssl's adaptation plan, where the file has one.
    """

    layout: Layout
    state: State
    place: str
    outside: dict[str, str | None]
    plan: Any


def published_layouts() -> list[Layout]:
    """The layouts of all converters."""
    return [layout for name in CONVERTERS for layout in importlib.import_module(f"jaxseg.zoo.convert.{name}").LAYOUTS]


def recognise(content: Any, settings: Settings, where: str, layouts: Iterable[Layout]) -> Recognised:
    """The layout of a loaded file, as plain data with arrays in it.

    Settings: `branch` where one file holds several networks of equal rank (student and teacher), `wrapper` where several of its dictionaries
    hold arrays and none has a usual name. Raises CheckpointError if no layout, or more than one, says yes.
    """
    state, wrappers = find_state(content, settings, where)
    plan = content.get(_PLAN) if isinstance(content, dict) else None
    layouts = list(layouts)
    for prefixes in _levels(state):
        found = {prefix: (inside, yes) for prefix in prefixes if (yes := _matches(layouts, inside := _below(state, prefix)))}
        if found:
            prefix = _choose(found, settings)
            inside, yes = found[prefix]
            if len(yes) > 1:
                raise CheckpointError(
                    f"{where}: its arrays fit several layouts ({', '.join(layout.name for layout in yes)}), so that none can be "
                    "trusted; keep only the network's own arrays in the file"
                )
            outside = {key: _why_outside(key, prefix, found) for key in state if not key.startswith(prefix)}
            return Recognised(yes[0], inside, ", ".join([*wrappers, *([prefix] if prefix else [])]), outside, plan)
    keys = sorted(state)
    raise CheckpointError(
        f"{where}: {len(state)} arrays in no layout that jaxseg knows. Looked for: {', '.join(layout.name for layout in layouts)}. "
        f"Found names such as {', '.join(key[:80] for key in keys[:6])}. For arrays in jaxseg's own names give the model's name (--model)"
    )


def find_state(content: Any, settings: Settings, where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The dictionary of arrays in a file, and the keys that led to it. CheckpointError if there is none."""
    path: list[str] = []
    while len(path) <= _DEEPEST and isinstance(content, dict):
        inner = {key: value for key, value in content.items() if isinstance(key, str) and _holds_arrays(value)}
        usual = [key for key in _WRAPPERS if key in inner]
        own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
        if own and not usual:
            return own, path
        if not inner:
            break
        key = _choose_wrapper(usual, list(inner), settings)
        path.append(key)
        content = content[key]
    held = (
        f"a dictionary with {[str(key)[:40] for key in list(content)[:8]]}" if isinstance(content, dict) else f"a {type(content).__name__}"
    )
    raise CheckpointError(f"{where}: no dictionary of named arrays (state_dict) in this file; found {held}")


def _choose_wrapper(usual: list[str], others: list[str], settings: Settings) -> str:
    if {"student", "teacher"} <= set(usual) and usual[0] == "student":
        key = settings.take("branch", "student", "the file holds student and teacher")
    elif usual or len(others) == 1:
        return (usual or others)[0]
    else:
        key = settings.need("wrapper", f"arrays are under {', '.join(others[:8])}")
    if key not in others:
        raise ConfigError(f"{key!r} is not among {', '.join(others[:8])}, the dictionaries of arrays in this file")
    return key


def _holds_arrays(value: Any) -> bool:
    level, seen = {id(value): value} if isinstance(value, dict) else {}, set[int]()
    for _ in range(_DEEPEST):
        items = [(key, inner) for each in level.values() for key, inner in each.items() if isinstance(key, str)]
        if any(isinstance(inner, np.ndarray) for _, inner in items):
            return True
        seen |= level.keys()
        level = {id(inner): inner for _, inner in items if isinstance(inner, dict) and id(inner) not in seen}
    return False


def _levels(state: State) -> Iterable[list[str]]:
    """Prefixes that the network's names may have: none, then one word that is known, then two, …"""
    level = [""]
    for _ in range(_DEEPEST):
        yield level
        firsts = {prefix: {key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)} for prefix in level}
        level = [f"{prefix}{word}." for prefix in level for word in _PREFIXES if word in firsts[prefix]]


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _matches(layouts: list[Layout], state: State) -> list[Layout]:
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    return [layout for layout in layouts if layout.recognise(shapes)]


def _choose(found: Mapping[str, Any], settings: Settings) -> str:
    if len(found) == 1:
        return next(iter(found))
    known = {prefix.rstrip(".").rpartition(".")[2]: prefix for prefix in found}
    wanted = settings.take("branch", next(iter(known)), f"the file holds {', '.join(known)}")
    if wanted not in known:
        raise ConfigError(f"branch is {wanted!r}; this file holds {', '.join(known)}")
    return known[wanted]


def _why_outside(key: str, chosen: str, found: Mapping[str, Any]) -> str | None:
    other = next((prefix for prefix in found if prefix != chosen and key.startswith(prefix)), None)
    return f"of {other.rstrip('.')}, another network in the file" if other else None
