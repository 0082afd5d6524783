"""Fixtures for every test: eight simulated devices, a compilation cache for the session, and the folder of real scans."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA's CPU client. By default there are as many as devices, and a collective inside a loop that waits in each of them
# for one that has none left deadlocks (and aborts after 40 s) when two cores are busy.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jaxseg-test-cache-{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """The folder of real scans (JAXSEG_TEST_DATA, by default ../shared/data beside the checkout); skips where there is none."""
    root = Path(os.environ.get("JAXSEG_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real scans not found at {root}: set JAXSEG_TEST_DATA to a folder that holds them")
    return root


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Programs are forgotten before they are too many for one process: one module of tests takes up to a third of the memory maps it may have."""
    yield
    from jaxseg.loaded_programs import forget_programs  # not above: the lines there must come before JAX

    forget_programs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where parity must be proven (continuous integration sets JAXSEG_REQUIRE_PARITY), a parity test that is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("JAXSEG_REQUIRE_PARITY") and item.get_closest_marker("parity"):
        report.outcome = "failed"
        report.longrepr = f"skipped although parity is required: {report.longrepr}"
    return report
