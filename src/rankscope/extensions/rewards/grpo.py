"""Group relative policy optimization (Shao et al., 2402.03300), on-policy.

Every adapter of a group answers the prompts of its step several times, all in one continuous batch.
An answer's advantage is its reward less the mean of its prompt's answers, over their standard
deviation. One update follows each batch, so the ratio of the probabilities is 1. The loss is

    - sum of advantage x log p(answer) / tokens of all answers of the step

Draws depend only on seed, step, prompt, answer and weights; there is no dropout.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rankscope.config.patterns import compile_pattern
from rankscope.config.section import ConfigSection, LocalPath
from rankscope.config.task import ScorerName
from rankscope.data.encode import EncodedRow
from rankscope.errors import UserError
from rankscope.evaluate.scorers import PYTHON_PREFIX, get_scorer
from rankscope.evaluate.scorers.generation import GenerationScorer, stop_strings
from rankscope.evaluate.scorers.python_function import PythonScorer
from rankscope.hashing import canonical_json
from rankscope.train.objectives.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from rankscope.config.study import TrainConfig
    from rankscope.data.encode import EncodedRows
    from rankscope.data.registry import TaskSpec
    from rankscope.data.tasks import LoadedTask
    from rankscope.extensions.rewards.sampling import SampledGeneration
    from rankscope.models.base import Base
    from rankscope.train.trial_state import TrialState

Reward = Annotated[ScorerName, LocalPath(PYTHON_PREFIX)]
JUDGED_STEPS = 10  # Without any difference between rewards, a trial ends
EPSILON = 1e-4  # Added to the standard deviation of rewards, as TRL does


class GrpoSettings(ConfigSection):
    """Settings of ``grpo``."""

    reward: Reward | dict[Reward, float] | None = None
    """A scorer that judges answers, or several with their weights; by default the task's own."""
    answers: int = Field(8, ge=2)
    """Answers to each prompt."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the answers, and of the log-probabilities in the loss."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer, tokens."""
    scale: bool = True
    """Divide advantages by the standard deviation of the rewards of a prompt's answers. 2503.20783
    leaves this out."""


