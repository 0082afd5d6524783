"""A model folder as one `.safetensors` file in MONAI's names. Called by `jaxseg export-torch`."""

import json
from pathlib import Path
from typing import Any

import jaxseg
from jaxseg.errors import ConfigError
from jaxseg.files import write_whole
from jaxseg.zoo.export.monai import export_monai, monai_arguments, monai_versions
from jaxseg.zoo.folder import load_model
from jaxseg.zoo.safetensors_file import write_safetensors


def export_file(folder: str | Path, out: str | Path, *, old_merging: bool = False) -> dict[str, Any]:
    """Write the network of a model folder for PyTorch; gives the keyword arguments of MONAI's class that it fits, which the file says too.

    Beside them stand "class" and, for a network that only some versions of MONAI compute, "versions".
    Raises what `load_model` and `export_monai` raise, ConfigError for another ending than `.safetensors`, StorageError if `out` cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: weights are written as .safetensors alone, which holds no code; give the file that ending")
    model = load_model(folder)
    network: Any = model.network
    arrays = export_monai(network, old_merging=old_merging)
    versions = monai_versions(network)
    arguments = {"class": type(network).__name__, **({"versions": versions} if versions else {}), **monai_arguments(network)}
    metadata = {
        "format": "pt",
        "licence": str(model.card["licence"]),
        "made_by": f"jaxseg {jaxseg.__version__}",
        "monai": json.dumps(arguments),
    }
    write_whole(out, lambda temporary: write_safetensors(temporary, arrays, metadata))
    return arguments
