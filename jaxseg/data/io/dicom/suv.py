"""PET counts to standardised uptake values (SUV by body weight). Called by `read`.

Follows the "happy path" of QIBA's vendor-neutral pseudo-code for SUV (FDG-PET/CT profile, appendix G); where its conditions do not hold,
values stay what they are and the unit says so.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jaxseg.data.io.dicom.elements import items, number, text

SUV = "SUVbw (g/ml)"
PET_KEYS = (
    "Modality Units SUVType CorrectedImage DecayCorrection PatientWeight SeriesDate SeriesTime RadiopharmaceuticalInformationSequence"
).split()
_UNITS = {"BQML": "Bq/ml", "GML": SUV, "CNTS": "counts", "CM2ML": "cm²/ml", "PROPCNTS": "proportional to counts"}
_LONGEST = timedelta(hours=24)


@dataclass(frozen=True)
class Uptake:
    """What rescaled PET values must be multiplied with, their unit after that, and a note for the reader."""

    factor: float
    unit: str
    note: str = ""


def uptake(first: Any, acquired: list[str], path: Path) -> Uptake:
    """How a PET series becomes SUV, from one slice's elements (`PET_KEYS`) and the date and time at which each slice was acquired."""
    units = text(first, "Units").upper()
    unit = _UNITS.get(units, units.lower())
    if units == "GML":
        kind = text(first, "SUVType").upper()
        return Uptake(1.0, SUV if kind in ("", "BW") else f"SUV{kind.lower()}")
    if units != "BQML":
        return Uptake(1.0, unit, f"PET values are in {unit or 'a unit that is not said'}: not converted to SUV")
    factor, why = _factor(first, acquired, path)
    return Uptake(1.0, unit, f"PET values are in Bq/ml: not converted to SUV, because {why}") if why else Uptake(factor, SUV)


def _factor(first: Any, acquired: list[str], path: Path) -> tuple[float, str]:
    """(g per Bq, why not)."""
    corrected = set(text(first, "CorrectedImage").upper().split("\\"))
    if not {"ATTN", "DECY"} <= corrected:
        return 0.0, "they are not corrected for attenuation and decay"
    tracer = (items(first, "RadiopharmaceuticalInformationSequence", path) or [None])[0]
    weight = number(first, "PatientWeight", path, 0.0) * 1000
    dose = number(tracer, "RadionuclideTotalDose", path, 0.0) if tracer is not None else 0.0
    half_life = number(tracer, "RadionuclideHalfLife", path, 0.0) if tracer is not None else 0.0
    if min(weight, dose, half_life) <= 0:
        return 0.0, "weight, dose or half-life is not stated"
    when = text(first, "DecayCorrection").upper()
    if when == "ADMIN":
        return weight / dose, ""
    if when != "START":
        return 0.0, "the header does not say to which time decay was corrected"
    start, injected = _scan_start(first, acquired), _injection(first, tracer)
    elapsed = None if start is None or injected is None else start - injected
    if elapsed is None or not timedelta(0) <= elapsed < _LONGEST:
        return 0.0, "the times of injection and scan are not stated, or contradict each other"
    return weight / (dose * 2.0 ** (-elapsed.total_seconds() / half_life)), ""


def _scan_start(first: Any, acquired: list[str]) -> datetime | None:
    """The series' time; None where it lies after a slice's acquisition (it is then the time of some later processing)."""
    series = _moment(text(first, "SeriesDate") + text(first, "SeriesTime"))
    moments = [_moment(said) for said in acquired]
    if series is None or any(moment is None or series > moment for moment in moments):
        return None
    return series


def _injection(first: Any, tracer: Any) -> datetime | None:
    full = text(tracer, "RadiopharmaceuticalStartDateTime")
    return _moment(full or text(first, "SeriesDate") + text(tracer, "RadiopharmaceuticalStartTime"))


def _moment(said: str) -> datetime | None:
    """YYYYMMDDHHMMSS (fractions of a second and the time zone are left out); None for anything shorter."""
    try:
        return datetime.strptime(said[:14], "%Y%m%d%H%M%S") if len(said) >= 14 else None
    except ValueError:
        return None
