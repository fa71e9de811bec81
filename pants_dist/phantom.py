"""A synthetic multi-center cohort in PanTS's layout: the same files from the same arguments, on any number of workers.

OUT/phantom.json                                     the arguments, written first
OUT/ImageTr/<case>/ct.nii.gz                         int16 HU; a case's last file, so that its presence means "complete"
OUT/LabelTr/<case>/segmentations/<28 names>.nii.gz   uint8
OUT/metadata.xlsx                                    written last
"""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from conversion import nifti
from conversion.pool import Died, run_jobs
from pants_dist.anatomy import Patient, anatomy, make_patient
from pants_dist.cases import FIRST_TEST_NUMBER
from pants_dist.cluster import usable_cores
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.scanner import Scanner, mask, scan
from pants_dist.shapes import Bend, Grid, Point
from pants_dist.structures import LESION, PANCREAS_PARTS, PANTS

RECIPE = 1  # raise it when the same arguments give other files than before
COLUMNS = (
    *("PanTS ID", "shape", "spacing", "ct phase", "sex", "age", "manufacturer", "manufacturer model", "study type"),
    *("site", "site detail", "site nationality", "study year", "tumor?"),
)
SHEET = "PanTS_metadata"
PART_SLOPE = 1.0000001  # as in the released head, body and tail masks: 1 does not load as exactly 1
ORIENTATIONS = ("RAS", "LPS", "LAS", "IPL")
CENTER_PHASES = ("Venous", "Arterial", "Non-contrast", "Venous", "Delay", "Venous")
MODELS = (
    *(("SIEMENS", "Sensation 64"), ("GE MEDICAL SYSTEMS", "LightSpeed VCT"), ("Philips", "Brilliance 64")),
    *(("SIEMENS", "somatom definition flash"), ("TOSHIBA", "Aquilion")),
)
FIRST_YEAR, YEARS = 2004, 18
FIELD_MM_XY = (352.0, 290.0)
LEAST_SLICES, MOST_SLICES = 160, 256  # at scale 1
ABDOMEN_MM = 340.0  # a scan longer than that shows the pelvis
_CENTERS, _CASE, _DRAWING = range(3)  # which stream of random numbers


@dataclass(frozen=True)
class Cohort:
    """The arguments; `scale` makes voxels larger by 1 / scale, not the patient smaller."""

    cases: int
    centers: int
    seed: int
    scale: float


@dataclass(frozen=True)
class Center:
    """A made-up hospital: its scanner and how it scans. Voxel sizes are those at scale 1."""

    name: str
    scanner: Scanner
    phases: tuple[str, str]  # the usual one, and that of every fourth case
    in_plane_mm: float
    slice_mm: float
    manufacturer: str
    model: str
    nationality: str
    year: int


@dataclass(frozen=True)
class Case:
    """Everything about a case but its voxels; `first_mm_xyz` is the first voxel in RAS order, in the patient."""

    case: str
    center: Center
    phase: str
    patient: Patient
    age: int
    orientation: str
    shape_xyz: tuple[int, int, int]
    spacing_mm_xyz: Point
    first_mm_xyz: Point
    table_mm_xyz: Point  # from the patient's origin to the scanner's
    drawing: tuple[int, ...]  # seeds what is random in the voxels


def make_phantom(
    out: Path,
    cases: int = 24,
    centers: int = 6,
    seed: int = 0,
    scale: float = 0.25,
    on_case: Callable[[str], None] | None = None,
    workers: int | None = None,
) -> list[str]:
    """Write a synthetic cohort to `out` and return its case ids; the same call again completes what was cut off.

    About half of each center's cases carry a lesion. `scale` 1 gives some 500 x 400 x 200 voxels (and takes some
    1.3 GB and 40 s a case), 0.25 a quarter of that along each axis. `on_case(id)` is called for each case once it is there,
    `workers` defaults to the cores at hand. Raises UserError for arguments that make no cohort and where `out` holds
    something else.
    """
    cohort = Cohort(cases, centers, seed, float(scale))
    _check(cohort, workers)
    _claim(out, cohort)
    plans = list(plan_cases(cohort))
    missing = [plan for plan in plans if not _image(out, plan).exists()]
    tell = on_case or (lambda case: None)
    for plan in plans:
        if plan not in missing:
            tell(plan.case)
    for plan, failure in run_jobs(partial(_make_case, out), missing, workers or usable_cores()):
        if failure is not None:
            reason = failure.reason if isinstance(failure, Died) else failure
            raise UserError(f"phantom {out}: {plan.case} was not written ({reason}); run the same command again")
        tell(plan.case)
    with replacing(out / "metadata.xlsx") as file:
        file.write(_workbook([COLUMNS, *(_row(plan) for plan in plans)]))
    return [plan.case for plan in plans]


