"""Which heads carry what: by hand."""

import pytest

from rankscope.analyses.heads.record import HeadAblation
from rankscope.analyses.heads.trial_heads import head_roles

Table = tuple[tuple[float, ...], ...]


def ablation(task: str, base: Table, tuned: Table) -> HeadAblation:
    return HeadAblation(
        task=task,
        items=10,
        metric="acc",
        base_score=0.5,
        tuned_score=0.6,
        base_change=base,
        tuned_change=tuned,
        base_gold_change=base,
        tuned_gold_change=tuned,
        gold_difference_error=tuple((None,) * len(heads) for heads in base),
        base_layer_gold_change=tuple(map(sum, base)),
        tuned_layer_gold_change=tuple(map(sum, tuned)),
    )


def test_skill_is_what_training_made_a_head_worth_and_lost_what_it_took() -> None:
    own = ablation("med", ((-0.1, 0.0),), ((-0.5, 0.1),))
    cloze = ablation("cloze", ((-0.4, -0.2),), ((-0.1, -0.2),))
    law = ablation("law", ((-0.2, 0.0),), ((-0.1, -0.2),))
    first, second = head_roles(own, [cloze, law])
    assert (first.layer, first.head, second.head) == (0, 0, 1)
    # Removing head 0 cost the base 0.1 nats on its task and costs the tuned model 0.5.
    assert first.skill == pytest.approx(0.4)
    assert second.skill == pytest.approx(-0.1)
    # On cloze it cost 0.4 and costs 0.1; on law 0.2 and 0.1.
    assert first.lost == pytest.approx((0.3 + 0.1) / 2)
    assert second.lost == pytest.approx((0.0 - 0.2) / 2)


def test_without_another_task_nothing_is_said_of_what_was_lost() -> None:
    assert [role.lost for role in head_roles(ablation("med", ((0.0,),), ((0.0,),)), [])] == [None]


def test_ablations_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="law: other heads"):
        head_roles(ablation("med", ((0.0,),), ((0.0,),)), [ablation("law", ((0, 0),), ((0, 0),))])
