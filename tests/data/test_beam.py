"""Beam gives the store that worker processes give, byte for byte, and says why a case is left out. Skips where Apache Beam is not installed."""

import pytest

from jaxseg.data.cases import Case, find_cases
from jaxseg.data.recipe import Recipe
from jaxseg.data.store import build_store
from tests.tiny_store import write_scans

RECIPE = Recipe(("T1", "T2"), (2.0, 2.0, 2.5), ("zscore", "zscore"), labels={"ball": 1})


@pytest.mark.filterwarnings("ignore")  # Beam's own
@pytest.mark.parametrize("options", [[], ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading"]])
def test_the_store_is_the_same_to_the_byte(tmp_path, options):
    pytest.importorskip("apache_beam", reason="needs the beam extra")
    from jaxseg.data.beam import stage_on_beam

    cases = list(find_cases(write_scans(tmp_path / "scans", count=3)))
    (tmp_path / "bad.nii").write_bytes(b"<html>not a scan</html>")
    cases.append(Case("bad", {"T1": tmp_path / "bad.nii"}))
    one = build_store(cases, RECIPE, tmp_path / "one", processes=1)
    other = build_store(cases, RECIPE, tmp_path / "other", stage=stage_on_beam(options))
    assert other.names == one.names and other.left_out == one.left_out and len(one.left_out) == 1
    assert {name: other.entry(name).files for name in other.names} == {name: one.entry(name).files for name in one.names}
    other.verify()


def test_without_beam_the_extra_is_named(monkeypatch):
    import sys

    from jaxseg.data.beam import stage_on_beam
    from jaxseg.errors import ConfigError

    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r"jaxseg\[beam\]"):
        stage_on_beam()
