"""What is scored: a run's own model, or the masks that another system wrote. Both say of a case what they see in it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pants_dist.casefile import file_digest
from pants_dist.checkpoints import read_checkpoint
from pants_dist.config import Settings
from pants_dist.inference import Prediction, segmented
from pants_dist.model import Segmenter
from pants_dist.predict import model_of
from pants_dist.predictions import Predictions
from pants_dist.store import Store


@dataclass(frozen=True)
class OwnModel:
    """A run's model."""

    store: Store
    settings: Settings
    checkpoint: Path
    mirror: bool

    @property
    def structures(self) -> tuple[str, ...]:
        """What it is scored on."""
        return self.settings.model.outputs.structures

    @cached_property
    def head(self) -> dict[str, Any]:
        """What rows are of: others' are not taken for its own."""
        return {"checkpoint": file_digest(self.checkpoint), "mirror": self.mirror}

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        settings, mirrored = self.settings, ", also mirrored" if self.mirror else ""
        return {
            "Checkpoint": f"{self.checkpoint.name}, step {int(self._saved['global_step']):,}",
            "Network": f"{settings.model.name}, patch {' x '.join(map(str, settings.data.patch_zyx))}",
            "Inference": f"windows overlap by {settings.validation.overlap:g}{mirrored}",
        }

    def state(self, case: str) -> str:
        """What beside the head decides a case's row: nothing."""
        return ""

    def predict(self, case: str, image_zyx: np.ndarray) -> Prediction:
        """What the model says of a case."""
        return segmented([self._model], image_zyx, self.store.spacing_mm_zyx(case), self.mirror)

    @cached_property
    def _saved(self) -> dict[str, Any]:
        return read_checkpoint(self.checkpoint)

    @cached_property
    def _model(self) -> Segmenter:
        return model_of(self._saved, self.settings)


@dataclass(frozen=True)
class OthersMasks:
    """Masks of another system."""

    store: Store
    predictions: Predictions

    @property
    def structures(self) -> tuple[str, ...]:
        """What it is scored on."""
        return self.predictions.structures

    @property
    def head(self) -> dict[str, Any]:
        """What rows are of."""
        folder = str(self.predictions.folder.resolve())
        return {"predictions": folder, "structures": list(self.structures)}

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        return {"Predictions": self.predictions.folder.resolve().name}

    def state(self, case: str) -> str:
        """What beside the head decides a case's row: the files."""
        return self.predictions.state(case)

    def predict(self, case: str, image_zyx: np.ndarray) -> Prediction:
        """What the files say of a case. Raises BadImage, now or when a mask is asked for, where they are of no use."""
        return Prediction(self.predictions.masks(self.store, case), None)


System = OwnModel | OthersMasks
