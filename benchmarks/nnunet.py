"""What nnU-Net v2 does itself: preprocessing of one case, and a training step.

Preprocessing is without resampling: read, crop, normalise, sample locations, write b2nd. It takes one label map a case,
which is made beforehand: merging the masks is not counted. Plans and trainer are cut down to what the functions look at;
what would resample returns its input.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from conversion import nifti
from conversion.source import Source
from pants_dist.strides import Level

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


def training_step(
    levels: Sequence[Level], channels: Sequence[int], classes: int, shape: tuple[int, ...], compiled: bool
) -> Callable[[], object]:
    """nnUNetTrainer.train_step on one batch of noise of `shape` (B, 1, z, y, x): its plain network, loss and optimizer.

    On a GPU, where there is one, in fp16 with its gradient scaler. Labels exclude one another.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    strides = [level.stride_zyx for level in levels]
    network = PlainConvUNet(
        1, len(levels), channels, torch.nn.Conv3d, [level.kernel_zyx for level in levels], strides, 2, classes, 2,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    ).to(device)  # fmt: skip
    network.apply(network.initialize)
    trainer = SimpleNamespace(
        device=device, network=torch.compile(network) if compiled else network, initial_lr=1e-2, weight_decay=3e-5,
        num_epochs=1000, is_ddp=False, enable_deep_supervision=True, _do_i_compile=lambda: compiled,
        grad_scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
        label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
        configuration_manager=SimpleNamespace(batch_dice=False, pool_op_kernel_sizes=strides),
    )  # fmt: skip
    trainer._get_deep_supervision_scales = lambda: nnUNetTrainer._get_deep_supervision_scales(trainer)
    trainer.optimizer, _ = nnUNetTrainer.configure_optimizers(trainer)
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    data = torch.randn(shape, device=device)
    with torch.no_grad():
        heads = network(data)
    target = [torch.randint(classes, (shape[0], 1, *head.shape[2:]), device=device).float() for head in heads]
    return lambda: nnUNetTrainer.train_step(trainer, {"data": data, "target": target})
