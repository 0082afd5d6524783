"""Which way imports run: read from the sources, held here. See docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package or module → the parts of jaxseg that it may import (besides itself, errors, files)
ALLOWED = {
    "jaxseg.models": set(),
    "jaxseg.losses": set(),
    "jaxseg.metrics": set(),
    "jaxseg.data": {"compilation", "freed_memory"},
    "jaxseg.train": {"manifest", "loaded_programs"},
    "jaxseg.zoo": {"models", "manifest"},
    "jaxseg.infer": {"data", "zoo"},
    "jaxseg.report": set(),
    "jaxseg.config": set(),
    "jaxseg.manifest": set(),
    "jaxseg.loaded_programs": set(),
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def sources(package: str) -> list[Path]:
    folder = ROOT / package.replace(".", "/")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("package", ALLOWED)
def test_inside_jaxseg_imports_run_one_way(package):
    own = package.split(".")[1]
    allowed = ALLOWED[package] | {own, "errors", "files"}
    for path in sources(package):
        for name in imports_of(path):
            if name.startswith("jaxseg.") and name != "jaxseg.__version__":
                assert name.split(".")[1] in allowed, f"{path} imports {name}"


def test_pretrain_and_finetune_never_meet():
    for package, other in (("pretrain", "finetune"), ("finetune", "pretrain")):
        for path in sources(package):
            assert not any(name.split(".")[0] == other for name in imports_of(path)), path


def test_only_the_command_line_imports_pretrain_and_finetune_and_lazily():
    for path in sources("jaxseg"):
        names = {name.split(".")[0] for name in imports_of(path)}
        if path.name != "cli.py":
            assert not names & {"pretrain", "finetune"}, path
    module = ast.parse((ROOT / "jaxseg" / "cli.py").read_text())
    top = {alias.name for node in module.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {str(node.module) for node in module.body if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in top} & {"pretrain", "finetune", "jax", "numpy"}


def test_nothing_imports_the_command_line_but_the_entry_points():
    for package in ("jaxseg", "pretrain", "finetune"):
        for path in sources(package):
            if path.name != "__main__.py":
                assert "jaxseg.cli" not in imports_of(path), path


def test_no_torch_and_no_tensorflow_in_the_library():
    for package in ("jaxseg", "pretrain", "finetune", "configs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            assert not {name.split(".")[0] for name in imports_of(path)} & {"torch", "tensorflow", "monai"}, path


def test_no_file_is_named_after_nothing():
    for package in ("jaxseg", "pretrain", "finetune", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem not in {"util", "utils", "helper", "helpers", "common", "misc", "base"}, path


@pytest.mark.parametrize(
    "command", [["-c", "import jaxseg"], ["-m", "jaxseg.cli", "--help"], ["-c", "import jaxseg; jaxseg.errors.JaxsegError"]]
)
def test_the_library_and_its_help_do_not_import_jax(command):
    code = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120)
    assert code.returncode == 0, code.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in code.stderr.splitlines() if line.startswith("import time:") and "|" in line}
    assert "jaxseg" in imported or "argparse" in imported
    assert not {"jax", "numpy", "flax", "nibabel"} & imported
