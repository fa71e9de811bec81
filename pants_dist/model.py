"""The networks, the loss and the LightningModule. Images are (B, C, z, y, x); one output channel a structure, sigmoid."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pants_dist.casefile import AIR_HU
from pants_dist.config import Model, Settings

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


def build_network(model: Model) -> nn.Module:
    """The network by name. A new one is one more branch here; its total stride is checked in config.py."""
    strides = (2,) * (len(model.channels) - 1)
    return UNet(
        spatial_dims=3, in_channels=1, out_channels=len(model.structures), channels=model.channels, strides=strides,
        num_res_units=model.blocks[0], norm="INSTANCE", act="LEAKYRELU",
    )  # fmt: skip


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
        self.network = build_network(settings.model)
        self.loss = DiceBCE()

    def forward(self, hu: Tensor) -> Tensor:
        """Logits (B, structures, z, y, x) of CT in HU (B, 1, z, y, x)."""
        return self.network(self.intensity(hu))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches stay in shared memory until their voxels are needed; `forward_and_target` moves them."""
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
                loss = self.loss(*self.forward_and_target(micro)) * (len(micro.parts) / samples)
                self.manual_backward(loss)
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm)
        optimizer.step()
        return {"loss": total, "grad_norm": norm}

    def forward_and_target(self, micro: "MicroBatch") -> tuple[Tensor, Tensor]:
        """Logits and 0/1 targets, both (B, structures, z, y, x), of one micro-batch."""
        count = range(len(micro.parts))
        hu = torch.from_numpy(np.stack([self._patch(micro, n, "image") for n in count])[:, None].astype(np.float32))
        codes = [torch.from_numpy(self._patch(micro, n, "codes").astype(np.int64)).to(self.device) for n in count]
        tables = [self._table(part.sample.case) for part in micro.parts]
        target = torch.stack([table[code].movedim(-1, 0) for table, code in zip(tables, codes, strict=True)])
        return self(hu.to(self.device)), target

    def _patch(self, micro: "MicroBatch", number: int, array: str) -> np.ndarray:
        """The patch of a window without turn or zoom; where it overhangs the scan, air and code 0."""
        size, window = self.settings.data.patch_zyx, micro.image(number) if array == "image" else micro.codes(number)
        if window.shape == size:
            return window
        patch = np.full(size, AIR_HU if array == "image" else 0, window.dtype)
        first = [-round(row[3]) for row in micro.parts[number].window.to_image]
        patch[tuple(slice(a, a + n) for a, n in zip(first, window.shape, strict=True))] = window
        return patch

    def _table(self, case: str) -> Tensor:
        table = self.store.lookup(case, self.settings.model.structures)
        return torch.from_numpy(table).to(self.device, torch.float32)

    def learning_rate(self, step: int) -> float:
        """Polynomial decay to 0 with exponent 0.9, as nnU-Net's, over `train.steps`, after a linear warm-up."""
        optim, steps = self.settings.optim, self.settings.train.steps
        warm = min(1.0, (step + 1) / (optim.warmup_steps + 1))
        return optim.lr * warm * (1 - min(step, steps) / steps) ** 0.9

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.settings.optim
        return torch.optim.AdamW(self.network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["intensity"] = asdict(self.intensity)
