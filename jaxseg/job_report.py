"""The report of a main job: read from its output folder, drawn on one page. Called at the end of the job and by `jaxseg report`."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import __version__, report
from jaxseg.case_picture import case_picture, how_drawn
from jaxseg.data.archive import read_index
from jaxseg.data.contoured import DRAWN, find_contoured
from jaxseg.data.io.decoded import Rules
from jaxseg.data.pseudonyms import may_name_people, pseudonymous
from jaxseg.data.untaught import sentence
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.metrics import paired_interval
from jaxseg.report import Figure, Section, Table, Text
from jaxseg.train.log import read_log

ARMS = ("pretrained", "scratch")
# By objective: name of the curve, of its axis, and what it shows.
_PRETRAINING = {
    "mae": (
        "masked autoencoder",
        "loss on hidden voxels",
        "Pretraining: mean squared error on hidden voxels of the body (1 = predicting the mean).",
    ),
    "lesions": (
        "artificial lesions",
        "Dice + cross-entropy loss",
        "Pretraining without labels: outlining artificial lesions drawn into the scans, near each of them.",
    ),
}


def draw_report(out: str | Path) -> Path:
    """Write `OUT/report.html` from what a finished main job left in `out`. InputError if there is no finished job."""
    out = Path(out)
    if not (out / "summary.json").is_file():
        raise InputError(f"{out}: no finished job here (no summary.json); run `jaxseg demo` or `jaxseg run` with --out {out} to its end")
    summary, job, plan = (read_json(out / name) for name in ("summary.json", "job.json", "plan.json"))
    stages = read_json(out / "stages.json")["seconds"]
    sections = [
        *_scores(summary, out),
        *_overlays(summary, job, plan, out),
        _curves(plan, out),
        _archive(summary),
        _how(plan, stages, summary),
    ]
    return report.write_page(out / "report.html", "Segmentation from few labels", _lead(summary), sections)


def _lead(summary: dict[str, Any]) -> str:
    cases = summary["cases"]
    text = (
        f"A network was pretrained on {cases['unlabelled']} scans without labels and fine-tuned on {cases['train']} labelled ones; the same "
        f"network was also trained from scratch with the same steps. Both were tested on {cases['test']} other scans."
    )
    if summary["pretrained"]["dice"] is not None:
        text += f" Mean Dice: {summary['pretrained']['dice']:.3f} pretrained, {summary['scratch']['dice']:.3f} from scratch."
    return text


def _scores(summary: dict[str, Any], out: Path) -> list[Section]:
    if summary["pretrained"]["dice"] is None:
        return [
            Section("Scores", [Text("The test scans have no labels, so there is nothing to score; the segmentations are in predictions/.")])
        ]
    pretrained, scratch = (summary[arm]["per_case"] for arm in ARMS)
    gain = paired_interval(np.array([pretrained[case] for case in scratch]), np.array(list(scratch.values())))
    rows = [[arm, *(f"{summary[arm][key]:.3f}" for key in ("dice", "low", "high"))] for arm in ARMS]
    rows.append(["pretrained − scratch", f"{gain.mean:+.3f}", f"{gain.low:+.3f}", f"{gain.high:+.3f}"])
    caption = "Mean over cases of the mean over labels or regions; 95 % bootstrap interval over cases."
    if "position_only" in summary:  # not in a job from before there was one
        rows.append(["position only", f"{summary['position_only']['dice']:.3f}", "", ""])
        caption += " Position only: of a predictor that never looks at a scan and knows where the labels of the training cases lie; a score below says nothing."
    picture = report.score_figure(
        {arm: summary[arm]["per_case"] for arm in ARMS}, {arm: tuple(summary[arm][key] for key in ("dice", "low", "high")) for arm in ARMS}
    )
    lost = summary.get("untaught", [])
    parts: list[Text | Figure | Table] = [
        *([Text(f"Take note: {sentence(lost, summary['cases']['train'])}.")] if lost else []),
        Table(
            ["", "mean Dice", "low", "high"],
            rows,
            caption,
        ),
        Figure(picture, "Dice of every test case under both arms", "Each line is one test case; diamonds are means with 95 % intervals."),
        _per_label(out),
        Table(
            ["case", *ARMS],
            [[case, f"{pretrained[case]:.3f}", f"{scratch[case]:.3f}"] for case in sorted(scratch)],
            "Dice of every test case.",
        ),
    ]
    return [Section("Scores on held-out scans", parts)]


def _per_label(out: Path) -> Table:
    keys = ("dice", "hd95_mm", "assd_mm", "surface_dice")
    rows = []
    for arm in ARMS:
        for label, values in read_json(out / "evaluation" / arm / "summary.json")["per_label"].items():
            rows.append([arm, label, *("–" if values[key] is None else f"{values[key]:.2f}" for key in keys)])
    caption = "Means over cases; distances in mm, surface Dice at 2 mm. A missed lesion counts with the image's diagonal."
    return Table(["arm", "label", "Dice", "HD95", "ASSD", "surface Dice"], rows, caption)


def _overlays(summary: dict[str, Any], job: dict[str, Any], plan: dict[str, Any], out: Path) -> list[Section]:
    scores = summary["pretrained"]["per_case"]
    if not scores:
        return []
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    folder = Path(job["test"] or job["labelled"])
    labels = plan["recipe"]["labels"] if job["test"] else None
    found = find_contoured(folder, out / DRAWN, channels=job["channels"], label=job["label_name"], labels=labels).cases
    if not job["keep_names"] and may_name_people(case.id for case in found):
        found = pseudonymous(found, read_index(out / "index").salt)
    rules = Rules(job.get("policy"), job.get("assume_orientation"))  # a job from before there were any has none
    cases = {case.id: case for case in found.read_by(rules)}
    parts: list[Figure | Text] = []
    for case in dict.fromkeys(chosen.values()):
        name = " and ".join(each for each, its in chosen.items() if its == case)  # of one or two cases one is best and median
        if case not in cases:
            parts.append(Text(f"{name}: {case}, Dice {scores[case]:.3f}; its scan is no longer in {folder}, so there is no picture of it."))
            continue
        files = {arm: out / "predictions" / arm / f"{case}.nii.gz" for arm in ARMS}
        title = f"{name}: {case}, Dice {scores[case]:.3f}"
        png = case_picture(cases[case], files, plan["recipe"]["channels"], plan["recipe"]["labels"], title=title)
        parts.append(
            Figure(png, f"{name} case in three planes with truth and both predictions", f"The {name} case of the pretrained model.")
        )
    caption = Text(how_drawn(plan["recipe"]["labels"], regions=bool(plan["recipe"].get("regions"))))
    return [Section("Best, median and worst case", [caption, *parts])]


def _curves(plan: dict[str, Any], out: Path) -> Section:
    parts: list[Text | Figure | Table] = []
    log = read_log(out / "pretrain" / "log.jsonl")
    points = [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]
    name, ylabel, caption = _PRETRAINING[plan.get("objective", "mae")]
    parts.append(Figure(report.curve_figure({name: points}, ylabel=ylabel), "pretraining loss by step", caption))
    for picture in sorted((out / "pretrain" / "pictures").glob("step_*.png"))[-1:]:
        caption = "One crop at the end of pretraining: what the encoder saw, what was made of it, the scan, and the difference around grey."
        parts.append(Figure(picture.read_bytes(), "a crop in three planes: seen by the encoder, reconstructed, as scanned", caption))
    curves = {}
    for arm in ARMS:
        log = read_log(out / "finetune" / arm / "log.jsonl")
        curves[arm] = [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]
    png = report.curve_figure(curves, ylabel="Dice + cross-entropy loss")
    parts.append(Figure(png, "fine-tuning loss by step for both arms", "Fine-tuning on the labelled cases, the same steps for both."))
    return Section("Training curves", parts)


def _archive(summary: dict[str, Any]) -> Section:
    left_out = summary["index"]["left_out"]
    parts: list[Text | Table] = [Text(f"{summary['index']['ok']} unlabelled files could be used; {len(left_out)} were left out.")]
    if left_out:
        rows = [[item["path"], item["reason"]] for item in left_out]
        parts.append(Table(["scan", "why it was left out"], rows))
    return Section("The archive", parts)


def _how(plan: dict[str, Any], stages: dict[str, float], summary: dict[str, Any]) -> Section:
    recipe = plan["recipe"]
    settings = [
        ["channels", ", ".join(recipe["channels"])],
        ["working spacing", " × ".join(f"{value:g}" for value in recipe["spacing"]) + " mm"],
        ["intensity", ", ".join(recipe["intensity"])],
        ["crop and token", f"{plan['crop']} and {plan['token']} voxels"],
        ["encoder", f"width {plan['width']}, depth {plan['depth']}, {plan['heads']} heads"],
        [
            "pretraining",
            f"{_PRETRAINING[plan.get('objective', 'mae')][0]}: {plan['pretrain_steps']} steps of {plan['pretrain_batch']} crops",
        ],
        *_signal(plan.get("signal") or {}),
        ["fine-tuning", f"{plan['finetune_steps']} steps of {plan['finetune_batch']} crops"],
        ["seed", str(plan["seed"])],
        ["jaxseg", __version__],
    ]
    times = [[stage, f"{seconds:.0f} s"] for stage, seconds in stages.items()]
    times.append(["all", f"{summary['seconds']:.0f} s, at most {summary['peak_memory_gib']:.1f} GiB"])
    return Section("How it was made", [Table(["setting", "value"], settings), Table(["stage", "time"], times)])


def _signal(signal: dict[str, list[float]]) -> list[list[str]]:
    """What pretraining was told of the lesions looked for, if anything."""
    told = "; ".join(f"{channel} {', '.join(f'{value:+g}' for value in parts)}" for channel, parts in signal.items())
    return [["signal of artificial lesions (margin, living, dead part above the tissue around)", told]] if told else []
