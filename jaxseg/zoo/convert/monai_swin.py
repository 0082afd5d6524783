"""Published SwinUNETR files in our names: MONAI's own, SSL encoders (`model_swinvit.pt`), VoCo, SuPreM and disruptive autoencoders.

Proven equal to MONAI 1.6.1 in `tests/zoo/test_convert_swin.py`. The wrappers around it are layout only: their keys were read in the public code
that writes and loads the files (Project-MONAI/research-contributions, Luffy03/VoCo and Large-Scale-Medical, MrGiovanni/SuPreM).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.positions import Triple
from jaxseg.models.swin import SwinConfig
from jaxseg.models.swin_unetr import SwinUNETRConfig
from jaxseg.models.windows import relative_index
from jaxseg.zoo.convert.merging_evidence import find_merging
from jaxseg.zoo.convert.monai_table import Row, decoder_rows, head_rows, swin_rows, swin_skip_rows
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source

_FULL, _SSL, _VOCO = "MONAI SwinUNETR", "Swin UNETR self-supervised encoder (model_swinvit.pt)", "VoCo (SwinUNETR)"
_SUPREM, _AUTOENCODER = "SuPreM (SwinUNETR)", "SwinUNETR disruptive autoencoder (ssl_pretrained_weights.pth)"
_EMBEDDING = "patch_embed.proj.weight"
_OF_NO_USE = {
    _SSL: "heads and decoder of the self-supervised tasks",
    _VOCO: "projection heads of the contrastive task",
    _SUPREM: "SuPreM's own head, which makes its filters from organ embeddings",
    _AUTOENCODER: "mask token, final norm and reconstruction head of the autoencoder",
}

_DOUBT = "the published files of this layout are older than MONAI 1.5 and so were trained with merging_repeated, but these weights do not show it"


class _Place(NamedTuple):
    """Where in a file a SwinUNETR lies: the prefix of its parts, that of its encoder, and whether stages are nested once more."""

    net: str
    swin: str
    nested: bool


def _places(keys: Iterable[str]) -> list[_Place]:
    """Every SwinUNETR or bare encoder among the keys; wrappers prefix it with `module.`, `backbone.`, `student.` and the like."""
    keys, found = set(keys), []
    for prefix in sorted(key.removesuffix(_EMBEDDING) for key in keys if key.endswith(_EMBEDDING)):
        nested = f"{prefix}layers1.0.0.blocks.0.norm1.weight" in keys
        if nested or f"{prefix}layers1.0.blocks.0.norm1.weight" in keys:
            name = next((name for name in ("swinViT.", "swin_vit.", "encoder.") if prefix.endswith(name)), "")
            found.append(_Place(prefix.removesuffix(name), prefix, nested))
    return found


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The layout of a file, or None if it holds no 3D Swin encoder."""
    places = _places(shapes)
    if not places or len(shapes[places[0].swin + _EMBEDDING]) != 5:
        return None
    net = places[0].net
    if any(key.split(".")[-2:] == ["controller", "weight"] for key in shapes):
        return _SUPREM
    if places[0].nested:
        return _AUTOENCODER
    if f"{net}decoder1.conv_block.conv1.conv.weight" in shapes:
        return _FULL
    return _VOCO if f"{net}encoder10.layer.conv1.conv.weight" in shapes else _SSL


def _convert(source: Source, settings: Settings, *, kind: str) -> Converted:
    place = _choose(_places(source.state), settings)
    config = _config(source, place, kind, settings)
    parts: dict[str, Iterable[Row]] = {"encoder": _encoder_rows(source, place, config.encoder)}
    if f"{place.net}encoder10.layer.conv1.conv.weight" in source:
        parts["stem, skips, bottleneck"] = swin_skip_rows(config, theirs=place.net)
    if f"{place.net}decoder1.conv_block.conv1.conv.weight" in source:
        parts["decoder"] = decoder_rows(5, theirs=place.net)
    if kind == _FULL:
        parts["head"] = head_rows(theirs=place.net)
    arrays = {row.ours: row.read(source[row.theirs]) for rows in parts.values() for row in rows}
    if kind in _OF_NO_USE:
        source.ignore(partial(_is_extra, place, kind), _OF_NO_USE[kind])
    whole = ("stem, skips, bottleneck", "decoder", "head")
    missing = {part: f"not in a {kind}" for group in whole if group not in parts for part in group.split(", ")}
    doubt = kind != _FULL and config.encoder.downsample == "merging" and "downsample" not in settings.given
    return Converted(config, arrays, missing, [_DOUBT] if doubt else [])


def _choose(places: list[_Place], settings: Settings) -> _Place:
    """The one network of the file; of VoCo's two the student, which is the one that is trained."""
    if len(places) == 1:
        return places[0]
    known = {place.net.removeprefix("module.").rstrip("."): place for place in places}
    default = "student" if "student" in known else next(iter(known))
    wanted = settings.take("branch", default, f"the file holds {', '.join(known)}; the teacher is a moving average of the student")
    if wanted not in known:
        raise ConfigError(f"branch is {wanted!r}; this file holds {', '.join(known)}")
    return known[wanted]


def _is_extra(place: _Place, kind: str, key: str) -> bool:
    """Whether a layout has `key` besides the network. What else a file may hold stays unknown, and is said to be."""
    if key.startswith(place.swin) and kind != _SSL:
        return kind == _AUTOENCODER and key.removeprefix(place.swin).split(".")[0] in ("mask_token", "norm")
    first = key.removeprefix(place.net).removeprefix("module.").split(".")[0]
    heads = {
        _SSL: ("rotation_head", "contrastive_head", "conv", "norm"),
        _VOCO: ("proj_head", "student", "teacher"),
        _SUPREM: ("out", "precls_conv", "GAP", "controller", "organ_embedding", "text_to_vision"),
        _AUTOENCODER: ("out",),
    }
    return first in heads[kind]


