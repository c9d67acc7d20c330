"""The second claim: no tried arm is better by more than the margin."""

from dataclasses import replace

from advice import advise
from synthetic_study import Truth

STEEP = Truth(
    ranks=(4, 32),
    full_lrs=(),
    accuracy=lambda rank, lr: 0.45 if rank == 4 else 0.8,
    forgetting=lambda rank, lr: 0.0,
)


def test_a_clear_winner_is_the_firm_choice() -> None:
    advice = advise(STEEP)
    claim = advice.best_choice
    assert (advice.confidence, claim.confidence) == ("firm", "firm")
    assert claim.rival == "r=4 lr=0.001"
    assert claim.estimate.high < 0
    assert f"trails by at least {-100 * claim.estimate.high:.1f} points" in claim.text


def test_an_equal_rival_leaves_the_choice_tentative_and_the_gain_firm() -> None:
    """Two ranks alike: 400 items cannot rule out a lead of 2 points."""
    flat = replace(STEEP, accuracy=lambda rank, lr: 0.7)
    advice = advise(flat)
    assert advice.better_than_base.confidence == "firm"
    assert (advice.best_choice.confidence, advice.confidence) == ("tentative", "tentative")
    assert "may have a net gain more than 2.0 points higher" in advice.best_choice.text
    assert any("whether LoRA r=" in step.text for step in advice.next_steps)


def test_an_arm_that_failed_for_another_reason_than_its_rate_may_be_better() -> None:
    def with_status(status: str) -> str:
        failed = {(4, 1e-3, seed): status for seed in (0, 1, 2)}
        truth = Truth(ranks=(4, 32), full_lrs=(), failed=failed)  # type: ignore[arg-type]
        return advise(truth).best_choice.text

    assert with_status("oom") == "LoRA r=4 has no score, so it may be better."
    assert with_status("diverged") == "No other arm was tried."
