from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import make_store, plan_of

from pants_dist import config
from pants_dist.config import Data
from pants_dist.errors import UserError
from pants_dist.store import open_store
from pants_dist.weights import Request, requests_of, tempered, weigh

CENTERS = ["A"] * 60 + ["B"] * 30 + ["C"] * 10
LESIONS = (["lesion"] * 6 + ["none"] * 4) * 10


def share(weights: np.ndarray, groups: list[str]) -> dict[str, float]:
    return {group: sum(w for w, g in zip(weights, groups, strict=True) if g == group) for group in sorted(set(groups))}


def test_temperature_runs_from_cases_to_centers() -> None:
    """1 leaves cases alike, 0 gives each center a third, 0.5 goes with the root of its size."""
    for temperature, expected in ((1, [0.6, 0.3, 0.1]), (0, [1 / 3] * 3)):
        weights = weigh([tempered("t", CENTERS, temperature)], 100)
        assert list(share(weights, CENTERS).values()) == pytest.approx(expected)
    roots = np.sqrt([60, 30, 10])
    assert list(share(weigh([tempered("t", CENTERS, 0.5)], 100), CENTERS).values()) == pytest.approx(roots / roots.sum())


def test_all_requests_hold_at_once() -> None:
    """Centers equally often and 30 % with a lesion and half arterial: each margin is met."""
    phases = ["Arterial", "Venous", "Delay"] * 33 + ["Delay"]
    requests = [tempered("t", CENTERS, 0), Request("l", LESIONS, {"lesion": 0.3}), Request("p", phases, {"Arterial": 0.5})]
    weights = weigh(requests, 100)
    assert list(share(weights, CENTERS).values()) == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert share(weights, LESIONS)["lesion"] == pytest.approx(0.3, abs=1e-3)
    assert share(weights, phases)["Arterial"] == pytest.approx(0.5, abs=1e-3)
    assert weights.sum() == pytest.approx(1) and weights.min() > 0


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([Request("x", LESIONS, {"cyst": 0.5})], "x: no training case has 'cyst'; there are lesion, none"),
        ([Request("x", LESIONS, {"lesion": 0.8, "none": 0.8})], "sum to 1.6; each must be 0 or more"),
        ([Request("x", LESIONS, {"lesion": 0.5, "none": 0.3})], "name every value and sum to 0.8; make it 1"),
        ([Request("x", CENTERS, {"A": 0.9}), Request("y", CENTERS, {"A": 0.1})], "cannot be met together with"),
    ],
)
def test_what_cannot_be_met_says_so(requests: list[Request], says: str) -> None:
    with pytest.raises(UserError, match=says):
        weigh(requests, 100)


def test_a_lesion_share_without_lesions_is_refused() -> None:
    table = pd.DataFrame({"lesion": [False] * 4, "center": list("AABB")})
    with pytest.raises(UserError, match="data.lesion_fraction: no training case has 'lesion'"):
        weigh(requests_of(table, Data(store="s", lesion_fraction=0.5)), 4)
    assert requests_of(table, Data(store="s")) == []


def test_settings_reach_the_samples(tmp_path: Path) -> None:
    """Realised over 100,000 samples: centers, lesions and what is centred on are within a percentage point."""
    store = open_store(make_store(tmp_path / "store", cases=9))
    chosen = ["--data.center_temperature=0", "--data.lesion_fraction=0.75", "--data.val_fraction=0",
              "--data.structure_weights={liver: 0, pancreas: 2}", "--data.foreground_fraction=1",
              f"--data.store={tmp_path / 'store'}"]  # fmt: skip
    plan = plan_of(store, config.load("debug", chosen))
    samples = [plan.sample(i) for i in range(100_000)]
    cases = Counter(sample.case for sample in samples)
    centers, lesions = Counter(), 0
    for case, count in cases.items():
        centers[store.value(case, "center")] += count
        lesions += count * bool(store.voxels(case)["pancreatic_lesion"])
    assert [centers[f"Center {name}"] / 1e5 for name in "ABC"] == pytest.approx([1 / 3] * 3, abs=0.01)
    assert lesions / 1e5 == pytest.approx(0.75, abs=0.01)
    named = Counter(s.structure for s in samples if store.voxels(s.case)["pancreatic_lesion"])
    assert named["liver"] == 0 and named["pancreas"] / sum(named.values()) == pytest.approx(2 / 3, abs=0.01)
    with pytest.raises(UserError, match="no column 'centre' in the manifest"):
        plan_of(store, config.load("debug", [*chosen, "--data.shares={centre: {A: 1}}"]))
