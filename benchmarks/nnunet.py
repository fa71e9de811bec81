"""nnU-Net v2's own preprocessing of one case, without resampling: read, crop, normalise, sample locations, write b2nd.

It takes one label map a case, which is made beforehand: merging the masks is not counted. Its plans are cut down to what
`run_case_save` looks at; what would resample returns its input.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from conversion import nifti
from conversion.source import Source

INTENSITIES = {"mean": 80.0, "std": 60.0, "percentile_00_5": -100.0, "percentile_99_5": 250.0}
PATCH_ZYX = (128, 128, 128)


def installed() -> bool:
    """Whether the package nnunetv2 is here."""
    return importlib.util.find_spec("nnunetv2") is not None


def label_maps(sources: Sequence[Source], folder: Path) -> dict[str, Path]:
    """Case -> a label map written into `folder`, structures numbered from 1 by name; where they overlap the last wins."""
    found = {}
    for source in sources:
        image = nifti.read(source.image, scaled=False)
        labels = np.zeros(image.array_ijk.shape, np.uint8, order="F")
        for number, name in enumerate(sorted(source.masks), 1):
            labels[nifti.read(source.masks[name]).array_ijk > 0.5] = number
        found[source.case] = folder / f"{source.case}.nii.gz"
        nifti.write(found[source.case], labels, image.affine)
    return found


def preprocessing(labels: dict[str, Path]) -> Callable[[Sequence[Source], Path], None]:
    """A function that preprocesses sources into a folder; `labels` maps a case to its label map."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    def run(sources: Sequence[Source], folder: Path) -> None:
        for source in sources:
            structures = SimpleNamespace(
                has_regions=False, has_ignore_label=False, foreground_labels=list(range(1, len(source.masks) + 1))
            )
            plans = SimpleNamespace(
                image_reader_writer_class=SimpleITKIO,
                transpose_forward=[0, 1, 2],
                foreground_intensity_properties_per_channel={"0": INTENSITIES},
                get_label_manager=lambda dataset, structures=structures: structures,
            )
            configuration = SimpleNamespace(
                spacing=[1.0, 1.0, 1.0],
                normalization_schemes=["CTNormalization"],
                use_mask_for_norm=[False],
                resampling_fn_data=lambda data, *_: data,
                resampling_fn_seg=lambda data, *_: data,
                patch_size=PATCH_ZYX,
            )
            out = str(folder / source.case)
            preprocessor = DefaultPreprocessor(verbose=False)
            preprocessor.run_case_save(out, [str(source.image)], str(labels[source.case]), plans, configuration, {})

    return run
