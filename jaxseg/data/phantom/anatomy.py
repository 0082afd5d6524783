"""A head: which part of each voxel is which tissue. Called by `case.py`; coordinates are RAS+ mm about the middle of the brain.

Everything is drawn in one canonical head and seen through a smooth random deformation of its coordinates, so that no two subjects
are alike and a tumour pushes the anatomy by deforming the same coordinates further.
"""

from dataclasses import dataclass

import numpy as np

from jaxseg.data.phantom.shapes import Array, Labyrinth, Lattice, Points, blend, ellipsoid, membership, smooth_noise, tube

TISSUES = (
    *("air", "csf", "grey", "white", "deep", "pallidum", "stem", "fat", "skin", "bone", "marrow"),
    *("muscle", "vessel", "choroid", "dura", "eye", "mucosa", "hyperintensity", "necrosis", "oedema", "enhancing"),
)
INDEX = {name: number for number, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class Subject:
    """What differs between two people: sizes (1 = usual), millimetres, and the share of the white matter that has aged."""

    scale: tuple[float, float, float]
    tilt: tuple[float, float, float]
    ventricles: float
    sulcus_mm: float
    gap_mm: float
    cortex_mm: float
    skull_mm: float
    scalp_mm: float
    ageing: float


def draw_subject(rng: np.random.Generator) -> Subject:
    """A random person. Age widens ventricles, sulci and the gap under the skull together, and brings white-matter hyperintensities."""
    age = rng.uniform(0, 1)
    size = rng.normal(1, 0.035)
    sides = rng.normal(1, 0.03, 3) * size
    return Subject(
        scale=(float(sides[0]), float(sides[1]), float(sides[2])),
        tilt=tuple(np.deg2rad(rng.normal(0, [4, 3, 4])).tolist()),
        ventricles=float(0.72 + 0.75 * age**1.5 + rng.normal(0, 0.08)),
        sulcus_mm=float(0.45 + 0.6 * age + rng.uniform(-0.1, 0.2)),
        gap_mm=float(1.6 + 2.2 * age + rng.uniform(-0.3, 0.5)),
        cortex_mm=float(rng.uniform(2.6, 3.3)),
        skull_mm=float(rng.uniform(5, 8)),
        scalp_mm=float(rng.uniform(4.5, 9)),
        ageing=float(np.clip(age - 0.3 + rng.normal(0, 0.15), 0, 1)),
    )


def rotation(angles: tuple[float, float, float]) -> Array:
    """(3, 3) rotation by angles (radians) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def canonical_matrix(subject: Subject) -> Array:
    """(3, 3) from the subject's world to the canonical head."""
    return np.diag(1 / np.array(subject.scale)) @ rotation(subject.tilt)


def canonical(rng: np.random.Generator, subject: Subject, lattice: Lattice) -> Points:
    """Where each voxel of the lattice lies in the canonical head: rotation, size and a smooth random warp of a few mm."""
    x, y, z = lattice.axes()
    matrix = canonical_matrix(subject).astype(np.float32)
    points = []
    for row in matrix:
        warp = 2.1 * smooth_noise(rng, lattice, 62) + 0.9 * smooth_noise(rng, lattice, 24)
        points.append(warp + (row[0] * x)[:, None, None] + (row[1] * y)[None, :, None] + (row[2] * z)[None, None, :])
    return points[0], points[1], points[2]


def mirrored(p: Points) -> Points:
    """The same points folded onto the right side: structures that come in pairs are drawn once."""
    return np.abs(p[0]), p[1], p[2]


def hemispheres(p: Points) -> Array:
    """The convexity: both hemispheres as if they went on below their floor, with the temporal lobes."""
    q = mirrored(p)
    vault = blend(ellipsoid(q, (0, -2, 6), (66, 84, 64)), ellipsoid(q, (30, -30, 12), (38, 50, 46)), 8)
    vault = blend(vault, ellipsoid(q, (20, 36, 6), (33, 43, 40)), 8)
    return blend(vault, tube(q, [(44, 24, -30, 14), (48, 0, -29, 18), (46, -34, -22, 16)]), 8)


def cerebrum(p: Points) -> Array:
    """Outer surface of the hemispheres, without folds."""
    q = mirrored(p)
    floor = np.minimum(-17 + 0.32 * np.minimum(p[1] + 30, 0), -12) - p[2]  # frontal floor in front, tentorium behind
    above = -blend(-hemispheres(p), -floor, 10)
    return blend(above, tube(q, [(44, 24, -30, 14), (48, 0, -29, 18), (46, -34, -22, 16)]), 10)


def ventricles(p: Points, size: float) -> tuple[Array, Array]:
    """Lateral ventricles (frontal horn, body, atrium, occipital and temporal horns), and the third and fourth with the aqueduct."""
    q = mirrored(p)
    s = size
    body = [(15, 33, 4, 2.2 * s), (9, 23, 9, 4.6 * s), (9, 6, 15, 4.8 * s), (13, -16, 20, 4.4 * s), (21, -34, 15, 5.6 * s)]
    horns = [(21, -34, 15, 5.6 * s), (30, -42, 4, 5.0 * s), (33, -26, -12, 2.6 * s), (33, -6, -19, 2.0 * s)]
    occipital = [(27, -42, 6, 4.6 * s), (27, -62, 4, 1.6 * s)]
    lateral = np.minimum(np.minimum(tube(q, body), tube(q, horns)), tube(q, occipital))
    lateral = np.maximum(lateral, 0.9 - q[0])  # the septum between the two
    third = ellipsoid(q, (0, -12, -3), (1.6 * s + 0.8, 16, 11))
    fourth = np.minimum(tube(q, [(0, -28, -8, 1.2), (0, -36, -24, 1.2)]), ellipsoid(q, (0, -41, -33), (7 * s, 4.5 * s, 9)))
    return lateral, np.minimum(third, fourth)


def deep_nuclei(p: Points, size: float) -> dict[str, Array]:
    """Caudate (beside the lateral ventricle), putamen, pallidum, thalamus, hippocampus."""
    q = mirrored(p)
    out = 3.0 * (size - 1)
    turned = (q[0] + 0.28 * (q[1] - 4) * np.sign(q[1] - 4), q[1], q[2])
    caudate = tube(q, [(15 + out, 24, 6, 5.5), (16 + out, 10, 12, 5.0), (20 + out, -10, 20, 2.8), (27 + out, -30, 20, 1.6)])
    return {
        "caudate": caudate,
        "putamen": ellipsoid(turned, (30, 4, 1), (5.5, 17, 11)),
        "pallidum": ellipsoid(turned, (22.5, 1, -1), (3.8, 9.5, 7)),
        "thalamus": ellipsoid(q, (10.5, -17, 4), (8.5, 14, 9)),
        "hippocampus": tube(q, [(26, -8, -21, 5), (29, -28, -14, 3.5)]),
    }


def cerebellum(p: Points) -> Array:
    """Two hemispheres of the cerebellum and the vermis, below the tentorium."""
    q = mirrored(p)
    roof = p[2] - (-19 + 0.32 * np.minimum(p[1] + 30, 0))
    return np.maximum(blend(ellipsoid(q, (25, -58, -41), (27, 30, 25)), ellipsoid(q, (0, -57, -38), (14, 24, 22)), 8), roof)


def brain_stem(p: Points) -> Array:
    """Midbrain, pons, medulla, down to the cord."""
    stem = tube(p, [(0, -20, -8, 15), (0, -24, -24, 13), (0, -27, -46, 11), (0, -34, -66, 8), (0, -38, -120, 6)])
    return blend(stem, ellipsoid(p, (0, -20, -35), (18, 13, 14)), 6)


def folds(p: Points, outer: Array, waves: Labyrinth, depth_mm: Array, subject: Subject) -> Array:
    """Level function of the folded surface of the hemispheres: sulci, the fissure between them, the Sylvian fissures."""
    x, y, z = p
    rho = np.sqrt((x / 67) ** 2 + (y / 85) ** 2 + ((z - 6) / 64) ** 2)
    shrink = 1 / np.clip(rho, 0.45, None) ** 0.75  # sheets run towards the middle of the brain, as sulci do
    side = np.where(x > 0, 0, 61).astype(np.float32)  # another part of the pattern on the left: no mirror image
    sheet = np.abs(waves((x * shrink + side, y * shrink, z * shrink)))
    width = subject.sulcus_mm * np.clip(1.1 + outer / 30, 0.45, 1.2)
    sulci = np.minimum(width - sheet, depth_mm + hemispheres(p))
    core = ellipsoid(p, (0, -6, 2), (40, 44, 27))  # the fissure stops at the corpus callosum and the basal forebrain
    fissure = np.minimum(subject.sulcus_mm + 0.3 - np.abs(x), core)
    bend = np.abs(z - (-11 - 0.4 * (y - 10)) - 0.35 * (np.abs(x) - 48) + 2.5 * np.sin(y / 9))
    along = np.maximum(np.abs(y + 4) - 34, 35 - np.abs(x))
    sylvian = np.minimum(1.3 * subject.sulcus_mm - 0.85 * bend, -along)
    return np.maximum(np.maximum(outer, sulci), np.maximum(fissure, sylvian))


class Canvas:
    """Tissue fractions, painted front to back: what is painted first hides what comes later."""

    def __init__(self, shape: tuple[int, ...], width: float) -> None:
        self.fractions = np.zeros((len(TISSUES), *shape), np.float32)
        self.left = np.ones(shape, np.float32)
        self.width = width

    def paint(self, tissue: str, level: Array, *, width: float | None = None, strength: float = 1.0) -> None:
        """Fill the inside of `level` with `tissue`, as far as nothing lies in front of it."""
        part = membership(level, width or self.width) * self.left
        if strength != 1:
            part *= np.float32(strength)
        self.fractions[INDEX[tissue]] += part
        self.left -= part

    def finish(self) -> Array:
        """(tissue, x, y, z) float32 that sums to 1; what nothing was painted on is air."""
        self.fractions[INDEX["air"]] += self.left
        return self.fractions


def paint_brain(canvas: Canvas, p: Points, subject: Subject, rng: np.random.Generator, lattice: Lattice, outer: Array) -> Array:
    """Everything inside the skull but cerebrospinal fluid and sinuses; returns the level function of the lateral ventricles."""
    lateral, midline = ventricles(p, subject.ventricles)
    plexus = tube(mirrored(p), [(13, -12, 17, 1.0), (21, -34, 13, 2.6), (30, -40, 4, 1.6)])
    canvas.paint("choroid", np.maximum(plexus, lateral))
    canvas.paint("csf", np.minimum(lateral, midline))
    nuclei = deep_nuclei(p, subject.ventricles)
    canvas.paint("pallidum", nuclei["pallidum"], width=3)
    canvas.paint("deep", np.minimum(np.minimum(nuclei["caudate"], nuclei["putamen"]), nuclei["hippocampus"]))
    canvas.paint("deep", nuclei["thalamus"], width=4, strength=0.8)
    stem = brain_stem(p)
    canvas.paint("stem", stem)
    waves = Labyrinth(rng, rng.uniform(17, 21))
    depth = 17 + 5 * smooth_noise(rng, lattice, 30)
    pial = folds(p, outer, waves, depth, subject)
    canvas.paint("white", pial + subject.cortex_mm)
    canvas.paint("grey", pial)
    folia = np.abs(waves((0.55 * p[0], 1.5 * p[1] + 40, 2.4 * p[2]))) / 1.9
    small = cerebellum(p)
    leaves = np.maximum(small, np.minimum(0.35 - folia, 9 + small))
    canvas.paint("white", leaves + 2.6)
    canvas.paint("grey", leaves)
    sheet = np.abs(waves((p[1], p[2] + 17, p[0])))
    other = np.abs(waves((p[2] + 31, p[0], p[1])))
    lines = np.maximum(np.hypot(sheet, other) - 1.1, np.abs(pial - 1) - 4)
    canvas.paint("vessel", np.maximum(lines, outer - 2))
    falx = np.maximum(np.abs(p[0]) - 0.6, -ellipsoid(p, (0, -6, 0), (40, 56, 38)))
    canvas.paint("dura", np.maximum(falx, outer - 3))
    return lateral


def paint_head(canvas: Canvas, p: Points, subject: Subject, rng: np.random.Generator, lattice: Lattice, inner: Array) -> None:
    """Sinuses, skull, eyes, face, scalp around the brain; `inner` is the level function of the inside of the skull."""
    q = mirrored(p)
    rough = smooth_noise(rng, lattice, 14)
    outside = inner - subject.skull_mm - subject.scalp_mm
    face = ellipsoid(p, (0, 42, -52), (60, 58, 60))
    head = blend(blend(outside, face, 18), ellipsoid(p, (0, -22, -95), (60, 66, 60)), 22)
    sinus = np.minimum(np.hypot(p[0], inner + 1) - 3.2 - (p[2] < -30) * 9, np.hypot(inner + 1.5, p[2] + 27) - 3)
    canvas.paint("vessel", np.maximum(sinus, p[1] + np.where(p[2] > 20, -60, 42)))
    canvas.paint("csf", inner)
    canvas.paint("eye", ellipsoid(q, (32, 76, -31), (12, 12, 12)))
    caves = np.minimum(ellipsoid(q, (27, 62, -62), (13, 17, 15)), ellipsoid(q, (0, 66, -48), (13, 25, 20))) + 2.2 * rough
    canvas.paint("air", caves)
    canvas.paint("mucosa", caves - 2.5)
    canvas.paint("fat", np.maximum(ellipsoid(q, (30, 66, -31), (17, 22, 15)), head + 2))
    shell = inner - subject.skull_mm - rough
    canvas.paint("marrow", np.maximum(np.abs(inner - 0.5 * subject.skull_mm) - 1.3 - 0.7 * rough, head + 6))
    canvas.paint("bone", np.maximum(shell, head + 3))
    planes = 0.35 - np.abs(smooth_noise(rng, lattice, 12))  # fat between the muscles of face and neck
    canvas.paint("muscle", np.maximum(head + 6.5, np.where(p[2] < -15, 9 * planes, 8 * rough)))
    canvas.paint("fat", head + 1.8)
    canvas.paint("skin", head)


def paint_subject(rng: np.random.Generator, subject: Subject, p: Points, lattice: Lattice, width: float) -> tuple[Array, Array]:
    """Tissue fractions (tissue, x, y, z) of a healthy head at canonical points `p`, and the level function of its lateral ventricles."""
    canvas = Canvas(lattice.shape, width)
    outer = cerebrum(p)
    hull = blend(blend(outer, cerebellum(p), 10), brain_stem(p), 8)
    lateral = paint_brain(canvas, p, subject, rng, lattice, outer)
    paint_head(canvas, p, subject, rng, lattice, hull - subject.gap_mm)
    fractions = canvas.finish()
    add_ageing(fractions, rng, subject, lateral, lattice)
    return fractions, lateral


def add_ageing(fractions: Array, rng: np.random.Generator, subject: Subject, lateral: Array, lattice: Lattice) -> None:
    """White-matter hyperintensities: caps and bands along the ventricles, and specks further out. Changes `fractions` in place."""
    noise = smooth_noise(rng, lattice, 11)
    near = np.clip(1 - lateral / 9, -1.2, 1)
    part = np.clip(1.3 * near + 0.9 * noise + 2.4 * subject.ageing - 2.9, 0, 1) * fractions[INDEX["white"]]
    fractions[INDEX["hyperintensity"]] = part
    fractions[INDEX["white"]] -= part
