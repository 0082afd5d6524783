"""README's table of the zoo is that of the registry; operations are counted by their closed form."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxseg.errors import InputError
from jaxseg.models.resunet import ResUNetConfig
from jaxseg.train import OptimConfig, make_optimizer
from jaxseg.zoo import create_model, list_models
from jaxseg.zoo.cost import count_flops, count_params, update_flops
from jaxseg.zoo.registry import FAMILIES
from jaxseg.zoo.table import BEGIN, END, parity_columns, replace_table, row_start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme():
    """The rows between the markers, by name."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return dict(re.findall(r"^\| `(\w+)` (\|.*)$", table, flags=re.MULTILINE))


AGAIN = "run: python -m jaxseg.zoo.table README.md"


def test_readme_names_every_model(readme):
    assert list(readme) == list_models(), AGAIN


@pytest.mark.parametrize("family", FAMILIES)
def test_readme_has_the_parameters_of_each_family(readme, family):
    """Of each family the first model here; the others were written by the same command."""
    name = next(iter(FAMILIES[family].names(family)))
    row = row_start(name, nnx.eval_shape(lambda: create_model(name)))
    assert f"| `{name}` {readme[name]}".startswith(row + " "), AGAIN


def test_readme_has_the_measured_differences(readme):
    """Every measured family has its number, none is above what the project promises, and the others name no peer."""
    measured = json.loads((ROOT / "tests" / "golden" / "parity.json").read_text(encoding="utf-8"))
    assert all(found["difference"] is None or found["difference"] <= 1e-4 for found in measured.values()) and set(measured) <= set(FAMILIES)
    for family, entry in FAMILIES.items():
        for name in entry.names(family):
            columns = [column.strip() for column in readme[name].split("|")]
            assert tuple(columns[3:5]) == parity_columns(measured.get(family)), AGAIN


def test_scanned_blocks_are_counted_as_often_as_they_run():
    """A ViT in closed form: embedding, then for each block qkv, scores, mixing, output and SwiGLU's three matrices, n tokens of width w."""
    network = nnx.eval_shape(lambda: create_model("vit3d_tiny", depth=5))
    n, w, hidden = 12**3, 192, network.config.block.hidden
    block = 2 * n * (4 * w * w + 3 * w * hidden) + 4 * n * n * w
    assert count_flops(network) == 5 * block + 2 * n * 512 * w
    assert count_params(network, "blocks.4.") == count_params(network, "blocks.0.") > 0
    assert count_params(network) == 5 * count_params(network, "blocks.0.") + 513 * w + 2 * w


def test_convolutions_are_counted_by_outputs_and_taps():
    """One level down and up: stride 2 and its transposed convolution, which multiplies no zeros."""

    class Two(nnx.Module):
        def __init__(self):
            self.config = ResUNetConfig(in_channels=4)
            self.down = nnx.Conv(4, 6, (3, 3, 3), strides=2, rngs=nnx.Rngs(0))
            self.up = nnx.ConvTranspose(6, 5, (2, 2, 2), strides=(2, 2, 2), rngs=nnx.Rngs(0))

        def __call__(self, x, *, spacing=None):
            return self.up(self.down(x)) + jnp.sum(jnp.asarray(spacing))

    assert count_flops(nnx.eval_shape(Two), (8, 8, 16)) == 2 * 128 * (27 * 4 * 6) + 2 * 1024 * 6 * 5


def test_the_table_goes_between_its_markers_and_nowhere_else():
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    made = replace_table(page, ["| `a` | 1.0 | 2 | | |"], "README.md")
    assert made.startswith(f"before\n{BEGIN}\n| name |") and made.endswith(f"| `a` | 1.0 | 2 | | |\n{END}\nafter") and "old" not in made
    assert replace_table(made, ["| `a` | 1.0 | 2 | | |"], "README.md") == made
    for wrong in ("nothing", f"{END}{BEGIN}", page + page):
        with pytest.raises(InputError, match="README.md: expected the markers"):
            replace_table(wrong, [], "README.md")


def test_muon_costs_its_five_iterations_and_adamw_nothing():
    """An iteration on rows × columns, rows the fewer: x xᵀ, its square, and their sum times x."""
    rows, columns, depth = 8, 24, 3
    params = {"encoder": {"blocks": {"mlp": {"kernel": jnp.ones((depth, columns, rows)), "bias": jnp.ones((depth, rows))}}}}
    iteration = 2 * (2 * rows**2 * columns + rows**3)
    assert update_flops(make_optimizer(OptimConfig(muon=True), params), params) == depth * 5 * iteration
    assert update_flops(make_optimizer(OptimConfig(), params), params) == 0
