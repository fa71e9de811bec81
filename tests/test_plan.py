from collections import Counter

import pytest

from pants_dist.errors import UserError
from pants_dist.plan import Plan

CASES = tuple(f"c{n}" for n in range(10))
PRESENT = {case: ("liver", "pancreas") if n % 2 else () for n, case in enumerate(CASES)}


def plan(**changes) -> Plan:
    return Plan(**{"seed": 3, "batch": 8, "cases": CASES, "present": PRESENT, "foreground_fraction": 0.5} | changes)


def test_a_sample_needs_no_predecessor() -> None:
    """Sample i is the same alone, in order, backwards and from another plan object."""
    forwards = [plan().sample(i) for i in range(50)]
    assert [plan().sample(i) for i in reversed(range(50))] == forwards[::-1]
    assert len({sample.augment_seed for sample in forwards}) == 50


def test_no_case_repeats_before_all_were_seen() -> None:
    """Each run of len(cases) samples has every case once, in another order each time."""
    epochs = [[plan().sample(e * 10 + i).case for i in range(10)] for e in range(5)]
    assert all(sorted(epoch) == sorted(CASES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_share_a_step_and_never_change_it(ranks: int) -> None:
    """Whatever the number of ranks, step 7 has the same samples, each on one rank."""
    samples = [sample for rank in range(ranks) for sample in plan().step_samples(7, rank, ranks)]
    assert sorted(sample.index for sample in samples) == list(range(56, 64))
    assert sorted(samples, key=lambda sample: sample.index) == plan().step_samples(7, 0, 1)


def test_foreground_share_is_kept() -> None:
    """Half the samples of cases that have structures are centred on one, each structure equally often; others never."""
    samples = [plan(seed=1).sample(i) for i in range(8000)]
    counts = Counter(sample.structure for sample in samples if PRESENT[sample.case])
    assert counts[None] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts["liver"] / counts["pancreas"] == pytest.approx(1, abs=0.15)
    assert all(sample.structure is None for sample in samples if not PRESENT[sample.case])


def test_the_digest_changes_with_all_that_decides_samples() -> None:
    """Another seed, batch, order of cases or share gives another digest; the same plan the same."""
    changes = [{}, {"seed": 4}, {"batch": 4}, {"cases": CASES[::-1]}, {"foreground_fraction": 0.4},
               {"structure_weights": {"liver": 2.0}}, {"case_weights": (0.1,) * 10}]  # fmt: skip
    assert len({plan(**change).digest for change in changes}) == len(changes)
    assert plan().digest == plan().digest


def test_weights_are_met() -> None:
    """Over 100,000 samples cases and structures come within a percentage point of their weights."""
    weighted = plan(case_weights=(0.3, 0.3, *(0.05,) * 8), structure_weights={"liver": 3.0}, foreground_fraction=1.0)
    samples = [weighted.sample(i) for i in range(100_000)]
    cases = Counter(sample.case for sample in samples)
    assert [cases[case] / 1e5 for case in CASES] == pytest.approx(weighted.case_weights, abs=0.01)
    named = [sample.structure for sample in samples if sample.structure]
    assert named.count("liver") / len(named) == pytest.approx(0.75, abs=0.01)


def test_samples_never_change() -> None:
    """Samples of a release are those of the next, on any machine, or ARITHMETIC counts up: these were written down."""
    seen = [(s.case, s.structure, s.draw % 1000, round(s.uniform_zyx[0], 6)) for s in map(plan().sample, (0, 11))]
    assert seen == [("c9", None, 564, 0.382828), ("c7", "pancreas", 730, 0.456999)]


def test_a_plan_without_cases_is_refused() -> None:
    """No cases left after a split is said in words."""
    with pytest.raises(UserError, match="no cases to train on"):
        plan(cases=(), present={})
