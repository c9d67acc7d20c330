"""What to score: models, adapters, tasks and settings, validated like a study file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationError

from rankscope.config.section import ConfigSection, matches
from rankscope.config.study import DEVICE_PATTERN, EvaluateConfig, ModelConfig
from rankscope.errors import UserError
from rankscope.filesystem import user_path
from rankscope.records import Split


class EvalRequest(ConfigSection):
    model: str
    """A folder, a hub id, a fetched model's name or ``pocket``."""
    adapters: tuple[str, ...] = ()
    """Folders in PEFT's format."""
    tasks: tuple[str, ...]
    """Named tasks, task files, files and folders of rows, or ``lm_eval:NAME``."""
    data_dir: Path | None = None
    """Folder with the named tasks' rows; None reads them from the hub."""
    split: Split = "test"
    num_fewshot: int | None = None
    """Examples before each question of every task; None keeps each task's own number."""
    device: Annotated[
        str, AfterValidator(matches(DEVICE_PATTERN, "auto, cpu, mps, cuda or cuda:0"))
    ] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    data_seed: int = 0
    lm_eval_layout: bool = False
    """The results are also written as lm-evaluation-harness does."""
    force: bool = False
    """Accept adapters that record another base."""
    trust_task_code: bool = False
    """Let the files of lm_eval tasks run the Python functions that they name."""
    settings: EvaluateConfig = EvaluateConfig()

    @property
    def model_source(self) -> ModelConfig:
        """The model as in a study file. Raises UserError: neither a folder nor the name of a
        model."""
        folder = user_path(self.model)
        if folder.is_file():
            raise UserError(
                f"model {self.model}: is a file; expected a folder, a hub id or a model's name"
            )
        is_folder = folder.is_dir() and self.model != "pocket"
        source = {"path": str(folder)} if is_folder else ModelConfig.from_short_form(self.model)
        try:
            return ModelConfig.model_validate({**source, "prompt_format": self.prompt_format})
        except ValidationError as error:
            raise UserError(
                f"model {self.model!r}: no such folder, and not a model's name"
            ) from error


def checked_request(**options: Any) -> EvalRequest:
    """The request of a command line. Raises UserError: an option has a value that cannot be
    used."""
    try:
        return EvalRequest.model_validate(options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        option = "--" + str(fault["loc"][-1]).replace("_", "-")
        if fault["type"] == "value_error":
            raise UserError(f"{option}: {fault['ctx']['error']}") from error
        expected = fault["msg"].removeprefix("Input should be ")
        raise UserError(f"{option}: found {fault['input']!r}, expected {expected}") from error
