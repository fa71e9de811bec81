"""A synthetic abdomen as a list of parts: ellipsoids and tubes, each at its place, in each case a little different.

Millimetres of a reference adult, RAS: x towards the patient's right, y anterior, z superior; the origin lies at the
pancreas's height in the middle of the trunk. A part that comes later in the list takes its voxels from earlier ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pants_dist.shapes import Ellipsoid, Point, Shape, Tube, points_of
from pants_dist.structures import LESION, PANCREAS, PANCREAS_PARTS

# Where the trunk's outlines run, as ellipses: z, then half-widths (x, y) of the cavity and the y of its middle.
TRUNK_MM = np.array(
    [
        [200, 128, 88, 2],
        [100, 132, 88, 3],
        [0, 127, 81, 6],
        [-100, 122, 76, 8],
        [-180, 114, 72, 8],
        [-250, 72, 62, 8],
        [-295, 48, 42, 4],
        [-325, 4, 4, 4],
    ],
    float,
)
WALL_MM_XY = (12.0, 20.0)  # muscle around the cavity, at the side and (mean of) front and back
WALL_BACK_MM = 15.0  # by how much the wall is thicker at the back than in front
FAT_MM_XY = (22.0, 14.0)  # fat under the skin at a `fat` of 1
CYSTS = 0.4  # the share of lesions that hold fluid and are easily seen
VERTEBRA_MM = 36.0  # from one vertebra to the next

HEAD, BODY, TAIL = PANCREAS_PARTS[1], PANCREAS_PARTS[0], PANCREAS_PARTS[2]
SECTIONS = ((2.6, HEAD), (4.9, BODY), (np.inf, TAIL))  # up to which control point of the pancreas
GLAND = frozenset((PANCREAS, *PANCREAS_PARTS))
SIDES = (("right", 1), ("left", -1))


@dataclass(frozen=True)
class Patient:
    """What makes one patient another: sex, size against the reference along x, y and z, and fat under the skin."""

    sex: str
    size_xyz: Point
    fat: float
    lesion: bool


@dataclass(frozen=True)
class Part:
    """A shape with a tissue, and the structures whose masks it belongs to.

    `layers` are (depth, tissue): within this depth the shape consists of it, the last that holds counts. `sections`
    name a further structure by the position along a tube. `gap_mm` of fat separate it from what was drawn before;
    `keeps` are structures that it does not take voxels from. `frame` parts are straight and not confined to the cavity.
    """

    names: tuple[str, ...]
    shape: Shape
    layers: tuple[tuple[float, str], ...]
    gap_mm: float = 0.0
    gas_above_y_mm: float | None = None
    keeps: frozenset[str] = frozenset()
    sections: tuple[tuple[float, str], ...] = ()
    frame: bool = False


def make_patient(rng: np.random.Generator, lesion: bool) -> Patient:
    """A random adult."""
    sex = "F" if rng.random() < 0.5 else "M"
    whole = rng.normal(0.97 if sex == "F" else 1.02, 0.025)
    x, y, z = (whole * rng.normal(1, 0.025, 3)).clip(0.9, 1.09).tolist()
    return Patient(sex, (x, y, z), float(rng.uniform(0.5, 1.4)), lesion)


def anatomy(patient: Patient, rng: np.random.Generator) -> Iterator[Part]:
    """The parts of a patient in the order in which they are drawn, each varied at random."""
    yield from _chest(rng)
    yield from _liver_and_spleen(rng)
    yield from _bowel(rng)
    yield from _stomach_and_duodenum(rng)
    yield from _kidneys(rng)
    yield from _pelvis(patient, rng)
    yield from _bones()
    yield from _great_vessels(rng)
    yield from _pancreas(patient, rng)


def trunk_half_mm(z_mm: np.ndarray, fat: float) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Outline -> (half-width x, half-width y, y of the middle) at each z: "cavity", "muscle" and "skin" around them."""
    a, b, y = (np.interp(-z_mm, -TRUNK_MM[:, 0], column) for column in TRUNK_MM[:, 1:].T)
    hips = np.interp(-z_mm, (120, 200, 260), (0.0, 28.0, 62.0))  # the cavity narrows there, the body does not
    muscle_a, muscle_b, muscle_y = a + WALL_MM_XY[0] + hips, b + WALL_MM_XY[1] + 0.4 * hips, y - WALL_BACK_MM
    skin = muscle_a + FAT_MM_XY[0] * fat * (1 - hips / 124), muscle_b + FAT_MM_XY[1] * fat, muscle_y + 2 * fat
    return {"skin": skin, "muscle": (muscle_a, muscle_b, muscle_y), "cavity": (a, b, y)}


