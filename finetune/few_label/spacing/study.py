"""Whether a pretraining at one spacing still pays on the same scans at others. Called by `python -m finetune.few_label.spacing`.

For each of `config.spacings` the scans are prepared again in voxels of that edge, and the study runs there: same split, cells, arms and test
cases, the pretraining as it is, its tokens with as many mm as they had (`spacing_tokens`). Every spacing is a study of its own in `OUT/SPACING_mm`,
filled in and resumed like any other.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.few_label.arms import named_folder
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.study import Results, dataset_of, keep_own_split, run_study
from jaxseg.audit import card_of
from jaxseg.data.catalog import open_store
from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.files import write_json, write_text
from jaxseg.models import ViTConfig
from jaxseg.models.positions import Triple
from jaxseg.models.unet import UNetConfig
from jaxseg.prepare import NAMES, Wishes, prepare_folder

ARMS = ("scratch", "pretrained")


def run_spacings(config: FewLabelConfig, *, run: Callable[[FewLabelConfig], Results] = run_study) -> dict[str, Any]:
    """Run the study at each spacing; writes `OUT/spacing.json` and `OUT/spacing.md`, and returns what the first holds.

    `rows`: for each spacing (mm; `token` has the sides of a token in voxels), pretrained arm and N the difference to scratch with its interval,
    and `below`: whether that lies below zero. `failures`, `left_out`: cells that failed, and those that could not segment every test case.
    The arms are scratch and pretrained. Scores are on the scans' own grids, so that they compare across spacings.

    Raises ConfigError for a field that is missing or wrong, and what `run_study` and `prepare_folder` raise.
    """
    missing = [name for name in ("scans", "store", "out", "pretrained") if not getattr(config, name)]
    if missing:
        raise ConfigError(f"the spacing test needs {', '.join('--' + name for name in missing)}")
    if not config.spacings or min(config.spacings) <= 0:
        raise ConfigError(f"spacings is {config.spacings}; expected one edge of the voxels in mm, or several")
    model = config.finetune.model
    if isinstance(model, UNetConfig):
        raise ConfigError("a U-Net is not pretrained, so there is nothing to test at other spacings: choose a network with a ViT encoder")
    split = config.split or str(keep_own_split(config, open_store(config.store)))
    pretrained = {given: spacing_of_pretraining(named_folder(given)[1]) for given in config.pretrained}
    rows, failures, left_out = [], 0, 0
    for spacing in config.spacings:
        out = Path(config.out) / f"{spacing:g}_mm"
        store = resampled(config, spacing, out / "store")
        token = (
            token_in_mm(model.encoder.token, list(pretrained.values()), spacing) if config.spacing_tokens == "mm" else model.encoder.token
        )
        finetune = dataclasses.replace(
            config.finetune,
            model=dataclasses.replace(
                model, encoder=dataclasses.replace(model.encoder, token=token, crop=crop_of_tokens(model.encoder, token))
            ),
            resample_patches=config.finetune.resample_patches or token != model.encoder.token,
        )
        results = run(dataclasses.replace(config, store=str(store), split=split, out=str(out), arms=ARMS, finetune=finetune)).content
        failures += len(results["failures"])
        left_out += sum(bool(cell.get("left_out")) for cell in results["cells"])
        rows += [
            {
                "spacing": spacing,
                "token": list(token),
                **{key: row[key] for key in ("arm", "labels", "mean", "low", "high", "p", "runs")},
                "below": row["mean"] < 0,
            }
            for row in results["comparisons"]
        ]
    content = {"pretrained_at": pretrained, "rows": rows, "failures": failures, "left_out": left_out}
    write_json(Path(config.out) / "spacing.json", content)
    write_text(Path(config.out) / "spacing.md", as_table(content))
    return content


def resampled(config: FewLabelConfig, spacing: float, out: Path) -> Path:
    """The study's scans as a store of cubic voxels of `spacing` mm, by the recipe of the study's store otherwise, under the same case names."""
    key, dataset = Path(config.store) / NAMES, dataset_of(config.store)
    if key.is_file() and not (out / NAMES).is_file():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy2(key, out / NAMES)
    prepare_folder(
        config.scans,
        out,
        label_name=None if dataset else config.label_name,
        dataset=dataset,
        like=config.store,
        wishes=Wishes(spacing=(spacing,) * 3),
        rules=open_store(config.store).rules,
        keep_names=not key.is_file(),
        processes=1,
    )
    return out


def token_in_mm(token: Triple, pretrained: list[list[float] | None], spacing: float) -> Triple:
    """Sides of tokens in voxels of `spacing` mm that have about the mm which `token` had where the encoder was pretrained.

    Each is the power of two nearest to that, of at least 2 voxels. `pretrained`: mm of the voxels of each pretraining.

    Raises ConfigError where these are unknown or differ.
    """
    edges = pretrained[0]
    if edges is None or any(each != edges for each in pretrained):
        raise ConfigError(
            f"tokens of as many mm as in the pretraining need one spacing of it, found {pretrained}: name pretrainings of one spacing, or "
            "pass --spacing-tokens voxels"
        )
    x, y, z = (max(2, 2 ** round(math.log2(side * edge / spacing))) for side, edge in zip(token, edges))
    return x, y, z


def crop_of_tokens(encoder: ViTConfig, token: Triple) -> Triple:
    """The crop, in voxels, of an encoder whose tokens are to have the sides `token`: as before, but of no more tokens than before along an axis (in
    coarser voxels, whose tokens have fewer, it would have many times as many), and of whole ones."""
    x, y, z = (min(grid, max(1, side // new)) * new for side, grid, new in zip(encoder.crop, encoder.grid, token))
    return x, y, z


def spacing_of_pretraining(init: str) -> list[float] | None:
    """mm along x, y, z of the store that a model was pretrained on, as its card says; None where it does not."""
    try:
        recipe = card_of(init).get("recipe") or {}
    except (InputError, CheckpointError):  # a study says so itself where it needs the model
        return None
    return list(recipe["spacing"]) if recipe.get("spacing") else None


def as_table(content: dict[str, Any]) -> str:
    """`spacing.json` in Markdown."""
    edges = {
        given: " x ".join(f"{edge:g}" for edge in at) + " mm" if at else "an unknown spacing"
        for given, at in content["pretrained_at"].items()
    }
    places = (
        ", ".join(f"{given} at {at}" for given, at in edges.items()) if len(set(edges.values())) > 1 else f"at {next(iter(edges.values()))}"
    )
    lines = [
        f"Pretrained {places}; Dice minus that of scratch on the same scans resampled [95 % interval], Wilcoxon's p, pairs of runs.\n",
        "| spacing, mm | token, voxels | arm | N | difference | p | runs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        difference = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" + (" below scratch" if row["below"] else "")
        lines.append(
            f"| {row['spacing']:g} | {' x '.join(map(str, row['token']))} | {row['arm']} | {row['labels']} | {difference} | {row['p']:.2g} | {row['runs']} |"
        )
    lines += [] if content["rows"] else ["| | | | | not measured | | |"]
    return "\n".join(lines) + "\n"
