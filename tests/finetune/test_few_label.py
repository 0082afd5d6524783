"""The few-label study from the command line: its configs are found, and what is missing is said."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["brain", "sarcoma"])
def test_a_shipped_study_says_what_it_still_needs(name):
    done = subprocess.run([sys.executable, "-m", "finetune.few_label", name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "needs --scans, --store, --pretrained, --out" in done.stderr
    assert "Traceback" not in done.stderr