def _solid(tissue: str) -> tuple[tuple[float, str], ...]:
    return ((1.0, tissue),)


def _hollow(wall: str, content: str, inner: float = 0.85) -> tuple[tuple[float, str], ...]:
    return ((1.0, wall), (inner, content))


def _chest(rng: np.random.Generator) -> Iterator[Part]:
    for side, sign in SIDES:
        lung = Ellipsoid((sign * 72, -2, 205), (62, 84, 118), (0, sign * 6, 0))
        recess = Ellipsoid((sign * 78, -45, 150), (46, 34, 98), (6, 0, 0))
        for shape in (lung, recess):  # the recess reaches far down behind liver and spleen
            yield Part((f"lung_{side}",), shape.varied(rng, 3, 0.04), _solid("lung"))
    heart = Ellipsoid((-24, 30, 170), (62, 46, 52), (0, 0, -20))
    yield Part((), heart.varied(rng), _hollow("muscle", "heart", 0.8))


def _liver_and_spleen(rng: np.random.Generator) -> Iterator[Part]:
    towards_gut = ((-0.75, -0.3, -0.6), (40.0 + rng.normal(0, 3), 0.0, 10.0))  # the flat side, on the bowel and kidney
    on_kidney = ((-0.55, -0.65, -0.5), (72.0 + rng.normal(0, 3), -14.0, 0.0))
    dome = Ellipsoid((72, 2, 42), (82, 92, 80), (0, 0, 0), (towards_gut, on_kidney)).varied(rng, 3, 0.05)
    left_lobe = Ellipsoid((4, 52, 68), (82, 34, 36), (0, 8, 8)).varied(rng, 3, 0.08)
    caudate = Ellipsoid((24, 4, 58), (20, 20, 24))
    for shape in (dome, left_lobe, caudate):
        yield Part(("liver",), shape, _solid("liver"))
    for end, bow in (((88, 5, 62), 14), ((78, 48, 70), 6), ((40, 55, 78), 4)):  # the hepatic veins run to the cava
        tube = Tube(((24, -8, 96), ((24 + end[0]) / 2, end[1] / 2 - bow, 90), end), (5, 4, 2))
        yield Part(("liver",), tube.varied(rng, 2), _solid("hepatic vein"), keeps=frozenset({"liver"}))
    for end in ((92, 30, 30), (98, -15, 40), (64, 55, 44)):  # and the branches of the portal vein fan out
        tube = Tube(((58, 18, 50), ((58 + end[0]) / 2, 18, 48), end), (5, 4, 2))
        yield Part(("liver",), tube.varied(rng, 2), _solid("portal vein"), keeps=frozenset({"liver"}))
    gall_bladder = Ellipsoid((66, 48, 0), (14, 17, 29), (25, 15, 0))
    yield Part(("gall_bladder",), gall_bladder.varied(rng), _hollow("wall", "bile"))
    spleen = Ellipsoid((-106, -32, 50), (32, 56, 52), (12, 0, -24))
    yield Part(("spleen",), spleen.varied(rng, 3, 0.1), _solid("spleen"))


def _bowel(rng: np.random.Generator) -> Iterator[Part]:
    for middle, reach, loops in (((-18, 40, -72), (80, 34, 54), 7), ((0, 22, -165), (78, 44, 40), 6)):
        for _ in range(loops):  # small bowel, which PanTS does not label, and vessels of its mesentery
            coil = np.array(middle) + rng.uniform(-1, 1, (7, 3)) * reach
            yield Part((), Tube(points_of(coil), (11,) * 7, steps=3), _hollow("wall", "gut", 0.75), gap_mm=2)
            twig = np.linspace((8, 16, -40), coil[0], 4) + rng.normal(0, 7, (4, 3))
            yield Part((), Tube(points_of(twig), (2.4, 2, 1.6, 1.2)), _solid("portal vein"))
    points = (
        *((90, 12, -135), (100, -4, -85), (99, 4, -45), (90, 30, -34), (62, 60, -44), (22, 70, -56), (-28, 70, -48)),
        *((-72, 54, -14), (-103, 22, 14), (-108, -4, -28), (-106, -8, -90), (-92, 4, -140), (-60, 12, -172)),
        *((-22, 26, -190), (6, -2, -196), (0, -30, -215), (0, -40, -262)),
    )
    radii = (25, 23, 21, 19, 18, 18, 17, 17, 17, 15, 14, 14, 14, 15, 15, 17, 15)
    bowed = Tube(points, radii).varied(rng, 5, 0.1)
    yield Part(("colon",), _haustrated(bowed), _hollow("wall", "stool", 0.88), 1.5, float(rng.normal(66, 9)))


