"""Race: a sweep over ranks by group relative policy optimization, against TRL's GRPOTrainer.

    python benchmarks/train_grpo.py

The pocket model answers sums; the reward is whether the last number is even. TRL runs rank by rank,
with its own generation and without computing activations again; ours trains all ranks in one group,
whose answers are one continuous batch. Counted are tokens of answers, written and trained, per
second. What each side draws differs, so parity is of the first step, in which both draw from the
base: the difference of the mean lengths of their answers, in standard errors. Gradients given the
same answers are compared in tests/extensions/rewards/. The last line is one JSON object.
"""

import argparse
import math
import re
import statistics
import sys
import tempfile
from dataclasses import replace
from typing import Any

from packed_runs import load as load_base, train
from race import Segment, Turn, announce, race
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder, encode_rows
from rankscope.data.tasks import load_task
from rankscope.evaluate.scorers import scorers
from rankscope.evaluate.scorers.exact_match import ExactMatchScorer
from rankscope.models.model_folder import pocket_folder
from single_runs import TrainerClock, copy_start, load, new_adapter, peft_config
from training import UNTIMED, Rows, Setting, Trained, heading

RANKS = (1, 4, 16, 64)
PROMPTS, ANSWERS, LONGEST = 8, 8, 24
MOST_ERRORS = 4.0  # Standard errors


def is_even(text: str) -> float:
    """1 if the last number is even."""
    numbers = re.findall(r"[0-9]+", text)
    return float(bool(numbers) and int(numbers[-1]) % 2 == 0)


class EvenScorer(ExactMatchScorer):
    """The reward of the race."""

    name = "is_even"

    def judge_answer(self, item: Any, text: str, pattern: Any) -> tuple[float, str, str | None]:
        """1 if the last number is even."""
        return is_even(text), "", text


def packed(rows: Rows) -> Turn:
    """Train the trials in one group."""
    scorers()["is_even"] = EvenScorer()
    task = load_task(TaskConfig(name=rows.setting.task), None, data_seed=0)
    base = load_base(rows)
    encoder = Encoder(base.tokenizer, "plain", rows.setting.max_length)
    items, spec = task.train[: len(rows.prompts)], replace(task.spec, stop=("\n",))
    encoded = encode_rows(encoder, items, "completion", spec=spec, max_new_tokens=LONGEST)
    rows.encoded = list(encoded.rows)

    def turn() -> Segment:
        trained = Trained()
        states = train(base, rows, trained)
        points = [point for state in states for point in state.rewards]
        timed = [point for point in points if point.step >= UNTIMED]
        written = sum(round(point.length * PROMPTS * ANSWERS) for point in timed)
        first = [point.length for point in points if point.step == 0]
        return Segment(trained.seconds, written, {"first": first})

    return turn


def trl(rows: Rows) -> Turn:
    """TRL's GRPOTrainer, one run per trial."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    setting, model = rows.setting, load(rows.setting)

    def turn() -> Segment:
        seconds, written, first = 0.0, 0, list[float]()
        for spec in setting.specs():
            order = [i for micros in rows.order(spec) for micro in micros for i in micro]
            lengths: list[float] = []

            def reward(completions: list[str], completion_ids: Any, seen=lengths, **_: Any) -> Any:
                seen.append(statistics.fmean(map(len, completion_ids)))
                return [is_even(text) for text in completions]

            with tempfile.TemporaryDirectory() as folder:
                trainer: Any = GRPOTrainer(
                    model=setting.model,
                    reward_funcs=reward,
                    args=GRPOConfig(
                        output_dir=folder,
                        per_device_train_batch_size=PROMPTS * ANSWERS,
                        num_generations=ANSWERS,
                        max_completion_length=LONGEST,
                        max_steps=setting.steps,
                        learning_rate=spec.lr,
                        loss_type="dapo",
                        activation_checkpointing=False,
                        bf16=False,
                        model_init_kwargs={"dtype": "float32"},
                        use_cpu=True,
                        save_strategy="no",
                        report_to="none",
                        disable_tqdm=True,
                    ),
                    train_dataset=Dataset.from_dict({"prompt": [rows.prompts[i] for i in order]}),
                    peft_config=peft_config(spec),
                )
                copy_start(trainer.model, new_adapter(model, spec))
                clock = TrainerClock(setting.torch_device())
                trainer.add_callback(clock)
                trainer.train()
            seconds += clock.clock.seconds()
            written += round(sum(lengths[UNTIMED : setting.steps]) * PROMPTS * ANSWERS)
            first.append(lengths[0])
        return Segment(seconds, written, {"first": first})

    return turn


def main() -> int:
    """Race, print, and exit with 1 where the sides did not draw alike."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=8, help="of turns")
    parser.add_argument("--steps", type=int, default=4, help="of each trial in a turn")
    options = parser.parse_args()
    objective = f'{{"grpo":{{"answers":{ANSWERS},"max_new_tokens":{LONGEST},"reward":"is_even"}}}}'
    scorers()["is_even"] = EvenScorer()
    setting = Setting(
        model=str(pocket_folder()),
        task="pocket_gsm",
        data_dir=None,
        trials=tuple((rank, 1e-3, seed) for seed, rank in enumerate(RANKS)),
        batch_size=PROMPTS,
        gradient_accumulation=1,
        max_length=64,
        steps=options.steps,
        dtype="float32",
        device="cpu",
        objective=objective,
    )
    result, raced = race(packed, {"ratio": trl}, Rows.read(setting), options.pairs)
    pairs = raced["ratio"]
    firsts = [side[0].found["first"] for side in (pairs.ours, pairs.theirs)]
    means = [statistics.fmean(first) for first in firsts]
    spread = math.hypot(*(statistics.stdev(of) / math.sqrt(len(of)) for of in firsts))
    result = {
        **heading("train_grpo", setting),
        **result,
        "parity": abs(means[0] - means[1]) / spread,
        "parity_tolerance": MOST_ERRORS,
        "mean_length": dict(zip(("packed", "trl"), means, strict=True)),
    }
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
