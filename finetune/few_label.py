"""Few labels: the same network fine-tuned from a pretrained encoder and from scratch, on N labelled cases, over several draws, on one test set.

`python -m finetune.few_label CONFIG [--field value …]`. Every cell (arm, N, draw) is a run folder; cells that are complete are kept, so a study
grows as machines allow. Scores are on the scans' own grids. Beside them stands the floor that no image is needed for: the position-only
predictor, made of the same labelled cases.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import FinetuneConfig
from finetune.floor import position_floor
from finetune.train import finetune
from jaxseg.compilation import use_cache
from jaxseg.config import as_json, load_config
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.split import select_cases
from jaxseg.data.store import Store, open_store
from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.evaluate import evaluate_cases, structures_of
from jaxseg.files import write_json
from jaxseg.infer.folder import segment_cases
from jaxseg.metrics import paired_interval
from jaxseg.train.log import read_log
from jaxseg.zoo import load_model


@dataclass(frozen=True)
class FewLabelConfig:
    """A study.

    Attributes:
        scans: folder of the scans with their labels; `label_name` says which file is the label where names do not.
        store: the same scans, prepared.
        split: JSON file with "test" (names) and "draws" (lists of names, the first N of each are labelled).
        pretrained: run folder of the pretraining.
        out: where the cells and `results.json` go.
        labels, draws: the grid.
        arms: any of "pretrained", "scratch", "scratch_4x" (scratch with four times the steps).
        overlap: of the windows when the test cases are segmented.
        finetune: settings of every cell; store, out, init, split, labels and seed are filled in.
    """

    scans: str = ""
    store: str = ""
    split: str = ""
    pretrained: str = ""
    out: str = ""
    label_name: str | None = None
    labels: tuple[int, ...] = (1, 5)
    draws: tuple[int, ...] = (0, 1)
    arms: tuple[str, ...] = ("pretrained", "scratch")
    overlap: float = 0.5
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


def run_study(config: FewLabelConfig) -> dict[str, Any]:
    """Fill in every cell of the grid and write `OUT/results.json`, which is returned.

    Raises:
        ConfigError: a field is missing, an arm unknown, or a labelled case is a test case.
    """
    _check(config)
    store = open_store(config.store)
    wanted = set(select_cases(store.names, f"{config.split}:test"))
    cases = [case for case in find_cases(config.scans, channels=store.recipe.channels, label=config.label_name) if case.id in wanted]
    cells = []
    for count in config.labels:
        for draw in config.draws:
            names = select_cases(store.names, f"{config.split}:draws.{draw}", count)
            if set(names) & wanted:
                raise ConfigError(f"{config.split}: draw {draw} labels cases that are test cases: {', '.join(sorted(set(names) & wanted))}")
            floor = position_floor(store, names, sorted(wanted))
            scores = {arm: _cell(config, store, arm, count, draw, names, cases) for arm in config.arms}
            cells.append({"labels": count, "draw": draw, "cases": list(names), "floor": floor, "arms": scores, **_difference(scores)})
            write_json(Path(config.out) / "results.json", {"config": as_json(config), "cells": cells})
    return {"config": as_json(config), "cells": cells}


def _check(config: FewLabelConfig) -> None:
    missing = [name for name in ("scans", "store", "split", "pretrained", "out") if not getattr(config, name)]
    if missing:
        raise ConfigError(f"a few-label study needs {', '.join('--' + name for name in missing)}")
    unknown = sorted(set(config.arms) - {"pretrained", "scratch", "scratch_4x"})
    if unknown:
        raise ConfigError(f"unknown arm {', '.join(unknown)}; there are pretrained, scratch and scratch_4x")


def _cell(
    config: FewLabelConfig, store: Store, arm: str, count: int, draw: int, names: tuple[str, ...], cases: list[Case]
) -> dict[str, Any]:
    out = Path(config.out) / f"{arm}-n{count}-draw{draw}"
    base = config.finetune
    times = 4 if arm == "scratch_4x" else 1
    settings = dataclasses.replace(
        base,
        store=config.store,
        out=str(out),
        init=config.pretrained if arm == "pretrained" else "",
        loop=dataclasses.replace(base.loop, steps=times * base.loop.steps, seed=base.seed + draw),
        optim=dataclasses.replace(base.optim, warmup=times * base.optim.warmup),
        seed=base.seed + draw,
    )
    print(f"{arm}, {count} labelled, draw {draw}", file=sys.stderr)
    model = load_model(finetune(settings, names=names))
    segment_cases(model, cases, out / "predictions", overlap=config.overlap, allow_missing=True)
    pairs = {case.id: (_made(out, case), case.label) for case in cases if case.label is not None}
    summary = evaluate_cases(pairs, out / "evaluation", **structures_of(store.recipe))
    log = read_log(out / "log.jsonl")
    keep = ("dice", "low", "high", "per_case")
    return {
        **{key: summary[key] for key in keep},
        "steps": settings.loop.steps,
        "seconds": max(line["seconds"] for line in log if "seconds" in line),
        "curve": [[line["step"], line["loss"]] for line in log if "loss" in line],
        "monitored": [[line["step"], line["evaluation"]["dice"]] for line in log if "evaluation" in line],
    }


def _made(out: Path, case: Case) -> Path | None:
    path = out / "predictions" / f"{case.id}.nii.gz"
    return path if path.is_file() else None


def _difference(scores: dict[str, Any]) -> dict[str, Any]:
    """Pretrained minus scratch over the test cases, with its paired 95 % interval, where both were run."""
    if not {"pretrained", "scratch"} <= set(scores):
        return {}
    first, second = (scores[arm]["per_case"] for arm in ("pretrained", "scratch"))
    interval = paired_interval(np.array([first[case] for case in second]), np.array(list(second.values())))
    return {"gain": {"mean": interval.mean, "low": interval.low, "high": interval.high}}


def main(arguments: list[str]) -> int:
    """`python -m finetune.few_label CONFIG …`; exit codes as `jaxseg`."""
    if not arguments:
        print("usage: python -m finetune.few_label CONFIG [--field value …]", file=sys.stderr)
        return 2
    try:
        use_cache()
        results = run_study(load_config(arguments[0], "few_label", FewLabelConfig, arguments[1:]))
    except JaxsegError as error:
        print(f"few_label: error: {error}", file=sys.stderr)
        return error.exit_code
    for cell in results["cells"]:
        arms = "  ".join(f"{arm} {score['dice']:.3f}" for arm, score in cell["arms"].items())
        gain = "  gain {mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**cell["gain"]) if "gain" in cell else ""
        print(f"N={cell['labels']} draw {cell['draw']}: {arms}{gain}  position-only floor {cell['floor']['dice']:.3f}")
    print(json.dumps({"results": str(Path(results["config"]["out"]) / "results.json")}))
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__: config files import FewLabelConfig from there, and two classes of that name are not one.
    from finetune.few_label import main as main_of_this_module

    sys.exit(main_of_this_module(sys.argv[1:]))
