"""Which cases of a store a run uses: read from a split file, so that anybody can use the same ones. Called by pretrain and finetune."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxseg.errors import ConfigError
from jaxseg.files import read_json


def select_cases(names: Sequence[str], split: str = "", count: int | None = None) -> tuple[str, ...]:
    """The case names of a run.

    Args:
        names: all names of the store.
        split: "" for all of them, or "FILE.json:KEY" where KEY leads to a list of names ("pretrain", "test", "draws.0").
        count: take the first `count` only; lists of a split file are ordered so that subsets are nested.

    Raises:
        ConfigError: the key is not in the file, a name is not in the store, or there are fewer than `count`.
    """
    chosen = tuple(names) if not split else _from_file(split)
    absent = sorted(set(chosen) - set(names))
    if absent:
        raise ConfigError(f"{split}: {len(absent)} of its {len(chosen)} cases are not in the store: {', '.join(absent[:8])}")
    if count is not None and not 0 < count <= len(chosen):
        raise ConfigError(f"{count} cases were asked for, but {split or 'the store'} has {len(chosen)}")
    return chosen[:count]


def refuse_shared_patients(patients: Mapping[str, str], first: Iterable[str], second: Iterable[str], what: str) -> None:
    """ConfigError if a patient has cases in both lists.

    Args:
        patients: case name → patient key, as a store's entries say.
        what: how the message calls the two lists, such as "labelled cases and test cases".
    """
    owners = {patients[name]: name for name in first}
    shared = [(owners[patients[name]], name) for name in second if patients[name] in owners and owners[patients[name]] != name]
    if shared:
        shown = ", ".join(f"{one} and {other}" for one, other in shared[:6]) + (", …" if len(shared) > 6 else "")
        raise ConfigError(f"{what} share {len(shared)} patients ({shown}): keep all cases of a patient on one side of the split")


def _from_file(split: str) -> tuple[str, ...]:
    file, colon, key = split.rpartition(":")
    if not colon:
        raise ConfigError(f"split {split!r}: expected FILE.json:KEY, such as configs/splits/brain.json:pretrain")
    value = read_json(Path(file))
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            known = (
                ", ".join(value) if isinstance(value, dict) else f"0 to {len(value) - 1}" if isinstance(value, list) else "nothing below it"
            )
            raise ConfigError(f"{file}: there is no {part!r} on the way to {key!r}; there is: {known}") from None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{file}: {key!r} is not a list of case names")
    if twice := sorted({name for name in value if value.count(name) > 1}):
        raise ConfigError(f"{file}: {key!r} names {', '.join(twice[:6])} more than once")
    return tuple(value)
