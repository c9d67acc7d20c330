"""What a study may ask for, and what is refused before anything runs."""

import pytest
from pydantic import ValidationError

from rankscope.config.study import StudyConfig


def study(objective: dict[str, object], **evaluate: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "asked",
            "model": "pocket",
            "tasks": ["pocket_facts"],
            "arms": [{"method": "lora", "rank": 4, "lr": 1e-3}],
            "evaluate": evaluate or {"retention": ["pocket_general"]},
            "objective": objective,
        }
    )


@pytest.mark.parametrize(
    ("written", "share"),
    [("2 points", 0.02), ("1 point", 0.01), ("2.5 %", 0.025), ("0.05 nats", 0.05), (0.02, 0.02)],
)
def test_limits_with_their_unit(written: object, share: float) -> None:
    found = study({"max_forgetting": written, "margin": written}).objective
    assert (found.max_forgetting, found.margin) == (share, share)


@pytest.mark.parametrize(
    "written", ["two points", "2", "-2 points", "2 pounds", "200 points", -0.1]
)
def test_limits_that_say_nothing_are_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        study({"max_forgetting": written})


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="no arm can be chosen"):
        study({"in_domain": 0, "retention": 0, "cost": 1})
    with pytest.raises(ValidationError, match="no retention task measures"):
        study({"max_forgetting": 0.02}, cross_domain=["pocket_general"])
    # A task does not measure what training on it forgets.
    with pytest.raises(ValidationError, match="what training on 'pocket_facts' forgets"):
        study({"max_forgetting": 0.02}, retention=["pocket_facts"])


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValidationError, match="speed"):
        study({"speed": 1})
    with pytest.raises(ValidationError):
        study("accuracy")  # type: ignore[arg-type]
