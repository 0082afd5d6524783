"""The spacing test: the same scans at other spacings under the same names, studies of their own, one table."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.config import FinetuneConfig
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.spacing.__main__ import main
from finetune.few_label.spacing.study import crop_of_tokens, run_spacings, token_in_mm
from jaxseg.data.store import open_store
from jaxseg.errors import ConfigError
from jaxseg.files import read_json
from jaxseg.models import UNETRPlusConfig, ViTConfig
from jaxseg.models.unet import UNetConfig
from jaxseg.prepare import prepare_folder
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spacing")
    prepare_folder(write_scans(folder / "scans", 3, channels=("T1",)), folder / "store", processes=1)
    (folder / "split.json").write_text(json.dumps({"pretrain": ["case_0"], "test": ["case_1", "case_2"], "draws": [["case_0"]]}))
    return folder


def test_each_spacing_is_a_study_of_the_same_cases(data, tmp_path, monkeypatch):
    """The extent stays, voxels change; what comes out below scratch is said."""
    seen = {}

    def pretended(config: FewLabelConfig):
        seen[Path(config.out).name] = config
        mean = {"1_mm": 0.02, "4_mm": -0.01}[Path(config.out).name]
        row = {"arm": "pretrained", "labels": 1, "mean": mean, "low": mean - 0.005, "high": mean + 0.005, "p": 0.5, "runs": 1}
        return SimpleNamespace(content={"failures": [], "cells": [{"left_out": []}], "comparisons": [row]})

    model = UNETRPlusConfig(encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=24, depth=6, heads=2), feature=4)
    config = FewLabelConfig(
        scans=str(data / "scans"),
        store=str(data / "store"),
        split=str(data / "split.json"),
        out=str(tmp_path),
        pretrained=("mae",),
        finetune=FinetuneConfig(model=model),
    )
    # Its own spacing counts, not that of the study's store.
    monkeypatch.setattr("finetune.few_label.spacing.study.card_of", lambda init: {"recipe": {"spacing": [1.5, 1.5, 3.0]}})
    content = run_spacings(config, run=pretended)
    base = open_store(data / "store")
    for name, spacing in (("1_mm", 1.0), ("4_mm", 4.0)):
        store = open_store(tmp_path / name / "store")
        assert store.names == base.names and store.recipe == dataclasses.replace(base.recipe, spacing=(spacing,) * 3)
        for case in store.names:
            extents = [np.multiply(each.entry(case).shape, each.entry(case).spacing) for each in (base, store)]
            np.testing.assert_allclose(*extents, atol=2 * 4)
        assert (seen[name].split, seen[name].arms, seen[name].store) == (config.split, ("scratch", "pretrained"), str(store.path))
    assert [(row["spacing"], row["below"]) for row in content["rows"]] == [(1.0, False), (4.0, True)]
    # The pretraining's tokens of 4 voxels span 6 x 6 x 12 mm: 6 and 12 voxels of 1 mm, of which 8 and 16 are the nearest powers of two.
    tokens = {name: each.finetune.model.encoder.token for name, each in seen.items()}
    assert tokens == {"1_mm": (8, 8, 16), "4_mm": (2, 2, 4)}
    # In coarser voxels the crop keeps its number of tokens, not of voxels: that would be eight times as many.
    crops = {name: each.finetune.model.encoder.crop for name, each in seen.items()}
    assert crops == {"1_mm": (32, 32, 32), "4_mm": (16, 16, 32)}
    assert crop_of_tokens(ViTConfig(crop=(48, 96, 8), token=(16, 16, 4)), (32, 32, 16)) == (32, 96, 16)
    assert all(each.finetune.resample_patches for each in seen.values())
    assert read_json(tmp_path / "spacing.json") == content
    assert (
        content["pretrained_at"] == {"mae": [1.5, 1.5, 3.0]}
        and "Pretrained at 1.5 x 1.5 x 3 mm; Dice" in (tmp_path / "spacing.md").read_text()
    )
    assert "| 4 | 2 x 2 x 4 | pretrained | 1 | -0.010 [-0.015, -0.005] below scratch |" in (tmp_path / "spacing.md").read_text()


def test_what_is_missing_is_said(data, tmp_path, capsys):
    with pytest.raises(ConfigError, match="needs --pretrained"):
        run_spacings(FewLabelConfig(scans="a", store="b", out="c"))
    given = FewLabelConfig(scans="a", store="b", out="c", pretrained=("mae",))
    with pytest.raises(ConfigError, match="a U-Net is not pretrained"):
        run_spacings(dataclasses.replace(given, finetune=FinetuneConfig(model=UNetConfig())))
    for edges in ([None], [[2.0, 2.0, 2.0], [1.0, 2.0, 2.0]], [[2.0, 2.0, 2.0], None]):
        with pytest.raises(ConfigError, match="(?s)need one spacing.*--spacing-tokens voxels"):
            token_in_mm((4, 4, 4), edges, 1.0)
    assert main(["brain", "--out", str(tmp_path)]) == 2
    assert "needs --scans, --store, --pretrained" in capsys.readouterr().err
