"""UNETR files of MONAI before 0.9 give the same network as those of today; defaults are said aloud."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseg.errors import CheckpointError
from jaxseg.zoo.convert.monai_unetr import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parents[1] / "golden" / "make_unetr.py"
    spec = importlib.util.spec_from_file_location("make_unetr_for_convert", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_old_and_new_files_are_one_network(golden):
    """The keys that `UNETR` of MONAI 0.7 had and 1.6 has not, and the other way round, as users of both report them."""
    (layout,) = LAYOUTS
    new = golden.make_state(golden.CASES["perceptron"])
    unused = {"vit.patch_embedding.cls_token": np.ones((1, 1, 96), np.float32)}
    for block in ("encoder2.blocks.0.1", "encoder2.blocks.1.1", "encoder3.blocks.0.1"):
        channels = len(new[f"{block}.conv1.conv.weight"])
        unused[f"{block}.conv3.conv.weight"] = np.ones((channels, channels, 1, 1, 1), np.float32)
    old = {key: value for key, value in new.items() if "cross_attn" not in key} | unused
    made, sources = [], []
    for state in (old, new):
        assert layout.recognise({key: value.shape for key, value in state.items()})
        settings = Settings({"heads": 4})
        sources.append(Source(state, layout.name))
        made.append(layout.convert(sources[-1], settings))
        assert [line.split(" = ")[0] for line in settings.said] == ["crop"]
    assert made[0].config == made[1].config and made[0].arrays.keys() == made[1].arrays.keys()
    assert all(np.array_equal(array, made[1].arrays[name]) for name, array in made[0].arrays.items())
    assert set(unused) <= set(sources[0].ignored) and not any("cross_attn" in key for key in sources[0].ignored)


def test_a_network_for_slices_is_refused(golden):
    state = golden.make_state(golden.CASES["conv"])
    state["encoder1.layer.conv1.conv.weight"] = state["encoder1.layer.conv1.conv.weight"][..., 0]
    with pytest.raises(CheckpointError, match="images of two axes"):
        LAYOUTS[0].convert(Source(state, "MONAI UNETR"), Settings({"heads": 4, "crop": (32, 16, 48)}))
