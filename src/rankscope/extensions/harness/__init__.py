"""Any task of lm-evaluation-harness, scored under many models in memory."""

import re
from typing import TYPE_CHECKING

from rankscope.config.section import Unfit, short_repr
from rankscope.sources import Source

if TYPE_CHECKING:
    from rankscope.config.task import TaskConfig
    from rankscope.data.tasks import LoadedTask


class HarnessTasks(Source):
    name = "lm_eval"
    has_tasks = True
    label = "a task of lm-evaluation-harness"

    def check_name(self, rest: str) -> None:
        from rankscope.extensions.harness.task_files import is_yaml

        if is_yaml(rest):
            found, rule = (
                f"{short_repr(rest)}, a file",
                "a task's name, and its file as 'source_file'",
            )
            raise Unfit(found, rule, f"or score it with 'rankscope eval --tasks {PREFIX}{rest}'")
        if not re.fullmatch(r"[\w.+-]{1,150}", rest):
            raise Unfit(short_repr(rest), "a name of letters, digits, '_', '.', '+' and '-'")

    def tasks(self, name: str) -> "list[TaskConfig]":
        from rankscope.extensions.harness.bridge import harness_tasks  # an optional package

        return harness_tasks(name)

    def load_task(self, config: "TaskConfig", max_items: int | None) -> "LoadedTask":
        from rankscope.extensions.harness.bridge import load_harness_task

        return load_harness_task(config, max_items)


PREFIX = f"{HarnessTasks.name}:"