class Grpo(Objective):
    """Trains a model on rewards of its own answers."""

    name = "grpo"
    settings_type = GrpoSettings
    by_row = True

    def __init__(self, settings: GrpoSettings) -> None:
        super().__init__(settings)
        self.rows_each = settings.answers
        self.temperature = settings.temperature
        self.max_new_tokens = settings.max_new_tokens

    def scorers(self, spec: TaskSpec) -> dict[GenerationScorer, float]:
        """Return the scorers that judge an answer, with weights."""
        reward = self.settings.reward or spec.scorer
        weights = reward if isinstance(reward, dict) else {reward: 1.0}
        scorers = {}
        for name, weight in weights.items():
            if not isinstance(scorer := get_scorer(name), GenerationScorer):
                where, rule = f"task {spec.name!r}, objective 'grpo'", "one of written answers"
                do = "set 'reward', such as {grpo: {reward: number}}"
                raise UserError(where, f"the reward {name!r}", rule, do)
            scorers[scorer] = weight
        return scorers

    def check_task(self, task: LoadedTask, train: TrainConfig) -> None:
        super().check_task(task, train)
        where = f"task {task.spec.name!r}, objective 'grpo'"
        turns = [[turn.role for turn in item.messages].count("assistant") for item in task.train]
        if train.labels == "all" or max(turns, default=0) > 1:
            found = "'labels: all'" if train.labels == "all" else "conversations of several answers"
            raise UserError(where, found, "one answer to each prompt")
        if task.parts:
            raise UserError(where, "a mixture of tasks", "one task, whose answers are judged alike")
        for scorer in self.scorers(task.spec):
            scorer.check_task(task.spec)
        if train.devices > 1:
            raise UserError(where, f"'train.devices: {train.devices}'", "1")

    def identity(self) -> dict[str, Any]:
        """Return the settings, in which Python code stands for itself, not for its place."""
        settings = self.settings.model_dump(mode="json")
        reward = settings["reward"]
        if isinstance(reward, str):
            settings["reward"] = _content(reward)
        elif reward:
            settings["reward"] = weights = dict[str, float]()
            for name, weight in reward.items():  # Copies of one file add up
                key = _content(name)
                weights[key] = weights.get(key, 0.0) + weight
        return {self.name: settings}

    def num_tokens(self, rows: EncodedRows) -> int:
        longest = sum(len(row.prompt_ids) + self.max_new_tokens for row in rows.rows)
        return longest * self.rows_each

    def begin_step(self, model: Base, states: Sequence[TrialState], step: int) -> None:
        """Have all trials write their answers, judge them, and make the rows of the step."""
        asked = [super(Grpo, self).step_rows(state, step) for state in states]
        pairs = zip(states, asked, strict=True)
        drafts = [self._drafts(model, *pair, step) for pair in pairs]
        self._write(model, states[0], asked[0][0], list(chain.from_iterable(drafts)))
        for state, rows, answers in zip(states, asked, drafts, strict=True):
            state.drop_cached_weights()  # made without gradient
            state.written = self._judged(state, rows, answers, step)

    def step_rows(self, state: TrialState, step: int) -> list[EncodedRow]:
        return state.written

    def loss(
        self, losses: Tensor, rows: Sequence[EncodedRow], of_step: Sequence[EncodedRow]
    ) -> Tensor:
        import torch

        from rankscope.device import on_device

        values = on_device(torch.tensor([row.value for row in rows]), losses.device)
        return (values * losses).sum()

    def why_hopeless(self, state: TrialState) -> str:
        first = state.rewards
        if len(first) != min(JUDGED_STEPS, state.num_steps) or any(p["alike"] < 1 for p in first):
            return ""
        return (
            f"nothing to learn from: in {len(first)} steps all {self.rows_each} answers of every "
            f"prompt had the same reward, {first[-1]['reward']:.3g} on average"
        )

    def _drafts(
        self, model: Base, state: TrialState, rows: Sequence[EncodedRow], step: int
    ) -> list[SampledGeneration]:
        """Return the answers that a trial will write: several in a row to each prompt."""
        from rankscope.evaluate.context_window import context_length
        from rankscope.evaluate.prefix_sharing import find_shared_prefixes
        from rankscope.extensions.rewards.sampling import SampledGeneration

        prompts = [row.prompt_ids for row in rows for _ in range(self.rows_each)]
        room = context_length(model.model.config) or math.inf
        groups = find_shared_prefixes(prompts, model.packs)
        shared = {i: group for group in groups for i in group[1]}
        return [
            SampledGeneration(
                state.adapter_name,
                prompt,
                int(min(self.max_new_tokens, max(1, room - len(prompt)))),
                shared[i],
                draws=random.Random(f"grpo/{state.spec.seed}/{step}/{i}"),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _write(
        self,
        model: Base,
        state: TrialState,
        row: EncodedRow,
        drafts: Sequence[SampledGeneration],
    ) -> None:
        """Write all answers in one continuous batch; ``row`` is any row of the task."""
        import torch

        from rankscope.evaluate.context_window import context_length
        from rankscope.evaluate.continuous_batching import GenerationLimits, RunningBatch
        from rankscope.extensions.rewards.sampling import drawing_at

        assert row.asked is not None
        item, spec, encoder, _ = row.asked
        longest = max(draft.max_tokens for draft in drafts)
        limits = GenerationLimits(
            max_new_tokens=self.max_new_tokens,
            context=context_length(model.model.config) or longest,
            batch_tokens=state.protocol.batch_tokens,
            stop_ids=encoder.stop_ids,
            stop_strings=spec.stop or stop_strings(encoder, spec, [item]),
        )
        with model.multi_lora.dropout_off(), torch.no_grad():
            RunningBatch(model, limits, drawing_at(self.temperature)).run(deque(drafts))
        for draft in drafts:
            draft.finish(limits, encoder.tokenizer)

    def _judged(
        self,
        state: TrialState,
        rows: Sequence[EncodedRow],
        answers: Sequence[SampledGeneration],
        step: int,
    ) -> list[EncodedRow]:
        """Return the answers as rows with their advantages, and store a point on their rewards."""
        made, rewards, alike = list[EncodedRow](), list[float](), 0
        num_tokens = sum(len(answer.ids) for answer in answers)
        for index, row in enumerate(rows):
            own = answers[index * self.rows_each : (index + 1) * self.rows_each]
            of_prompt = self._rewards(row, [answer.text for answer in own])
            mean = statistics.fmean(of_prompt)
            spread = statistics.stdev(of_prompt) + EPSILON if self.settings.scale else 1.0
            alike += len(set(of_prompt)) == 1
            rewards += of_prompt
            for answer, reward in zip(own, of_prompt, strict=True):
                marks = (False,) * len(answer.prompt) + (True,) * len(answer.ids)
                value = (reward - mean) / spread / num_tokens
                ids = (*answer.prompt, *answer.ids)
                made.append(EncodedRow(ids, marks, not answer.stopped, value=value))
        state.rewards.append(
            {
                "step": step,
                "reward": statistics.fmean(rewards),
                "length": num_tokens / len(answers),  # Mean, tokens
                # For the next token, mean over all tokens of the answers, nats
                "entropy": sum(answer.entropy for answer in answers) / num_tokens,
                # Share that the limit on their length cut
                "cut": statistics.fmean(not answer.stopped for answer in answers),
                # Share of prompts whose answers have one reward: they teach nothing
                "alike": alike / len(rows),
            }
        )
        # Answers without advantage add nothing to the gradient, but to KL.
        kept = made if state.spec.kl_to_base else [row for row in made if row.value]
        return kept or made[:1]

    def _rewards(self, row: EncodedRow, texts: Sequence[str]) -> list[float]:
        assert row.asked is not None
        item, spec, _, _ = row.asked
        pattern = None if spec.extract is None else compile_pattern(spec.extract)
        weights = self.scorers(spec).items()
        return [
            sum(w * s.judge_answer(item, text, pattern)[0] for s, w in weights) for text in texts
        ]


def _content(reward: str) -> str:
    scorer = get_scorer(reward)
    return canonical_json(scorer.content()) if isinstance(scorer, PythonScorer) else reward
