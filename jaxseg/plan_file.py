"""A plan as a short Python file that `jaxseg pretrain` and `jaxseg finetune` take as it is, and that a person can edit. Called by `jaxseg plan`."""

from dataclasses import asdict
from pathlib import Path

from jaxseg.data.catalog import open_store
from jaxseg.data.store_facts import StoreFacts, facts_of
from jaxseg.errors import ConfigError
from jaxseg.files import write_json, write_text
from jaxseg.store_plan import StorePlan, plan_store

_PAGE = '''"""Planned from {store}: edit what you know better.

jaxseg pretrain {file} --out runs/pretrain
jaxseg finetune {file} --out runs/finetune --init runs/pretrain

{cases} cases, {labelled} of them with labels; the median is {shape} voxels of {spacing} mm ({anisotropy:.1f} times as coarse as fine).
Channels {channels}: {intensity}.{missing}
{labels}A fine-tuning step takes about {memory_gib} GiB by arithmetic, planned for {budget:g} GiB.
"""

from finetune.config import FinetuneConfig, LossConfig
from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig, UNETRPlusConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.config import PretrainConfig

STORE = {store_name!r}
CROP = {crop}  # voxels: {crop_mm} mm
TOKEN = {token}  # voxels: {token_mm} mm
BATCH = {batch}

encoder = ViTConfig(crop=CROP, token=TOKEN, width={width}, depth={depth}, heads={heads}, remat=True)

pretrain = PretrainConfig(
    store=STORE,
    model=MAEConfig(encoder=encoder, decoder_width={decoder_width}, decoder_depth={decoder_depth}, decoder_heads={decoder_heads}, predict=0.5),
    batch=BATCH,
    augment=Augment.light(),
    optim=OptimConfig(lr={lr}, warmup={pretrain_warmup}),
    loop=LoopConfig(steps={pretrain_steps}),
)

finetune = FinetuneConfig(
    store=STORE,
    model=UNETRPlusConfig(encoder=encoder, feature={feature}, stride={stride}),
    batch=BATCH,
    loss=LossConfig(batch_dice=True),
    augment=Augment.light(),
    optim=OptimConfig(lr={lr}, warmup={finetune_warmup}, layer_decay=0.75),
    loop=LoopConfig(steps={finetune_steps}),
)
'''


def write_plan(store: str | Path, out: str | Path, memory_gib: float) -> StorePlan:
    """Plan for the store in a folder, and write `out`: `.py` for training, `.json` for programs to read.

    Raises:
        InputError: no store there. ConfigError: another suffix, memory that is not enough for anything, or a `.py` file that is there already and says
            something else.
    """
    out = Path(out)
    if out.suffix not in (".py", ".json"):
        raise ConfigError(f"{out}: a plan is a .py file (for pretrain and finetune) or a .json file")
    facts = facts_of(open_store(store))
    plan = plan_store(facts, memory_gib)
    if out.suffix == ".json":
        write_json(out, {"store": str(store), "facts": asdict(facts), "plan": asdict(plan)})
        return plan
    text = plan_text(str(store), out.name, facts, plan, memory_gib)
    if out.is_file() and out.read_text(encoding="utf-8", errors="replace") != text:
        raise ConfigError(f"{out}: this file is there already, perhaps edited; choose another --out, or move it away")
    write_text(out, text)
    return plan


def plan_text(store: str, file: str, facts: StoreFacts, plan: StorePlan, budget: float) -> str:
    """The content of the `.py` file."""
    labels = ", ".join(f"{value}: {ml:g} ml" for value, ml in facts.label_ml.items())
    values = {**asdict(facts), **asdict(plan)} | {
        "store": Path(store).name.replace("\\", "/").replace('"', "'"),
        "store_name": store,
        "file": file.replace("\\", "/").replace('"', "'"),
        "budget": budget,
        "shape": _times(facts.shape),
        "spacing": _times(facts.spacing),
        "channels": ", ".join(facts.channels),
        "intensity": ", ".join(facts.intensity),
        "missing": "".join(f" {share:.0%} lack {name}." for name, share in facts.missing.items()),
        "labels": f"Labels as prepared, median volume: {labels}.\n" if labels else "",
        "crop_mm": _times([round(n * mm, 1) for n, mm in zip(plan.crop, facts.spacing)]),
        "token_mm": _times([round(n * mm, 1) for n, mm in zip(plan.token, facts.spacing)]),
        "decoder_width": plan.width // 2,
        "decoder_depth": 2 if plan.size == "tiny" else 4,
        "decoder_heads": max(1, plan.width // 2 // 32),
        "pretrain_warmup": plan.pretrain_steps // 20,
        "finetune_warmup": plan.finetune_steps // 10,
    }
    return _PAGE.format(**values)


def _times(values) -> str:
    return "×".join(f"{value:g}" for value in values)
