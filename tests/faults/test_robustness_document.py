"""docs/robustness.md names a test for every row, and every test that it names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
ROWS = {*range(1, 41), 42, *range(45, 59), 62} - {57}


def tables():
    return [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| (\d+|–) \|", line)]


def test_every_row_stands_in_the_document():
    assert {int(row[0]) for row in tables() if row[0].strip() != "–"} == ROWS


def test_every_row_names_tests_that_exist():
    known: dict[str, set[str]] = {}
    for row in tables():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
        assert named, row[0]
        for file, test in named:
            if file not in known:
                module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                known[file] = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
            assert test in known[file], f"row {row[0]}: {file} has no {test}"