def _config(source: Source, place: _Place, kind: str, settings: Settings) -> SwinUNETRConfig:
    swin = place.swin
    feature, channels, *patch = source.shape(swin + _EMBEDDING)
    roots = [_stage(place, stage) for stage in range(4)]
    depths = [_count(lambda i, root=root: f"{root}.blocks.{i}.norm1.weight" in source) for root in roots]
    if 0 in depths:
        raise CheckpointError(f"not a {kind}: {roots[depths.index(0)]}.blocks.0.norm1.weight is missing; a Swin encoder has four stages")
    tables = [source.shape(f"{root}.blocks.0.attn.relative_position_bias_table") for root in roots]
    first = f"{roots[0]}.blocks.0"
    merging, evidence = find_merging([source.state[f"{root}.downsample.reduction.weight"] for root in roots if _merges(source, root)])
    normalize = settings.take("normalize", True, "MONAI's default")
    if not isinstance(normalize, bool):
        raise ConfigError(f"normalize is {normalize!r}; expected true or false")
    config = SwinConfig(
        in_channels=channels,
        feature=feature,
        patch=_triple(patch),
        depths=(depths[0], depths[1], depths[2], depths[3]),
        heads=(tables[0][1], tables[1][1], tables[2][1], tables[3][1]),
        window=_window(source, first, tables[0][0], settings),
        mlp_ratio=source.shape(f"{first}.mlp.{_mlp(source, first)[0]}.weight")[0] / feature,
        qkv_bias=f"{first}.attn.qkv.bias" in source,
        patch_norm=f"{swin}patch_embed.norm.weight" in source,
        normalize=normalize,
        use_v2=f"{swin}layers1c.0.layer.conv1.conv.weight" in source,
        downsample=settings.take("downsample", merging, evidence),
    )
    head = f"{place.net}out.conv.conv.bias"
    classes = source.shape(head)[0] if kind == _FULL else SwinUNETRConfig().num_classes
    _check_indices(source, roots, depths, config.window)
    return SwinUNETRConfig(config, num_classes=classes)


def _encoder_rows(source: Source, place: _Place, config: SwinConfig) -> list[Row]:
    rows = swin_rows(config, theirs=place.swin, mlp=_mlp(source, f"{_stage(place, 0)}.blocks.0"))
    if not place.nested:
        return list(rows)
    stages = {f"{place.swin}layers{i}.0.": f"{place.swin}layers{i}.0.0." for i in range(1, 5)}
    swap = lambda key: next((deep + key.removeprefix(flat) for flat, deep in stages.items() if key.startswith(flat)), key)
    return [row._replace(theirs=swap(row.theirs)) for row in rows]


def _stage(place: _Place, stage: int) -> str:
    return f"{place.swin}layers{stage + 1}.0" + (".0" if place.nested else "")


def _mlp(source: Source, block: str) -> tuple[str, str]:
    """MONAI named the matrices of its MLP fc1 and fc2 before 0.9, as `model_swinvit.pt` has them."""
    return ("fc1", "fc2") if f"{block}.mlp.fc1.weight" in source else ("linear1", "linear2")


def _window(source: Source, block: str, rows: int, settings: Settings) -> Triple:
    """The window whose table of offsets has this many rows; one that is no cube is told by the stored index, or has to be given."""
    index = f"{block}.attn.relative_position_index"
    fits = [window for window in _windows_of(rows) if index not in source or np.array_equal(source.state[index], relative_index(window))]
    cubes = [window for window in fits if len(set(window)) == 1]
    if index in source and fits:
        found = fits[0]
    else:
        found = cubes[0] if cubes else None
    if "window" not in settings.given and found is not None:
        return found
    given = settings.need("window", f"the table of relative positions has {rows} rows, which is no cube's")
    sides = [given] * 3 if isinstance(given, int) else given
    if not isinstance(sides, list | tuple) or len(sides) != 3 or any(not isinstance(side, int) for side in sides):
        raise ConfigError(f"window is {given!r}; expected one number or three, in tokens")
    if (offsets := math.prod(2 * side - 1 for side in sides)) != rows:
        raise ConfigError(f"window is {given!r}, which has {offsets} offsets, but the file's table has {rows} rows")
    return _triple(sides)


def _windows_of(rows: int) -> list[Triple]:
    odd = [n for n in range(1, rows + 1, 2) if rows % n == 0]
    return [((a + 1) // 2, (b + 1) // 2, (rows // (a * b) + 1) // 2) for a, b in product(odd, odd) if rows % (a * b) == 0]


def _check_indices(source: Source, roots: list[str], depths: list[int], window: Triple) -> None:
    """Compare the stored indices of relative positions with those that the window implies: they are of no other use."""
    wanted = relative_index(window)
    for key in (f"{root}.blocks.{i}.attn.relative_position_index" for root, depth in zip(roots, depths) for i in range(depth)):
        if key in source and not np.array_equal(source[key], wanted):
            raise CheckpointError(f"{key} is not the index of a window of {window}: give the right one with --set window=…")


def _merges(source: Source, root: str) -> bool:
    return f"{root}.downsample.reduction.weight" in source


def _count(exists: Callable[[int], bool]) -> int:
    count = 0
    while exists(count):
        count += 1
    return count


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = values
    return x, y, z


LAYOUTS = tuple(
    Layout(kind, recognise=lambda shapes, kind=kind: _kind(shapes) == kind, convert=partial(_convert, kind=kind))
    for kind in (_FULL, _SSL, _VOCO, _SUPREM, _AUTOENCODER)
)
