"""Case ids that could name a person become keys before they reach a store, a log, a card or a report. Called by `prepare` and the main job."""

import dataclasses
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jaxseg.data.archive.patients import patient_key
from jaxseg.data.cases import CaseSet
from jaxseg.files import write_text

_SHARE = 0.5  # of the cases that must hold a word for it to be the study's and not a person's
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|[0-3]\d[-_.][01]\d[-_.](?:19|20)\d\d|[0-3]\d[01]\d(?:19|20)\d\d)(?!\d)"
)


def may_name_people(ids: Iterable[str]) -> bool:
    """Whether case ids are more than a study's codes.

    Codes are made of numbers and of words that at least half of the cases share (STS_001, sub-01, BraTS20_Training_007); words of one or two
    letters and long hexadecimal keys count as codes too. Any other word, and any date, may be a person's.
    """
    ids = list(ids)
    words = {name: set(_words(name)) for name in ids}
    shared = Counter(word for found in words.values() for word in found)
    if len(ids) == 1:
        strange = len(words[ids[0]]) > 1  # nothing to compare it with: one word and a number may be a code, two words may be a name
    else:
        strange = any(shared[word] < max(2, _SHARE * len(ids)) for found in words.values() for word in found)
    return strange or any(_DATE.search(name) for name in ids)


def pseudonymous(cases: CaseSet, salt: str) -> CaseSet:
    """The same cases under the keys that an index with this salt gives their ids."""
    renamed = tuple(dataclasses.replace(case, id=patient_key(case.id, salt)) for case in cases)
    return dataclasses.replace(cases, cases=tuple(sorted(renamed, key=lambda case: case.id)))


def kept_salt(path: Path) -> str:
    """The salt in a file, which is made with a new one where there is none."""
    if not path.is_file():
        write_text(path, secrets.token_hex(16) + "\n", mode=0o600)
    return path.read_text(encoding="utf-8").strip()


def _words(name: str) -> list[str]:
    parts = re.split(r"[^0-9A-Za-z\u0080-\U0010ffff]+", name)
    coded = (part for part in parts if not re.fullmatch(r"(?=.*\d)[0-9a-fA-F]{8,}", part))
    return [word.lower() for part in coded for word in re.findall(r"[^\W\d_]{3,}", part)]
