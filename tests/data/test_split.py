"""Which cases a run uses: nested subsets, and clear refusals."""

import json

import pytest

from jaxseg.data.split import select_cases
from jaxseg.errors import ConfigError

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def split(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"test": ["d"], "draws": [["c", "a", "b"], ["b", "c", "a"]], "about": "text", "twice": ["a", "b", "a"]}))
    return str(path)


def test_no_split_is_every_case():
    assert select_cases(NAMES) == NAMES


def test_subsets_of_a_draw_are_nested(split):
    subsets = [set(select_cases(NAMES, f"{split}:draws.1", count)) for count in (1, 2, 3)]
    assert subsets[0] < subsets[1] < subsets[2] == {"a", "b", "c"}
    assert select_cases(NAMES, f"{split}:draws.1", 1) == ("b",)


@pytest.mark.parametrize(
    ("spec", "count", "words"),
    [
        (":train", None, "there is no 'train'.*test, draws"),
        (":draws.7", None, "0 to 1"),
        (":about", None, "not a list"),
        (":about.0.x", None, "nothing below it"),
        (":twice", None, "names a more than once"),
        (":test", 2, "2 cases were asked for"),
        (":test", 0, "0 cases were asked for"),
    ],
)
def test_what_is_not_there_is_refused(split, spec, count, words):
    with pytest.raises(ConfigError, match=words):
        select_cases(NAMES, split + spec, count)


def test_a_case_that_the_store_lacks_is_named(split):
    with pytest.raises(ConfigError, match="1 of its 1 cases are not in the store: d"):
        select_cases(("a", "b"), f"{split}:test")


def test_a_split_without_a_key_is_refused(split):
    with pytest.raises(ConfigError, match="FILE.json:KEY"):
        select_cases(NAMES, "split")
