"""Config files: a short Python file that builds one frozen dataclass named `config`, overridden on the command line by tyro.

Used by `pretrain` and `finetune`. A config file is trusted code, like any script; what a run stores and reads back is JSON (`as_json`, `from_json`).
"""

import dataclasses
import importlib.util
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxseg.errors import ConfigError

C = TypeVar("C")


def config_folders(kind: str) -> list[Path]:
    """Where configs named without a path are looked for: the checkout's `configs/KIND`, and the package data of an installed wheel."""
    package = importlib.util.find_spec("pretrain" if kind == "pretrain" else "finetune")
    assert package is not None and package.origin is not None
    home = Path(package.origin).parent
    return [folder for folder in (home.parent / "configs" / kind, home / "configs" / kind) if folder.is_dir()]


def list_configs(kind: str) -> dict[str, Path]:
    """Name → file of every shipped config of `kind` ("pretrain", "finetune" or "few_label")."""
    return {path.stem: path for folder in reversed(config_folders(kind)) for path in sorted(folder.glob("*.py"))}


def load_config(spec: str, kind: str, expected: type[C], arguments: Sequence[str] = ()) -> C:
    """The config that `spec` names (a shipped name or a path), with command-line overrides such as `--optim.lr 3e-4` applied.

    Raises:
        ConfigError: no such config, or the file does not build a `config` of the expected type. A mistyped override ends in
            tyro's own message ("perhaps you meant") and exit code 2.
    """
    import tyro

    config = _read(_find(spec, kind), kind, expected)
    # A field that takes one of several dataclasses keeps that of the file; its fields stay options, and are not a subcommand's.
    return tyro.cli(expected, default=config, args=list(arguments), prog=f"jaxseg {kind} {spec}", config=(tyro.conf.AvoidSubcommands,))


def _find(spec: str, kind: str) -> Path:
    if spec.endswith(".py"):
        if not Path(spec).is_file():
            raise ConfigError(f"{spec}: no such config file")
        return Path(spec)
    known = list_configs(kind)
    if spec not in known:
        import difflib

        close = difflib.get_close_matches(spec, known, n=1)
        hint = f"; perhaps you meant {close[0]!r}" if close else ""
        raise ConfigError(
            f"there is no {kind} config {spec!r}{hint}. Shipped: {', '.join(sorted(known)) or 'none'}; or give the path of a .py file"
        )
    return known[spec]


def _read(path: Path, kind: str, expected: type[C]) -> C:
    """What a file calls `config`, or, where one file serves several programs (`jaxseg plan`), what it calls by the name of this one."""
    spec = importlib.util.spec_from_file_location("jaxseg_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is a script: whatever it raises is the user's to mend
        raise ConfigError(f"{path}: this config does not build: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", getattr(module, kind, None))
    if not isinstance(config, expected):
        raise ConfigError(f"{path}: expected a variable `config` or `{kind}` of type {expected.__name__}, found {type(config).__name__}")
    return config


def as_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON data (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[C], value: dict[str, Any]) -> C:
    """The inverse of `as_json` for (nested) dataclasses.

    Raises:
        ConfigError: a field that `kind` does not have.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - fields)
    if unknown:
        raise ConfigError(f"{kind.__name__} has no field {', '.join(unknown)}; it has: {', '.join(sorted(fields))}")
    return kind(**{name: _restore(hints[name], item) for name, item in value.items()})


def _restore(hint: Any, value: Any) -> Any:
    options = (
        [o for o in typing.get_args(hint) if o is not type(None)] if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    )
    if value is None:
        return None
    kinds = [option for option in options if dataclasses.is_dataclass(option)]
    if kinds and isinstance(value, dict):
        # Of several dataclasses the one that has just these fields: `as_json` writes all of them.
        exact = [kind for kind in kinds if {field.name for field in dataclasses.fields(kind)} == set(value)]
        return from_json((exact or kinds)[0], value)  # type: ignore[arg-type]
    if isinstance(value, dict) and any(typing.get_origin(each) is tuple for option in options for each in typing.get_args(option)[1:]):
        return {name: _freeze(item) for name, item in value.items()}
    return _freeze(value)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
