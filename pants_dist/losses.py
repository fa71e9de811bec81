"""Dice + cross entropy, 1:1, that leaves out what is not known: voxels outside the scan, structures nobody annotated.

Every sample has its own loss and a batch's is their mean, so neither ranks nor micro-batches change it: a caller weighs each
micro-batch by its share of the samples. With `batch_dice` Dice is one for the whole batch, over all ranks; each must then take
its share of a step as one micro-batch (launch.check_shares).

A structure that a case's dataset did not annotate:
- under sigmoid has no part in that sample's loss, and its logits no gradient;
- under softmax its probability is added to that of the channel where its voxels are labelled: the pancreas if it lies in
  there and that is annotated, else the background. This is the marginal loss of Shi et al. 2021 (Marginal loss and exclusion
  loss for partially supervised multi-organ segmentation), which knows no structures within others and adds all to background.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pants_dist import ranks
from pants_dist.networks import supervision_weights
from pants_dist.targets import Target

SMOOTH = 1e-5
SPACE = (2, 3, 4)


class SegmentationLoss(nn.Module):
    """Dice + cross entropy (softmax) or binary cross entropy (sigmoid) of a target; background has no Dice.

    Dice of a structure is (2 sum(p t) + 1e-5) / (sum(p) + sum(t) + 1e-5) with probabilities p and truth t: 1 where both are
    empty. It is averaged over a sample's annotated structures, and cross entropy over its voxels inside the scan (sigmoid:
    and annotated structures); a sample with none of them adds 0. With everything known that is MONAI's DiceLoss with its
    two smooth values 1e-5.

    With `batch_dice` the sums go over the batch and all ranks, and the mean over structures that some sample has annotated.
    Ranks must then call it equally often, each with as many samples. The mean over ranks of its gradients, which is what DDP
    takes, is the gradient of one process with the whole batch.
    """

    parents: Tensor

    def __init__(self, target: Target, batch_dice: bool = False) -> None:
        super().__init__()
        self.softmax, self.batch_dice = target.activation == "softmax", batch_dice
        self.register_buffer("parents", torch.tensor(target.parents), persistent=False)

    def forward(self, logits: Tensor, truth: Tensor, valid: Tensor, known: Tensor) -> Tensor:
        """Loss, a scalar, of logits (B, channels, z, y, x), which are taken as float32 where they have fewer bits.

        `truth` (B, channels, z, y, x) and `valid` (B, 1, z, y, x) are bool, as targets.finished makes them; `known` (B,
        channels), bool, says what the dataset of each sample annotated (targets.known).
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softmax:
            entropy, sums = softmax_terms(logits, truth, valid, groups(known, self.parents))
            counted = known[:, 1:]
            sums = sums[:, :, 1:]
        else:
            entropy, sums = sigmoid_terms(logits, truth, valid & known[:, :, None, None, None])
            counted = known
        if self.batch_dice:
            totals = torch.cat([sums.sum(1), counted.sum(0)[None].to(sums)])
            totals = SumOverRanks.apply(totals)
            sums, counted = totals[:3, None], totals[3:] > 0
        return entropy.mean() + dice_loss(sums, counted).mean()


def groups(known: Tensor, parents: Tensor) -> Tensor:
    """For each sample and channel the channel where its voxels are labelled (B, channels): itself, its parent, or 0."""
    itself = torch.arange(known.shape[1], device=known.device)
    return torch.where(known, itself, torch.where(known[:, parents], parents, 0))


def softmax_terms(logits: Tensor, truth: Tensor, valid: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (B,) and the sums of Dice (3, B, channels), channels of a group being one: what `dice_loss` takes.

    The sums of a group stand at its channel and are 0 at the others.
    """
    group = groups[:, :, None, None, None]
    true_group = (truth * group.short()).sum(1, keepdim=True, dtype=torch.int16)
    elsewhere = group != true_group
    missed = logits.logsumexp(1, keepdim=True) - logits.masked_fill(elsewhere, -torch.inf).logsumexp(1, keepdim=True)
    entropy = (missed * valid).sum(SPACE) / valid.sum(SPACE).clamp(min=1)
    probability = logits.softmax(1) * valid
    both = probability.masked_fill(elsewhere, 0).sum(SPACE)
    sums = torch.stack([both, probability.sum(SPACE), (truth & valid).sum(SPACE).to(logits)])
    return entropy.squeeze(1), torch.zeros_like(sums).scatter_add(2, groups.expand_as(sums), sums)


def sigmoid_terms(logits: Tensor, truth: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy (B,) and the sums of Dice (3, B, channels) of the voxels `counted`, which is as large as logits."""
    entropy = binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
    voxels = counted.sum((1, *SPACE)).clamp(min=1)
    probability = logits.sigmoid() * counted
    sums = torch.stack([(probability * truth).sum(SPACE), probability.sum(SPACE), (truth & counted).sum(SPACE).to(logits)])
    return (entropy * counted).sum((1, *SPACE)) / voxels, sums


def dice_loss(sums: Tensor, counted: Tensor) -> Tensor:
    """1 - Dice (N,), the mean over the structures `counted` (N, structures) of each row; 0 for a row with none.

    `sums` (3, N, structures): of probability times truth, of probability, of truth.
    """
    both, predicted, true = sums
    lost = 1 - (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    return (lost * counted).sum(1) / counted.sum(1).clamp(min=1)


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; the tensor itself where there is one process.

    Its gradient is the result's times the number of ranks: each rank has the same loss of the sum, and DDP takes the mean.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        if ranks.count() > 1:
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * ranks.count()


def deep_supervised(loss: nn.Module, outputs: list[Tensor], truth: Tensor, valid: Tensor, known: Tensor) -> Tensor:
    """The loss at each resolution, weighed as nnU-Net does (networks.supervision_weights); `outputs` has the finest first.

    The other arguments are SegmentationLoss's, at the finest resolution.
    """
    weights = supervision_weights(len(outputs))
    losses = [loss(logits, nearest(truth, logits.shape[2:]), nearest(valid, logits.shape[2:]), known) for logits in outputs]
    return torch.stack([weight * value for weight, value in zip(weights, losses, strict=True)]).sum()


def nearest(volume: Tensor, size_zyx: tuple[int, ...]) -> Tensor:
    """Voxels of (B, C, z, y, x) nearest the centers of a grid of `size_zyx` voxels; the later of two that are as near.

    These are the voxels of torch's `nearest-exact`, by which nnU-Net makes its coarser truth too. Averages would be neither
    true nor false, and voxels would mix with those outside the scan.
    """
    for axis, (length, size) in enumerate(zip(volume.shape[2:], size_zyx, strict=True), 2):
        if size != length:
            centers = (2 * torch.arange(size, device=volume.device) + 1) * length // (2 * size)
            volume = volume.index_select(axis, centers)
    return volume
