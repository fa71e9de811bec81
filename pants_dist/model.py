"""The loss and the LightningModule. Images are (B, C, z, y, x); one output channel a structure, sigmoid."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from pants_dist.augment import augmented, resampled, swapped_left_right
from pants_dist.casefile import AIR_HU
from pants_dist.config import Settings
from pants_dist.networks import build_network, supervision_weights
from pants_dist.optimizers import Average, learning_rate, make_optimizer
from pants_dist.transfer import AVERAGE

if TYPE_CHECKING:
    from pants_dist.loader import MicroBatch
    from pants_dist.store import Store


@dataclass(frozen=True)
class Intensity:
    """How HU become network input: clip to [low_hu, high_hu], take off the mean, divide by the deviation."""

    low_hu: float
    high_hu: float
    mean_hu: float
    deviation_hu: float

    @classmethod
    def of(cls, foreground_hu: np.ndarray) -> "Intensity":
        """From HU of annotated voxels of training cases: 0.5 and 99.5 percentiles, as nnU-Net does (Isensee et al. 2021)."""
        low, high = np.percentile(foreground_hu, (0.5, 99.5))
        clipped = np.clip(foreground_hu, low, high)
        return cls(float(low), float(high), float(clipped.mean()), max(float(clipped.std()), 1e-3))

    def __call__(self, hu: Tensor) -> Tensor:
        return (hu.float().clamp(self.low_hu, self.high_hu) - self.mean_hu) / self.deviation_hu


class DiceBCE(nn.Module):
    """Dice + binary cross entropy, 1:1, each the mean over samples and structures: ranks do not change its value."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.dice(logits, target) + binary_cross_entropy_with_logits(logits, target)


class Segmenter(L.LightningModule):
    """Network, loss and optimizer. A batch is one optimizer step: the micro-batches of this rank."""

    def __init__(self, settings: Settings, intensity: Intensity, store: "Store") -> None:
        super().__init__()
        self.settings, self.intensity, self.store = settings, intensity, store
        self.automatic_optimization = False
        data = settings.data
        self.network = build_network(settings.model, len(settings.model.structures), data.patch_zyx, data.spacing_mm_zyx)
        self.dice_bce = DiceBCE()
        self.average: Average | None = None  # made on the device
        self._average_state: dict[str, Any] | None = None

    def forward(self, hu: Tensor) -> Any:
        """Logits (B, structures, z, y, x) of CT in HU (B, 1, z, y, x); while training a list, finest resolution first."""
        return self.network(self.intensity(hu))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches stay in shared memory until their voxels are needed; `images_and_targets` moves them."""
        return batch

    def training_step(self, batch: "list[MicroBatch]", batch_index: int) -> dict[str, Tensor]:
        """One optimizer step: the loss is the mean over the step's samples, over micro-batches and ranks alike."""
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        optimizer.zero_grad()
        samples = sum(len(micro.parts) for micro in batch)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(batch):
            strategy: Any = self.trainer.strategy
            with strategy.block_backward_sync() if number < len(batch) - 1 else torch.enable_grad():
                loss = self.loss(micro) * (len(micro.parts) / samples)
                self.manual_backward(loss)
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm)
        optimizer.step()
        if self.average:
            self.average.update(self.network)
        return {"loss": total, "grad_norm": norm}

    def loss(self, micro: "MicroBatch") -> Tensor:
        """Mean over the micro-batch's samples of Dice + cross entropy, weighed over the network's resolutions."""
        images, targets = self.images_and_targets(micro)
        heads = self.network(images)
        weights = supervision_weights(len(heads))
        at_size = [targets if head.shape == targets.shape else interpolate(targets, head.shape[2:]) for head in heads]
        losses = [weight * self.dice_bce(*pair) for weight, *pair in zip(weights, heads, at_size, strict=True)]
        return torch.stack(losses).sum()

    def images_and_targets(self, micro: "MicroBatch") -> tuple[Tensor, Tensor]:
        """Network input (B, 1, z, y, x) and 0/1 targets (B, structures, z, y, x) of a micro-batch, augmented."""
        patches = [self._patch(micro, number) for number in range(len(micro.parts))]
        images = self.intensity(torch.stack([image for image, _ in patches]))
        if self.settings.augment.intensity:
            images = augmented(images, [part.sample.augment_seed for part in micro.parts])
        return images, torch.stack([target for _, target in patches])

    def _patch(self, micro: "MicroBatch", number: int) -> tuple[Tensor, Tensor]:
        """HU (1, z, y, x) and masks (structures, z, y, x) of a sample's patch, each by one interpolation in its window.

        Structures are looked up before they are interpolated, and are where over half of a voxel is.
        """
        part, size = micro.parts[number], self.settings.data.patch_zyx
        hu = torch.from_numpy(micro.image(number).astype(np.float32)).to(self.device)[None]
        codes = torch.from_numpy(micro.codes(number).astype(np.int64)).to(self.device)
        masks = self._table(part.sample.case)[codes].movedim(-1, 0)
        image = resampled(hu, torch.tensor(part.window.to_image, dtype=torch.float64), size, AIR_HU)
        target = (resampled(masks, torch.tensor(part.window.to_codes, dtype=torch.float64), size, 0.0) >= 0.5).float()
        if part.window.to_image[2][2] < 0:
            target = target[swapped_left_right(self.settings.model.structures)]
        return image, target

    def _table(self, case: str) -> Tensor:
        table = self.store.lookup(case, self.settings.model.structures)
        return torch.from_numpy(table).to(self.device, torch.float32)

    def learning_rate(self, step: int) -> float:
        """Of step `step`, from 0."""
        return learning_rate(self.settings.optim, step, self.settings.train.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.settings.optim, self.network.parameters())

    def on_fit_start(self) -> None:
        if self.settings.optim.ema is not None:
            self.average = Average(self.network, self.settings.optim.ema)
            if self._average_state:
                self.average.load_state_dict(self._average_state)

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that are to be scored: their moving average, where there is one."""
        return self.average.applied(self.network) if self.average else nullcontext()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["intensity"] = asdict(self.intensity)
        if self.average:
            checkpoint[AVERAGE] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._average_state = checkpoint.get(AVERAGE)