def _haustrated(tube: Tube) -> Tube:
    """The tube with the colon's pouches: its radius goes up and down along it."""
    along, points, radii = tube.curve()
    pouches = radii * (1 + 0.14 * np.sin(2 * np.pi * along * 1.25))
    return Tube(points_of(points), tuple(pouches.tolist()), steps=1)


def _stomach_and_duodenum(rng: np.random.Generator) -> Iterator[Part]:
    pylorus: Point = (34, 44, 2)
    stomach = Tube(
        ((-58, -12, 94), (-70, 22, 74), (-62, 46, 44), (-28, 60, 14), (8, 58, -4), pylorus), (29, 30, 25, 19, 15, 9)
    )
    gas = float(rng.normal(62, 8))
    yield Part(("stomach",), stomach.varied(rng, 3, 0.12), _hollow("wall", "stomach content"), 2.0, gas)
    loop = ((54, 38, 4), (64, 22, -10), (66, 8, -34), (56, 2, -58), (32, 0, -68), (2, 4, -66), (-24, 16, -50))
    duodenum = Tube((pylorus, *loop, (-34, 28, -38)), (9, 12, 13, 13, 12, 11, 10, 10, 9))
    yield Part(("duodenum",), duodenum.varied(rng, 1.5), _hollow("wall", "gut", 0.6), gap_mm=1.5)


def _kidneys(rng: np.random.Generator) -> Iterator[Part]:
    for (side, sign), z in zip(SIDES, (-16, -5), strict=True):
        lift = z + float(rng.normal(0, 5))
        outer = Ellipsoid((sign * 68, -35, lift), (27, 25, 53), (-12, sign * -10, sign * 20)).varied(rng)
        yield Part((f"kidney_{side}",), outer, ((1.0, "renal cortex"), (0.72, "renal medulla")), gap_mm=6)
        yield Part((), Ellipsoid((sign * 54, -26, lift), (16, 6.5, 20), (0, 0, sign * -25)), _solid("fat"))
        yield Part((), Ellipsoid((sign * 52, -25, lift - 4), (13, 4, 9), (0, 0, sign * -25)), _solid("urine"))
    for (side, sign), z in zip(SIDES, (48, 42), strict=True):
        apex = (sign * 36, -18, z)
        for end in ((sign * 38, -42, z - 4), (sign * 52, -36, z - 8)):  # two limbs, like an inverted V
            limb = Tube((apex, end), (3.2, 2.4), stretch=(1, 1, 4))
            yield Part((f"adrenal_gland_{side}",), limb.varied(rng, 0.8), _solid("adrenal"), gap_mm=1.5)


def _pelvis(patient: Patient, rng: np.random.Generator) -> Iterator[Part]:
    filling = rng.uniform(0.7, 1.15)
    bladder = Ellipsoid((0, 36, -232), (40 * filling, 32 * filling, 30 * filling))
    yield Part(("bladder",), bladder.varied(rng), _hollow("wall", "bladder urine", 0.9), gap_mm=2)
    if patient.sex == "M":
        yield Part(("prostate",), Ellipsoid((0, 16, -274), (23, 17, 19)).varied(rng), _solid("prostate"))
    else:
        yield Part((), Ellipsoid((0, -2, -228), (28, 16, 30), (30, 0, 0)).varied(rng), _solid("muscle"))


def _bones() -> Iterator[Part]:
    for side, sign in SIDES:
        psoas = ((sign * 34, -44, 0), (sign * 42, -38, -90), (sign * 62, 0, -200), (sign * 78, 12, -260))
        yield Part((), Tube(psoas, (9, 18, 20, 12)), _solid("muscle"), gap_mm=2, frame=True)
        yield from (Part((), rib, _hollow("bone", "marrow", 0.55), frame=True) for rib in _ribs(sign))
        yield from _hip(side, sign)
    yield Part((), Ellipsoid((0, -66, -200), (46, 18, 58), (-20, 0, 0)), _hollow("bone", "marrow"), frame=True)
    yield from (Part((), shape, layers, frame=True) for shape, layers in _spine())