def _check(cohort: Cohort, workers: int | None) -> None:
    if not 1 <= cohort.cases < FIRST_TEST_NUMBER:
        most = FIRST_TEST_NUMBER - 1
        raise UserError(f"--cases {cohort.cases}: a phantom cohort has 1 to {most} cases; give such a number")
    if not 1 <= cohort.centers <= cohort.cases:
        raise UserError(f"--centers {cohort.centers}: {cohort.cases} cases come from 1 to {cohort.cases} centers")
    if not 0 < cohort.scale <= 1:
        raise UserError(f"--scale {cohort.scale:g}: not above 0 and at most 1; 0.25 is good for a quick run")
    if cohort.seed < 0:
        raise UserError(f"--seed {cohort.seed}: below 0; give 0 or more")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers}: at least 1 is needed")


def _claim(out: Path, cohort: Cohort) -> None:
    """Record the arguments in an empty or new folder; refuse a folder of anything but this very cohort."""
    wanted = {"recipe": RECIPE, **asdict(cohort)}
    record = out / "phantom.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"phantom {out}: is a file; give a new or empty folder")
    if record.exists():
        there = _read_record(record)
        if other := [name for name in wanted if there.get(name) != wanted[name]]:
            name = other[0]
            raise UserError(
                f"phantom {out}: holds a cohort made with {name} {there.get(name)}, not {wanted[name]}; "
                "use the same arguments, or another folder"
            )
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"phantom {out}: has files in it that are no phantom; give a new or empty folder")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as file:
            file.write(json.dumps(wanted).encode())


def _read_record(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"phantom {path}: cannot be read ({error}); give a new folder") from error


def plan_centers(cohort: Cohort) -> list[Center]:
    """The cohort's centers, spread evenly over the range of each property, in an order of its own for each."""
    rng = np.random.default_rng([cohort.seed, _CENTERS])
    spread = [((rng.permutation(cohort.centers) + rng.uniform(0.2, 0.8)) / cohort.centers).tolist() for _ in range(7)]
    centers = []
    for n, (noise, offset, plane, depth, grain, blur, year) in enumerate(zip(*spread, strict=True)):
        scanner = Scanner(
            offset_hu=-12 + 24 * offset,
            noise_hu=6 + 10 * noise,
            grain_voxels_xyz=(0.45 + 0.55 * grain, 0.45 + 0.55 * grain, 0.2 + 0.3 * grain),
            blur_voxels=0.35 + 0.25 * blur,
        )
        usual, seldom = (CENTER_PHASES[(n + k) % len(CENTER_PHASES)] for k in (0, 1))
        maker, model = MODELS[n % len(MODELS)]
        in_plane, slices = round(0.7 + 0.2 * plane, 4), round(1.0 + 1.5 * depth, 2)
        name, country = f"Phantom Hospital {_letters(n)}", f"X{_letters(n)[-1]}"  # XA to XZ are nobody's country codes
        when = FIRST_YEAR + int(YEARS * year)
        centers.append(Center(name, scanner, (usual, seldom), in_plane, slices, maker, model, country, when))
    return centers


