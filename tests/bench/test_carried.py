"""What `make carry` takes to a machine without a network is enough for jaxseg there."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
THERE = (
    "jax flax optax orbax-checkpoint numpy scipy matplotlib pyarrow rich absl-py etils cloudpickle protobuf psutil requests "
    "tqdm wrapt pyyaml typing-extensions packaging fsspec zipp six attrs wadler-lindig"
).split()
"""Of a machine with JAX, flax and PyTorch, and what they and the usual libraries bring"""


def needs(name: str, seen: set[str]) -> set[str]:
    """A distribution's name and those of all that it needs here, extras that it asks for apart."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    seen.add(name)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            needs(requirement.name, seen)
    return seen


def test_everything_that_jaxseg_needs_is_carried_or_there():
    carried = re.search(r"^CARRY := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert carried
    listed = {name for name in carried[1].replace("\\", " ").split()}
    there: set[str] = set()
    for name in THERE:
        needs(name, there)
    assert needs("jaxseg", set()) - there - {"jaxseg"} <= listed