def _hip(side: str, sign: int) -> Iterator[Part]:
    wing = Ellipsoid((sign * 98, -28, -165), (9, 52, 52), (0, sign * -14, sign * 28))
    socket = Ellipsoid((sign * 84, 0, -252), (34, 32, 34))
    pubis = Tube(((sign * 66, 24, -258), (sign * 34, 44, -268), (0, 46, -282)), (11, 9, 10))
    yield from (Part((), shape, _hollow("bone", "marrow"), frame=True) for shape in (wing, socket, pubis))
    yield Part((), Ellipsoid((sign * 84, 0, -254), (27, 27, 28)), _solid("muscle"), frame=True)  # the joint
    head = Ellipsoid((sign * 84, 0, -254), (23, 23, 23))
    shaft = Tube(((sign * 88, -2, -258), (sign * 112, -12, -276), (sign * 114, -6, -345)), (15, 17, 15))
    for shape in (head, shaft):
        yield Part((f"femur_{side}",), shape, _hollow("bone", "marrow", 0.75), frame=True)


def _ribs(sign: int) -> Iterator[Tube]:
    """Arcs in the wall from the spine round to the front, sinking on their way; the lower ones are short."""
    for top, last_deg in ((235, 135), (205, 135), (175, 132), (145, 128), (115, 122), (85, 108), (55, 80), (25, 55)):
        angle = np.deg2rad(np.linspace(22, last_deg, 9))
        z = top - 115 * (angle / np.pi) ** 0.8
        half_x, half_y, middle = trunk_half_mm(z, 1.0)["cavity"]
        x, y = (half_x + 5) * np.sin(angle), middle - (half_y + 5) * np.cos(angle)
        yield Tube(points_of(np.stack([sign * x, y, z], axis=1)), (4.5,) * len(z), stretch=(1, 1, 1.25), steps=1)


def _spine() -> Iterator[tuple[Shape, tuple[tuple[float, str], ...]]]:
    """Processes, arch, vertebral bodies, and the canal through the arch."""
    front = np.array(((0, -62, 250), (0, -56, 120), (0, -48, 0), (0, -44, -80), (0, -54, -150), (0, -66, -190)), float)
    behind = points_of(front - (0, 27, 0))
    for z in np.arange(-126, 250, VERTEBRA_MM).tolist():
        y = float(np.interp(-z, -front[:, 2], front[:, 1]))
        yield Ellipsoid((0, y - 46, z - 8), (4, 16, 11), (20, 0, 0)), _solid("bone")
        for sign in (1, -1):
            yield Ellipsoid((sign * 26, y - 24, z), (18, 5, 6), (0, 0, sign * -12)), _solid("bone")
    yield Tube(behind, (14,) * 6), _solid("bone")
    yield Tube(points_of(front), (18.5,) * 6, (1.2, 0.95, 1)), _hollow("vertebra", "vertebra marrow")
    yield Tube(behind, (9,) * 6), _solid("canal")


def _great_vessels(rng: np.random.Generator) -> Iterator[Part]:
    aorta = ((-18, -34, 220), (-14, -32, 120), (-9, -23, 50), (-7, -19, 0), (-4, -14, -108))
    cava = ((26, 4, 140), (25, -6, 95), (22, -18, 50), (21, -20, 0), (18, -16, -110))
    yield Part(("postcava",), Tube(cava, (13, 13, 12, 11, 11), (1.1, 0.9, 1)).varied(rng, 1.5), _solid("cava"))
    yield Part(("aorta",), Tube(aorta, (12.5, 12, 11, 10, 9)).varied(rng, 1.5), _solid("artery"), gap_mm=1.5)
    for sign, start in ((1, (0, -14, -106)), (-1, (-8, -14, -106))):  # the iliac arteries are not PanTS's aorta
        iliac = Tube((start, (sign * 30, -10, -150), (sign * 58, 16, -215), (sign * 66, 46, -285)), (6, 5, 5, 5))
        yield Part((), iliac, _solid("artery"))


