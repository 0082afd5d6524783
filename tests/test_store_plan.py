"""Plans: whole tokens, within memory, as much of the median case as fits, proportions in millimetres; and a file that both programs take."""

import dataclasses

import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.data.store_facts import StoreFacts, facts_of
from jaxseg.errors import ConfigError
from jaxseg.files import read_json
from jaxseg.plan_file import write_plan
from jaxseg.prepare import prepare_folder
from jaxseg.store_plan import plan_store, step_bytes
from tests.tiny_store import write_scans

BRAINS = StoreFacts(
    200, 40, ("T1", "T2"), ("zscore",) * 2, (1.0, 1.0, 1.0), (140, 172, 150), (160, 190, 170), 1.0, 3, {1: 30.0, 2: 8.0}, {}
)
THICK = dataclasses.replace(BRAINS, spacing=(0.7, 0.7, 5.0), shape=(320, 320, 24), anisotropy=7.1)


def need(facts, plan) -> float:
    channels = len(facts.channels)
    return step_bytes(plan.crop, plan.token, plan.batch, plan.width, plan.depth, plan.heads, plan.feature, channels, facts.classes) / 2**30


@pytest.mark.parametrize("facts", [BRAINS, THICK])
@pytest.mark.parametrize("memory", [4, 12, 80])
def test_plans_are_whole_tokens_within_memory_and_no_larger_than_the_median_needs(facts, memory):
    plan = plan_store(facts, memory)
    assert need(facts, plan) <= memory and plan.memory_gib == pytest.approx(need(facts, plan), abs=0.01)
    for crop, token, median in zip(plan.crop, plan.token, facts.shape):
        assert crop % token == 0 and crop < median + token and token & (token - 1) == 0
    sides = np.multiply(plan.token, facts.spacing)
    assert sides.max() / sides.min() <= 2 * 2**0.5 or 1 in plan.token


def test_with_memory_enough_the_crop_covers_the_median_case_and_the_batch_takes_the_rest():
    plan = plan_store(dataclasses.replace(BRAINS, shape=(70, 80, 66)), 80)
    assert all(crop >= median for crop, median in zip(plan.crop, (70, 80, 66))) and plan.batch > 2
    small, large = (plan_store(BRAINS, memory) for memory in (4, 24))
    assert np.prod(small.crop) < np.prod(large.crop)
    extents = np.multiply(small.crop, BRAINS.spacing)
    assert extents.max() - extents.min() <= 8 * max(small.token)  # the longest axis gave way first


def test_small_lesions_get_small_tokens_and_few_cases_a_small_network():
    assert max(plan_store(BRAINS, 12).token) == 8
    assert max(plan_store(dataclasses.replace(BRAINS, label_ml={1: 0.5}), 40).token) == 4
    assert plan_store(dataclasses.replace(BRAINS, cases=20), 12).size == "tiny" and plan_store(BRAINS, 80).size == "small"


def test_too_little_memory_is_said():
    with pytest.raises(ConfigError, match=r"0\.05 GiB are not enough"):
        plan_store(BRAINS, 0.05)
    with pytest.raises(ConfigError, match="positive"):
        plan_store(BRAINS, 0)


def test_both_programs_take_the_file_and_facts_are_the_stores(tmp_path):
    from finetune.config import FinetuneConfig
    from pretrain.config import PretrainConfig

    store = prepare_folder(write_scans(tmp_path / "scans", count=3), tmp_path / "store", processes=1)
    facts = facts_of(store)
    assert (facts.cases, facts.labelled, facts.classes, facts.missing) == (3, 3, 2, {})
    assert facts.label_ml[1] == pytest.approx(4 / 3 * np.pi * 4**3 * 10 / 1000, rel=0.1)
    plan = write_plan(store.path, tmp_path / "plan.py", 2)
    pretraining = load_config(str(tmp_path / "plan.py"), "pretrain", PretrainConfig, ["--batch", "3"])
    finetuning = load_config(str(tmp_path / "plan.py"), "finetune", FinetuneConfig)
    assert pretraining.batch == 3 and finetuning.batch == plan.batch and finetuning.store == str(store.path)
    assert pretraining.model.encoder == finetuning.model.encoder and finetuning.model.encoder.crop == plan.crop
    write_plan(store.path, tmp_path / "plan.json", 2)
    assert read_json(tmp_path / "plan.json")["plan"]["crop"] == list(plan.crop)
    with pytest.raises(ConfigError, match=r"plan\.txt"):
        write_plan(store.path, tmp_path / "plan.txt", 2)
