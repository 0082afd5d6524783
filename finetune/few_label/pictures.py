"""Test cases with the contours of several arms of a few-label study, for its page. Called by `study`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.few_label.cells import DONE, Cell
from finetune.few_label.results import BASELINE
from jaxseg.case_picture import case_picture, how_drawn
from jaxseg.data.cases import Case
from jaxseg.data.recipe import Recipe
from jaxseg.errors import InputError
from jaxseg.report import Figure, Section, Text

MOST = 4  # arms that one picture holds


def picture_section(out: Path, results: dict[str, Any], cells: Sequence[Cell], tests: Sequence[Case], recipe: Recipe) -> Section | None:
    """Three test cases with the contours that arms drew of the same labels, draw and seed; None where no cell has any.

    The cells are those of the place in the grid where most arms are done, the first such. Beside scratch the cases are those where the first other arm
    gained most, where it gained least, and the one in the middle; of one arm alone its best, worst and median case.
    """
    scores = {cell["name"]: cell["per_case"] for cell in _named(results, cells) if cell["status"] == DONE}
    places: dict[tuple[Any, int, int], list[Cell]] = {}
    for cell in cells:
        if cell.name in scores and (out / "cells" / cell.name / "predictions").is_dir():
            places.setdefault((cell.labels, cell.draw, cell.seed), []).append(cell)
    if not places:
        return None
    (labels, draw, seed), together = max(places.items(), key=lambda item: len(item[1]))
    # Scratch first, then the pretrained arms, then in the order of the grid.
    together = sorted(together, key=lambda cell: (cell.arm.kind != BASELINE, cell.arm.kind != "pretrained"))[:MOST]
    first, judged = together[0], together[min(1, len(together) - 1)]
    gains = {case: value - (scores[first.name][case] if judged is not first else 0.0) for case, value in scores[judged.name].items()}
    known = {case.id: case for case in tests}
    ranked = sorted((case for case in gains if case in known), key=lambda case: (gains[case], case))
    if not ranked:
        return None
    words = ("best", "median", "worst") if judged is first else ("largest gain", "median gain", "smallest gain")
    chosen: dict[str, list[str]] = {}
    for word, case in zip(words, (ranked[-1], ranked[len(ranked) // 2], ranked[0])):
        chosen.setdefault(case, []).append(word)
    about = f"N = {labels}, draw {draw}, seed {seed}. " + how_drawn(recipe.labels, regions=recipe.regions)
    parts: list[Figure | Text] = [Text(about if judged is first else f"{about} Gains are of {judged.arm.name} over {first.arm.name}.")]
    for case, word in chosen.items():
        told = ", ".join(f"{cell.arm.name} {scores[cell.name][case]:.3f}" for cell in together if case in scores[cell.name])
        title = f"{' and '.join(word)}: {case}, Dice {told}"
        files = {cell.arm.name: out / "cells" / cell.name / "predictions" / f"{case}.nii.gz" for cell in together}
        try:
            png = case_picture(known[case], files, recipe.channels, recipe.labels, title=title)
        except InputError as error:
            parts.append(Text(f"{title}; there is no picture of it: {type(error).__name__}"))
            continue
        parts.append(Figure(png, f"{case} in three planes with the truth and the contours of {', '.join(files)}", title))
    return Section("Test cases", parts)


def _named(results: dict[str, Any], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    found = {(each["arm"], each["labels"], each["draw"], each["seed"]): each for each in results["cells"]}
    return [{**found[tuple(cell.to_json().values())], "name": cell.name} for cell in cells if tuple(cell.to_json().values()) in found]
