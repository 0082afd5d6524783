"""Cells of a few-label study that are trained side by side, as many as `stack` says. Called by `study`, which scores them as finished runs."""

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from finetune.few_label.arms import PACED
from finetune.few_label.cells import Cell
from finetune.few_label.config import FewLabelConfig
from finetune.side_by_side import Run, finetune_side_by_side, program_of
from jaxseg.errors import ConfigError, JaxsegError, Preempted, StorageError

FOLDER = "side_by_side"  # below OUT: what runs share until they are trained


def check_stack(config: FewLabelConfig, chosen: Sequence[Cell]) -> None:
    """ConfigError if the chosen cells cannot be trained side by side."""
    if config.stack < 1:
        raise ConfigError(f"stack is {config.stack}; expected 1 or more cells in one program")
    paced = sorted({cell.arm.kind for cell in chosen} & set(PACED))
    if config.stack > 1 and paced:
        raise ConfigError(
            f"the steps of {' and '.join(paced)} follow from the seconds of cells that trained alone: leave stack at 1, or choose cells of other arms, "
            'such as --cells "arms=scratch,pretrained"'
        )


def train_stack(cells: Mapping[str, Run], config: FewLabelConfig) -> set[str]:
    """Train the first of the cells together with the next ones that run the same program; returns the names of all that were tried.

    Cells that are done, or begun alone, are left as they are. If the cells fail together (one of them, or memory), the caller trains each alone,
    so that the failure is that of the cell it belongs to. StorageError and Preempted are no cell's own, and go on to the caller.
    """
    first, *_ = cells
    program = program_of(cells[first].settings)
    alike = [name for name, run in cells.items() if program is not None and program_of(run.settings) == program and not _begun(run)]
    chosen = alike[: config.stack]
    if first not in chosen or len(chosen) == 1:
        return {first}
    folder = Path(config.out) / FOLDER / hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:12]
    print(f"few_label: {len(chosen)} cells side by side: {', '.join(chosen)}", file=sys.stderr)
    try:
        finetune_side_by_side([cells[name] for name in chosen], folder)
    except (StorageError, Preempted):
        raise
    except (JaxsegError, jax.errors.JaxRuntimeError) as error:
        print(f"few_label: side by side they failed, so each is trained alone: {type(error).__name__}: {error}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    return set(chosen)


def _begun(run: Run) -> bool:
    return any((Path(run.settings.out) / name).exists() for name in ("cell.json", "checkpoints"))
