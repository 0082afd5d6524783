"""The anchor in PyTorch: the same loss, the same crops and the same steps as our own arms, filled into the same table."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bench import anchor
from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from finetune.few_label.study import run_study
from jaxseg import losses
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, make_optimizer
from tests.peers import import_peer
from tests.tiny_store import write_scans


@pytest.mark.parity
@pytest.mark.parametrize("batch", [False, True])
def test_the_loss_is_ours(batch):
    torch = import_peer("torch")
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 3, 4, 5, 3)).astype(np.float32), rng.integers(0, 3, (2, 3, 4, 5))
    label[0, :, :2], label[1] = 255, np.where(rng.random(label[1].shape) < 0.3, 255, label[1])
    ours = losses.dice_ce(jnp.asarray(logits), jnp.asarray(label), batch=batch)
    theirs = anchor.dice_ce(torch.from_numpy(np.moveaxis(logits, -1, 1).copy()), torch.from_numpy(label), batch=batch)
    for name, value in zip(("dice", "cross_entropy"), theirs):
        total, count = ours[name]
        assert float(value) == pytest.approx(float(total / count), rel=1e-5)


@pytest.mark.parity
def test_its_muon_is_ours():
    """Three steps of one convolution and one transposed convolution on the same gradients."""
    torch = import_peer("torch")
    from bench.torch_muon import Muon

    rng = np.random.default_rng(0)
    shapes = {"conv": (8, 3, 3, 3, 3), "up": (6, 4, 2, 2, 2)}
    moved = {"conv": lambda array: array.transpose(2, 3, 4, 1, 0), "up": lambda array: array.transpose(2, 3, 4, 0, 1)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    ours = {name: {"kernel": jnp.asarray(moved[name](array))} for name, array in start.items()}
    optimizer = Muon([theirs["conv"]], [theirs["up"]], lr=0.1, weight_decay=0.05)
    optim = make_optimizer(OptimConfig(muon=True, lr=0.1, steps=3, warmup=0, final=1.0, clip=None), ours)
    state = optim.init(ours)
    for _ in range(3):
        gradients = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for name, array in theirs.items():
            array.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step()
        updates, state = optim.update({name: {"kernel": jnp.asarray(moved[name](each))} for name, each in gradients.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name]["kernel"], moved[name](array.detach().numpy()), atol=2e-5, err_msg=name)


def study(folder, out):
    encoder = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2)
    return FewLabelConfig(
        scans=str(folder / "scans"),
        store=str(folder / "store"),
        out=str(out),
        labels=(1,),
        draws=(0,),
        arms=("resenc", "anchor"),
        test_cases=1,
        allow_overlap=True,
        finetune=FinetuneConfig(
            model=UNETRConfig(encoder=encoder, feature=4, stride=2),
            batch=2,
            augment=Augment.none(),
            optim=OptimConfig(lr=1e-3, warmup=1, muon=True),
            loop=LoopConfig(steps=2, save_every=0, log_every=1),
        ),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchor")
    prepare_folder(write_scans(folder / "scans", 3, channels=("T1",)), folder / "store", processes=1)
    return folder


@pytest.mark.slow
@pytest.mark.parity
def test_it_fills_in_its_cells_and_only_these(data, tmp_path):
    import_peer("torch")
    import_peer("dynamic_network_architectures")
    content = run_study(study(data, tmp_path), measure=anchor.measure_anchor, only=("anchor",)).content
    resenc, made = content["cells"]
    assert (resenc["status"], made["status"]) == ("not measured", "done")
    assert made["budget"]["steps"] == 2 and made["budget"]["crops"] == 4 and made["budget"]["seconds_per_step"] > 0
    assert 0 <= made["dice"] <= 1 and len(made["per_case"]) == 1
    assert "in PyTorch" in (tmp_path / "table.md").read_text()


def test_the_study_itself_leaves_it_alone_and_says_who_fills_it_in(data, tmp_path):
    def never(*_, **__):
        raise AssertionError("the anchor is not for this measure")

    config = dataclasses.replace(study(data, tmp_path), arms=("anchor",))
    content = run_study(config, measure=never).content
    assert [cell["status"] for cell in content["cells"]] == ["not measured"]
    assert "python -m bench.anchor" in (tmp_path / "table.md").read_text()


def test_without_pytorch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert anchor.main(["brain"]) == ConfigError("").exit_code
    assert "pip install 'jaxseg[parity]'" in capsys.readouterr().err
