"""The zoo's table in README, made from the registry and from the measured parity: python -m jaxseg.zoo.table README.md

`tests/golden/measure_parity.py` writes the file of measured differences.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from jaxseg.errors import InputError
from jaxseg.files import read_json, write_text
from jaxseg.zoo.cost import count_flops, count_params
from jaxseg.zoo.registry import FAMILIES, create_model

BEGIN, END = "<!-- zoo: python -m jaxseg.zoo.table README.md -->", "<!-- /zoo -->"
_HEAD = "| name | parameters (M) | GFLOP at 96³ | equals | largest difference |\n|---|---|---|---|---|"


def rows(parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One row a model at one channel and two classes; `parity` is {family: {"peer", "difference" (None: never run)}}."""
    lines = []
    for family, entry in FAMILIES.items():
        peer, difference = parity_columns(parity.get(family))
        for name in entry.names(family):
            network = nnx.eval_shape(lambda name=name: create_model(name))
            lines.append(f"{row_start(name, network)} {count_flops(network) / 1e9:.0f} | {peer} | {difference} |")
    return lines


def row_start(name: str, network: nnx.Module) -> str:
    """The part of a row that the registry alone decides: name and parameters."""
    return f"| `{name}` | {count_params(network) / 1e6:.1f} |"


def parity_columns(found: Mapping[str, Any] | None) -> tuple[str, str]:
    """The peer of a family and how far it is from it; a layout read in sources alone says so."""
    if found is None:
        return "no packaged peer", ""
    return found["peer"], "not measured" if found["difference"] is None else f"{found['difference']:.0e}"


def replace_table(text: str, lines: list[str], source: str) -> str:
    """`text` with `lines` between the two markers. InputError if it has not each of them once, in their order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise InputError(f"{source}: expected the markers {BEGIN} and {END}, each once and in this order, around the zoo's table")
    return "\n".join([f"{before}{BEGIN}", _HEAD, *lines, f"{END}{after}"])


def main() -> None:
    """Write the table into the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the page with the two markers")
    parser.add_argument("--parity", type=Path, default=Path("tests/golden/parity.json"), help="measured differences from the peers")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8")
    write_text(options.file, replace_table(text, rows(read_json(options.parity)), str(options.file)))


if __name__ == "__main__":
    main()
