"""`load_pretrained`: a published or own checkpoint as a network with its card, whatever kind of file it is. Also `jaxseg convert`.

The file is read (`weight_file`), its layout recognised (`convert.recognise`), its arrays converted, and every array accounted for. Nothing is
ever fetched, and nothing in the file is executed.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.zoo.convert.own import own_layout
from jaxseg.zoo.convert.recognise import Recognised, published_layouts, recognise
from jaxseg.zoo.convert.report import ConversionReport
from jaxseg.zoo.convert.source import Converted, Settings, Source
from jaxseg.zoo.folder import CARD, Model, complete_card, load_model
from jaxseg.zoo.names import differences, flatten_params, param_shapes, unflatten_params
from jaxseg.zoo.registry import architecture, deviations, family_of, list_models, network_of
from jaxseg.zoo.weight_file import WeightFile, read_weight_file

_LONGEST_PLAN = 64 << 10


def load_pretrained(
    name_or_path: str | Path,
    *,
    model: str | None = None,
    partial: bool = False,
    settings: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
    licence: str | None = None,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> Model:
    """The network of a checkpoint, with a card that says where it comes from; `save_model(folder, m.network, m.card)` keeps it.

    Args:
        name_or_path: a model folder, a `.pt`/`.pth` of PyTorch (zip or legacy), a `.safetensors`, or an Orbax checkpoint or run folder.
        model: the model that it must be, as `list_models` names it, but for its channels, classes and crop. Needed for arrays in jaxseg's own
            names without a card, where `settings` may change any field of it.
        partial: take what fits: what the file lacks is initialised from `seed`, what the network has no place for is left out.
        settings: what shapes cannot tell, by name (heads, window, crop, token_order, …); published defaults are taken otherwise, and said.
        channels: names of the input channels for the card, such as ["T1", "FLAIR"].
        licence: of the weights, for the card; their authors' page says it, the file does not.
        say: is handed the table of mapped, unused and missing arrays.

    Raises InputError if there is no such file; CheckpointError if it is damaged, asks for more than data, is of no known layout (or of several), or,
    without `partial`, is not exactly one whole network; ConfigError for a setting or model that does not fit.
    """
    path = Path(name_or_path)
    if (path / CARD).is_file():
        return _own_folder(path, model, settings, channels, licence)
    _check_not_a_name(name_or_path)
    loaded, report = convert_file(path, model=model, partial=partial, settings=settings, channels=channels, licence=licence, seed=seed)
    say(str(report))
    return loaded


def convert_file(
    path: str | Path,
    *,
    model: str | None = None,
    partial: bool = False,
    settings: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
    licence: str | None = None,
    seed: int = 0,
) -> tuple[Model, ConversionReport]:
    """`load_pretrained` of a file that is no model folder: the network with its card, and what became of every array. Raises the same."""
    family = None if model is None else family_of(model)
    asked = Settings(settings)
    file = read_weight_file(path)
    where = str(file.path)
    own = [own_layout(model)] if model else []
    layouts = [*published_layouts(), *own]
    recognised = recognise(file.content, asked, where, layouts)
    source = (_Lenient if partial else Source)(recognised.state, recognised.layout.name)
    converted = _convert(recognised, source, asked, where)
    asked.check_all_asked()
    network = nnx.eval_shape(lambda: network_of(converted.config))
    description = architecture(network)
    if family not in (None, description["name"]):
        raise ConfigError(f"{where} is a {recognised.layout.name}, which is {description['name']!r} here, not {model!r}")
    if model is not None and recognised.layout not in own:
        _check_model(where, model, converted.config)
    report = _report(file, recognised, source, asked, converted, network, description["name"])
    if not partial and not report.whole:
        raise CheckpointError(
            f"{report}\n{where}: {len(report.missing)} arrays of the network are missing and {len(report.unknown)} arrays of the file have no "
            "place in it. If that is what you want (an encoder to fine-tune from, say), load it with partial=True (--partial)"
        )
    network = _filled(network, converted, report, seed)
    return Model(network, complete_card(_card(file, recognised, converted, report, channels, licence), network)), report


def _filled(abstract: nnx.Module, converted: Converted, report: ConversionReport, seed: int) -> nnx.Module:
    fresh = flatten_params(network_of(converted.config, seed=seed)) if report.missing else {}
    graph, params = nnx.split(abstract)
    return nnx.merge(graph, unflatten_params(params, {**fresh, **converted.arrays}, source=report.file))


def _convert(recognised: Recognised, source: Source, settings: Settings, where: str) -> Converted:
    try:
        return recognised.layout.convert(source, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        # Converters compute with the shapes of a published layout and with what the user set; a file may have its names and any other shapes.
        if settings.given:
            given = ", ".join(f"{name}={value}" for name, value in settings.given.items())
            raise ConfigError(
                f"{where}: a {recognised.layout.name} cannot be made of its arrays with --set {given} ({error}): correct these settings, or "
                "leave them out; if all are right, the shapes of the arrays are not those of this layout"
            ) from error
        raise CheckpointError(
            f"{where}: the names are those of a {recognised.layout.name}, but the shapes of its arrays are not ({error}); the file is damaged"
        ) from error


class _Lenient(Source):
    """For a partial load: arrays that a layout has no place for are reported, not refused."""

    def check_all_used(self) -> None:
        return


def _own_folder(
    path: Path, model: str | None, settings: Mapping[str, Any] | None, channels: Sequence[str] | None, licence: str | None
) -> Model:
    if settings or channels or licence:
        raise ConfigError(f"{path} is a model folder: its card says all about it; load it without settings, channels and licence")
    loaded = load_model(path)
    if model is not None and family_of(model) != loaded.card["architecture"]["name"]:
        raise ConfigError(f"{path} is a {loaded.card['architecture']['name']!r}, not {model!r}")
    if model is not None:
        _check_model(path, model, loaded.config)
    return loaded


def _check_model(where: str | Path, model: str, config: Any) -> None:
    if found := deviations(model, config):
        raise ConfigError(f"{where} is not a {model!r}: {'; '.join(found)}. Name the model that it is, or none")


def _check_not_a_name(name: str | Path) -> None:
    if isinstance(name, str) and name in list_models() and not Path(name).exists():
        raise InputError(
            f"{name!r} is an architecture: create_model({name!r}) makes it with random weights. For pretrained ones give the path of a "
            "checkpoint; jaxseg downloads nothing"
        )


def _report(
    file: WeightFile,
    recognised: Recognised,
    source: Source,
    settings: Settings,
    converted: Converted,
    network: nnx.Module,
    model: str,
) -> ConversionReport:
    expected = param_shapes(network)
    mapped = {name: tuple(array.shape) for name, array in converted.arrays.items()}
    if table := differences({name: expected[name] for name in expected if name in mapped}, mapped):
        raise CheckpointError(f"{file.path}: recognised as {recognised.layout.name}, but its arrays do not fit that network\n{table}")
    wrong = [name for name, array in converted.arrays.items() if not jnp.issubdtype(array.dtype, jnp.floating)]
    if wrong:
        raise CheckpointError(
            f"{file.path}: {wrong[0]} is of {converted.arrays[wrong[0]].dtype}; weights are expected as floating-point numbers"
        )
    unused = {key: why or "" for key, why in recognised.outside.items()}
    unused |= {key: source.ignored.get(key, "") for key in source.state if key not in source.used}
    missing = {name: _why_missing(name, converted.missing) for name in expected if name not in mapped}
    notes = [*converted.notes, *_broken_numbers(converted.arrays)]
    return ConversionReport(
        str(file.path), recognised.layout.name, recognised.place, model, mapped, unused, missing, tuple(settings.said), tuple(notes)
    )


def _why_missing(name: str, reasons: Mapping[str, str]) -> str:
    return next((why for part, why in reasons.items() if name == part or name.startswith(f"{part}.")), "not in the file")


def _broken_numbers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    # The sum is not finite if a number is not; a sum that overflows on its own would need numbers that no network has.
    with np.errstate(invalid="ignore", over="ignore"):
        broken = [name for name, array in arrays.items() if not math.isfinite(np.sum(array, dtype=np.float64))]
    return [f"{len(broken)} arrays hold NaN or infinite numbers, among them {broken[0]}"] if broken else []


def _card(
    file: WeightFile,
    recognised: Recognised,
    converted: Converted,
    report: ConversionReport,
    channels: Sequence[str] | None,
    licence: str | None,
) -> dict[str, Any]:
    config = converted.config
    count = getattr(config, "encoder", config).in_channels
    source = {"file": file.path.name, "form": file.form, "sha256": file.sha256, **report.for_card()}
    plan = file.plan if recognised.plan is None else recognised.plan
    if plan is not None:
        source["plan"] = _as_json(plan)
    card = {"channels": list(channels) if channels else [f"channel {i + 1}" for i in range(count)], **converted.card, "source": source}
    return card | ({"licence": licence} if licence else {})


def _as_json(plan: Any) -> Any:
    """nnssl's plan as it is, if it is plain and short; else a word about it."""
    try:
        text = json.dumps(plan, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "not JSON data; left out"
    return json.loads(text) if len(text) <= _LONGEST_PLAN else f"{len(text)} characters; left out"
