"""The LightningModule: from micro-batches to patches, loss and weights. Images are (B, C, z, y, x)."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from pants_dist.augment import augmented, resampled
from pants_dist.casefile import AIR_HU
from pants_dist.config import Settings
from pants_dist.devices import Stopwatch
from pants_dist.errors import UserError
from pants_dist.heartbeat import doing
from pants_dist.losses import SegmentationLoss, deep_supervised
from pants_dist.networks import arithmetic_of, build_network, layout_of
from pants_dist.optimizers import Average, learning_rate, make_optimizer
from pants_dist.ranks import gathered
from pants_dist.targets import finished, known, swapped_left_right, table
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
        """From HU of annotated voxels of training cases: 0.5 and 99.5 percentiles, as nnU-Net does (Isensee et al. 2021).

        Of all structures that were annotated, whatever is learnt of them; nnU-Net takes only those that are learnt.
        """
        low, high = np.percentile(foreground_hu, (0.5, 99.5))
        clipped = np.clip(foreground_hu, low, high)
        return cls(float(low), float(high), float(clipped.mean()), max(float(clipped.std()), 1e-3))

    def __call__(self, hu: Tensor) -> Tensor:
        return (hu.float().clamp(self.low_hu, self.high_hu) - self.mean_hu) / self.deviation_hu


class Patches(NamedTuple):
    """What a micro-batch is to the network: B samples, on its device."""

    images: Tensor  # (B, 1, z, y, x), float32, standardised
    truth: Tensor  # (B, channels, z, y, x), bool
    valid: Tensor  # (B, 1, z, y, x), bool: inside the scan
    known: Tensor  # (B, channels), bool: annotated by the sample's dataset

    def only(self, number: int) -> "Patches":
        """One of the samples alone."""
        return Patches(*(tensor[number : number + 1] for tensor in self))


class Segmenter(L.LightningModule):
    """Network, loss and optimizer. A batch is one optimizer step: the micro-batches of this rank."""

    def __init__(self, settings: Settings, intensity: Intensity, store: "Store | None" = None) -> None:
        super().__init__()
        self.settings, self.intensity = settings, intensity
        self.store: Any = store  # what patches are cut from; without one it only predicts
        self.automatic_optimization = False
        data = settings.data
        self.target = settings.model.outputs
        self.network = build_network(settings.model, len(self.target.channels), data.patch_zyx, data.spacing_mm_zyx)
        self.criterion = SegmentationLoss(self.target, settings.train.batch_dice)
        self.own_work = Stopwatch()  # on what a rank does without the others
        self.skipped_steps = 0  # for want of a finite gradient
        self.average: Average | None = None  # made on the device
        self._average_state: dict[str, Any] | None = None

    def forward(self, hu: Tensor) -> Any:
        """Logits (B, channels, z, y, x) of CT in HU (B, 1, z, y, x); while training a list, finest resolution first."""
        with self.arithmetic():
            return self.network(self.intensity(hu))

    def arithmetic(self) -> AbstractContextManager[Any]:
        """bf16 inside the block, where the settings and the device are for it; weights stay float32."""
        half = arithmetic_of(self.settings.train.precision, self.device.type) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches stay in shared memory until their voxels are needed; `patches` moves them."""
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
                doing("forward")
                loss = self.loss(micro) * (len(micro.parts) / samples)
                doing("backward")
                self.manual_backward(loss)
            total += loss.detach()
        doing("update")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm)
        if not math.isfinite(norm):  # alike on every rank: the gradients are
            self._without_this_step(batch)
        optimizer.step()
        if self.average:
            self.average.update(self.network)
        return {"loss": total, "grad_norm": norm}

    def _without_this_step(self, batch: "list[MicroBatch]") -> None:
        """Leave the weights as they are, where train.on_nan is "skip". Else raises UserError, naming step and cases."""
        if self.settings.train.on_nan == "skip":
            self.skipped_steps += 1
            return self.zero_grad(set_to_none=True)  # what has no gradient is not changed by the optimizer
        mine = [case for micro in batch for case in self._not_finite(micro)]
        cases = list(dict.fromkeys(case for cases in gathered(mine) for case in cases))
        where = f"the loss of case {', '.join(cases)}" if cases else "the gradient, though no case's own loss,"
        raise UserError(
            f"step {self.global_step + 1}: {where} is not a finite number; look at the case, lower optim.lr, or leave such "
            "steps out (train.on_nan skip)"
        )

    @torch.no_grad()
    def _not_finite(self, micro: "MicroBatch") -> list[str]:
        """Cases of a micro-batch whose own loss is no number, that of other ranks left aside."""
        patches, alone = self.patches(micro), SegmentationLoss(self.target).to(self.device)
        each = [patches.only(number) for number in range(len(micro.parts))]
        losses = [self.criticised(self.heads(one), one, alone) for one in each]
        return [part.sample.case for part, loss in zip(micro.parts, losses, strict=True) if not math.isfinite(loss)]

    def loss(self, micro: "MicroBatch") -> Tensor:
        """Mean over the micro-batch's samples of Dice + cross entropy, weighed over the network's resolutions."""
        with self.own_work:
            patches = self.patches(micro)
            heads = self.heads(patches)
        return self.criticised(heads, patches, self.criterion)

    def heads(self, patches: Patches) -> Any:
        """What the network says of them, at each of its resolutions."""
        with self.arithmetic():
            return self.network(patches.images)

    def criticised(self, heads: Any, patches: Patches, criterion: SegmentationLoss) -> Tensor:
        """The loss of what the network says."""
        return deep_supervised(criterion, heads, patches.truth, patches.valid, patches.known)

    def patches(self, micro: "MicroBatch") -> Patches:
        """A micro-batch's patches, cut out of their windows and augmented."""
        cut = [self._patch(micro, number) for number in range(len(micro.parts))]
        images, truth, valid, known = (torch.stack(tensors) for tensors in zip(*cut, strict=True))
        images = self.intensity(images)
        if self.settings.augment.intensity:
            images = augmented(images, [part.sample.augment_seed for part in micro.parts])
        return Patches(images, truth, valid, known)

    def _patch(self, micro: "MicroBatch", number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """HU (1, z, y, x), truth, validity and what is known of a sample's patch, each by one interpolation in its window."""
        part, size, store = micro.parts[number], self.settings.data.patch_zyx, self.store
        case = part.sample.case
        hu = torch.from_numpy(micro.image(number).astype(np.float32)).to(self.device)[None]
        image = resampled(hu, torch.tensor(part.window.to_image, dtype=torch.float64), size, AIR_HU)
        codes = torch.from_numpy(micro.codes(number).astype(np.int64)).to(self.device)
        lookup = torch.from_numpy(table(self.target, store.palette(case), store.structures(case))).to(self.device)
        planes = lookup[codes].movedim(-1, 0)
        planes = resampled(planes, torch.tensor(part.window.to_codes, dtype=torch.float64), size, 0.0)
        truth, valid = finished(self.target, planes[None])
        annotated = torch.from_numpy(known(self.target, store.value(case, "annotated"))).to(self.device)
        if part.window.to_image[2][2] < 0:
            sides = swapped_left_right(self.target.channels)
            truth, annotated = truth[:, sides], annotated[sides]
        return image, truth[0], valid[0], annotated

    def learning_rate(self, step: int) -> float:
        """Of step `step`, from 0."""
        return learning_rate(self.settings.optim, step, self.settings.train.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.settings.optim, self.network.parameters())

    def configure_model(self) -> None:
        """Before DDP makes its buckets, which are to lie in memory as the weights do."""
        layout = layout_of(self.trainer.strategy.root_device.type)
        network: Any = self.network  # torch's types lack memory_format
        network.to(memory_format=layout)

    def on_fit_start(self) -> None:
        if self.settings.train.compile:
            self.network.compile()
        if self.settings.optim.ema is not None:
            self.average = Average(self.network, self.settings.optim.ema)
            if self._average_state:
                self.average.load_state_dict(self._average_state)

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that are to be scored: their moving average, where there is one."""
        return self.average.applied(self.network) if self.average else nullcontext()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"intensity": asdict(self.intensity), "skipped_steps": self.skipped_steps}
        if self.average:
            checkpoint[AVERAGE] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._average_state, self.skipped_steps = checkpoint.get(AVERAGE), checkpoint["skipped_steps"]
        self.intensity = Intensity(**checkpoint["intensity"])