def _pancreas(patient: Patient, rng: np.random.Generator) -> Iterator[Part]:
    """The gland from uncinate process to tail with its duct, the vessels around it, and the lesion last."""
    right = ((33, 4, -36), (40, 12, -15), (33, 22, 2), (13, 29, 10))
    left = ((-14, 31, 18), (-41, 21, 25), (-66, 10, 35), (-86, -4, 44))
    gland = Tube(right + left, (12, 15.5, 14.5, 9.5, 11, 11.5, 12, 9), stretch=(1, 1, 1.1)).varied(rng, 2.5, 0.1)
    yield Part((PANCREAS,), gland, _solid("pancreas"), gap_mm=2.5, sections=SECTIONS)
    middle = float(rng.uniform(0.6, 2.2) if rng.random() < 0.6 else rng.uniform(3.4, 6.2))
    blobs, kind = _lesion(gland.at(middle), rng), "cyst" if rng.random() < CYSTS else "tumor"
    section = next(name for limit, name in SECTIONS if middle < limit)
    if patient.lesion:  # the gland bulges around most of the lesion
        yield from (Part((PANCREAS, section), _grown(blob, 0.97), _solid("pancreas")) for blob in blobs)
    yield from _ducts(gland, middle if patient.lesion else None, rng)
    yield from _visceral_vessels(rng)
    if patient.lesion:
        yield from (Part((LESION,), blob, _solid(kind), keeps=GLAND | {"pancreatic_duct"}) for blob in blobs)


def _lesion(middle_mm: np.ndarray, rng: np.random.Generator) -> list[Ellipsoid]:
    """An irregular lump: three ellipsoids that overlap."""
    radius = rng.uniform(11, 22)
    blobs = []
    for share in (1.0, 0.75, 0.75):
        x, y, z = (middle_mm + rng.normal(0, 0.35 * radius * (share < 1), 3)).tolist()
        a, b, c = (share * radius * rng.uniform(0.8, 1.2, 3)).tolist()
        blobs.append(Ellipsoid((x, y, z), (a, b, c), tuple(rng.uniform(-40, 40, 3).tolist())))
    return blobs


def _grown(blob: Ellipsoid, factor: float) -> Ellipsoid:
    a, b, c = (factor * np.array(blob.radii_mm)).tolist()
    return replace(blob, radii_mm=(a, b, c))


def _ducts(gland: Tube, blocked_at: float | None, rng: np.random.Generator) -> Iterator[Part]:
    """The pancreatic duct, wide upstream of a lesion, and the common bile duct, wide above one in the head."""
    middle, wide_mm = blocked_at or 1.0, 1.3 if blocked_at is None else rng.uniform(2, 3.2)
    for start, stop, radius_mm in ((1.0, middle, 1.3), (middle, 6.6, wide_mm)):
        if stop - start > 0.3:
            duct = Tube(points_of(gland.at(np.linspace(start, stop, 8))), (radius_mm,) * 8)
            yield Part(("pancreatic_duct",), duct, _solid("duct"), keeps=GLAND)
    wide = 1.6 if blocked_at is not None and blocked_at < 2.6 else 1.0
    bile = Tube(((50, 24, 44), (46, 20, 20), (44, 8, 0), (46, 4, -18)), (3.4 * wide, 3.4 * wide, 3 * wide, 2.4))
    yield Part(("common_bile_duct",), bile.varied(rng, 1), _solid("bile"), keeps=GLAND)


def _visceral_vessels(rng: np.random.Generator) -> Iterator[Part]:
    crossing: Point = (12, 17, 3)  # where splenic and mesenteric vein meet behind the neck of the pancreas
    veins = (
        Tube(((18, 26, -112), (15, 18, -60), (12, 15, -20), crossing), (5, 6, 6.5, 7)),
        Tube((crossing, (26, 19, 22), (44, 20, 42), (58, 18, 50)), (7.5, 7.5, 7, 6)),
        Tube((crossing, (-14, 19, 12), (-40, 8, 20), (-66, -3, 31), (-86, -14, 43)), (5, 4.5, 4.5, 4.5, 4)),
    )
    for tube in veins:
        yield Part(("veins",), tube.varied(rng, 1), _solid("portal vein"), keeps=GLAND)
    mesenteric = Tube(((-8, -12, 15), (-7, 3, 8), (-6, 8, -14), (-4, 12, -60), (2, 24, -115)), (4.5, 4.5, 4.5, 4, 3))
    yield Part(("superior_mesenteric_artery",), mesenteric.varied(rng, 0.8), _solid("artery"), gap_mm=1.5)
    trunk: Point = (-7, 4, 33)
    for tube in (
        Tube(((-8, -14, 29), trunk), (4.5, 4)),
        Tube((trunk, (14, 12, 37), (30, 18, 42)), (3.4, 3, 2.6)),
        Tube((trunk, (-32, 6, 36), (-58, -6, 42)), (3.4, 3, 2.6)),
    ):
        yield Part(("celiac_artery",), tube, _solid("artery"))