def _letters(n: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letters(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)


def plan_cases(cohort: Cohort) -> Iterator[Case]:
    """The cohort's cases: dealt to the centers in turn, every other one of a center with a lesion."""
    centers = plan_centers(cohort)
    for n in range(cohort.cases):
        rng = np.random.default_rng([cohort.seed, _CASE, n])
        turn, at = divmod(n, cohort.centers)
        center = centers[at]
        patient = make_patient(rng, lesion=(turn + at) % 2 == 0)
        shape, spacing, first = _field_of_view(center, patient, cohort.scale, rng)
        yield Case(
            case=f"PanTS_{n + 1:08d}",
            center=center,
            phase=center.phases[turn % 4 == 3],
            patient=patient,
            age=int(rng.integers(28, 88)),
            orientation=ORIENTATIONS[(turn // 2 + at) % len(ORIENTATIONS)],
            shape_xyz=shape,
            spacing_mm_xyz=spacing,
            first_mm_xyz=first,
            table_mm_xyz=(round(rng.normal(0, 8), 2), round(rng.normal(150, 15), 2), round(rng.uniform(-900, 0), 2)),
            drawing=(cohort.seed, _DRAWING, n),
        )


def _field_of_view(
    center: Center, patient: Patient, scale: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int], Point, Point]:
    """(voxels, spacing in mm, the first voxel's place in the patient in mm), all x y z, for one scan."""
    plane, depth = round(center.in_plane_mm / scale, 4), round(center.slice_mm / scale, 4)
    columns, rows = (max(2, round(mm / plane)) for mm in FIELD_MM_XY)
    length_mm = rng.uniform(270, 450) * patient.size_xyz[2]
    slices = max(2, round(np.clip(length_mm / depth, LEAST_SLICES * scale, MOST_SLICES * scale)))
    top_mm = rng.uniform(108, 145) * patient.size_xyz[2]
    x = -(columns - 1) / 2 * plane + rng.normal(0, 4)
    y = -(rows - 1) / 2 * plane - 10 + rng.normal(0, 4)
    return (columns, rows, slices), (plane, plane, depth), (x, y, top_mm - (slices - 1) * depth)


def affine_of(plan: Case) -> np.ndarray:
    """(4, 4): from the voxel indices (i, j, k) of the case's files to RAS mm."""
    affine = np.zeros((4, 4))
    affine[:3, 3] = np.add(plan.first_mm_xyz, plan.table_mm_xyz)
    affine[3, 3] = 1
    for axis, (n, step) in enumerate(_axes_ijk(plan)):
        affine[n, axis] = step * plan.spacing_mm_xyz[n]
        if step < 0:  # the first voxel of the file is the last in RAS order
            affine[n, 3] += (plan.shape_xyz[n] - 1) * plan.spacing_mm_xyz[n]
    return affine


def _axes_ijk(plan: Case) -> list[tuple[int, int]]:
    """For the files' axes i, j and k: which of x, y and z it is, and 1 or -1 for growing with it or against it."""
    pairs = ("RL", "AP", "SI")
    return [next((n, 1 - 2 * pair.index(to)) for n, pair in enumerate(pairs) if to in pair) for to in plan.orientation]


def _make_case(out: Path, plan: Case) -> str | None:
    """Draw, scan and write a case, the CT last. Returns why it could not be written, or None."""
    try:
        for folder in (_image(out, plan).parent, _labels(out, plan).parent):
            shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
        hu, bits = draw_case(plan)
        affine = affine_of(plan)
        for name in PANTS:
            slope, inter = (PART_SLOPE, 0.0) if name in PANCREAS_PARTS else (None, None)
            array = nifti.original(mask(bits, name).transpose(2, 1, 0), affine)
            nifti.write(_labels(out, plan) / f"{name}.nii.gz", array, affine, slope, inter)
        nifti.write(_image(out, plan), nifti.original(hu.transpose(2, 1, 0), affine), affine)
    except OSError as error:
        return str(error)
    return None


def draw_case(plan: Case) -> tuple[np.ndarray, np.ndarray]:
    """(int16 HU, uint32 bits by structure) of a case, both (x, y, z) in RAS order."""
    rng = np.random.default_rng(plan.drawing)
    x, y, z = (
        (first + spacing * np.arange(count)) / size
        for first, spacing, count, size in zip(
            plan.first_mm_xyz, plan.spacing_mm_xyz, plan.shape_xyz, plan.patient.size_xyz, strict=True
        )
    )
    grid = Grid((x, y, z), Bend(rng))
    hu, bits = scan(grid, plan.patient, anatomy(plan.patient, rng), plan.phase, plan.center.scanner, rng)
    assert mask(bits, LESION).any() == plan.patient.lesion, f"{plan.case}: the metadata would not agree with the mask"
    return hu, bits


def _image(out: Path, plan: Case) -> Path:
    return out / "ImageTr" / plan.case / "ct.nii.gz"


def _labels(out: Path, plan: Case) -> Path:
    return out / "LabelTr" / plan.case / "segmentations"


def _row(plan: Case) -> tuple[str, ...]:
    """The case's row of metadata.xlsx, in the order of COLUMNS; shape and spacing along the axes of the files."""
    shape = tuple(plan.shape_xyz[n] for n, _ in _axes_ijk(plan))
    spacing = tuple(plan.spacing_mm_xyz[n] for n, _ in _axes_ijk(plan))
    pelvis = plan.shape_xyz[2] * plan.spacing_mm_xyz[2] > ABDOMEN_MM
    center = plan.center
    return (
        *(plan.case, str(shape), str(spacing), plan.phase, plan.patient.sex, str(plan.age)),
        *(center.manufacturer, center.model, "ct abdomen-pelvis" if pelvis else "ct abdomen"),
        *("1 Site", center.name, center.nationality, str(center.year), str(int(plan.patient.lesion))),
    )


def _workbook(rows: list[tuple[str, ...]]) -> bytes:
    """An .xlsx of text cells. openpyxl stamps the time of day into it; here it gets the time that zip counts from."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet(SHEET)
    for row in rows:
        sheet.append(row)
    stamped, plain = io.BytesIO(), io.BytesIO()
    book.save(stamped)
    with zipfile.ZipFile(stamped) as source, zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "docProps/core.xml":
                content = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"1980-01-01T00:00:00Z", content)
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return plain.getvalue()
