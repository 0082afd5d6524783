"""The embedded default: the main job on a phantom archive made on the spot. Called by `jaxseg demo`."""

from pathlib import Path
from typing import Any

from jaxseg.clock import StageClock
from jaxseg.data.phantom import write_archive
from jaxseg.job_inputs import MainJob
from jaxseg.pipeline import Trainers, run_main_job
from jaxseg.progress import bar

UNLABELLED, LABELLED, BROKEN, TRAINED_ON = 48, 32, 4, 4

# How far oedema, enhancing tumour and necrosis of a glioma lie above the brain around them, by channel, in standard deviations of the head. Set with the
# phantoms' own table in view (`data.phantom.contrast.SIGNAL`, itself by eye from textbooks): rounded differences, the same for every scanner. So
# the demo's pretraining is told what its tumours look like, as a user who knows the disease would tell it, but better than such a user could.
GLIOMA = {"T1": (-0.8, -0.9, -1.6), "T1c": (-0.8, 1.2, -1.6), "T2": (1.6, 0.8, 1.8), "FLAIR": (1.8, 1.0, 0.0)}


def run_demo(out: Path, *, minutes: float, seed: int, trainers: Trainers) -> dict[str, Any]:
    """Make the archive and do the main job on it, or go on where it was. Returns what `OUT/summary.json` holds.

    Pretraining outlines artificial lesions that look like gliomas (docs/results.md says what it and the masked autoencoder bring here).
    48 unlabelled cases, in four of which a file is broken on purpose; 32 labelled ones, 4 to train on and 28 to test on.
    """
    archive = out / "archive"
    with StageClock(out / "stages.json").stage("archive"), bar("phantom archive") as progress:
        write_archive(archive, unlabelled=UNLABELLED, labelled=LABELLED, broken=BROKEN, seed=seed, progress=progress)
    job = MainJob(
        unlabelled=archive / "unlabelled",
        labelled=archive / "labelled",
        out=out,
        labels=TRAINED_ON,
        spacing=(3.0, 3.0, 3.0),
        minutes=minutes,
        seed=seed,
        objective="lesions",
        signal=GLIOMA,
    )
    return run_main_job(job, trainers)
