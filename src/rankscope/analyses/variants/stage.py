"""Score scaled variants of trained trials, each under a model id of its own."""

import itertools
from collections.abc import Iterator, Sequence

from rankscope.analyses.spectra import SPECTRA
from rankscope.analyses.variants import VARIANTS
from rankscope.analyses.variants.variants import adapter_variant, full_model_variant
from rankscope.models.base import Base
from rankscope.models.parameters import compared_matrices
from rankscope.records import trial_of, variant_of
from rankscope.run.groups import Group
from rankscope.run.stages.evaluate import EvalBatch, EvaluateStage, Scored


class VariantsStage(EvaluateStage):
    """Trials with all, or some, of their weight update scaled down."""

    name = "variants"

    def missing(self, group: Group) -> list[EvalBatch]:
        """Adapter variants are scored together. A variant of a full model is a copy of the whole
        model, so each gets batches of its own."""
        study, batches = self.context.study, list[EvalBatch]()
        wanted = [key for trial in group for key in VARIANTS.wanted_evals(study, trial)]
        ids = list(dict.fromkeys(model_id for model_id, _, _ in wanted))
        if not any(trial.is_full for trial in group):
            return self.missing_batches({i: i for i in ids}, wanted)
        for model_id in ids:
            batches += self.missing_batches({None: model_id}, wanted)
        return batches

    def run(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[Scored]:
        self.context.begin_stage(self.name, len(work))
        names = list(dict.fromkeys(name for batch in work for name in batch.model_ids if name))
        if names:
            self.attach(model, names)
            yield from self.score_batches(model, work)
            for name in names:
                model.multi_lora.detach(name)
            return
        for model_id, batches in itertools.groupby(work, lambda batch: batch.model_ids[None]):
            scaled = self.scaled_model(model, model_id)
            yield from self.score_batches(scaled, list(batches))
            del scaled  # before the next copy is made

    def attach(self, model: Base, names: Sequence[str]) -> None:
        """Attach the variants called ``names`` next to the adapters that they scale."""
        settings = SPECTRA.settings(self.context.study.config)
        for name in names:
            variant = variant_of(name)
            assert variant is not None
            adapter = model.multi_lora.adapters[trial_of(name)]
            model.multi_lora.attach(
                adapter_variant(adapter, name, variant, model, settings, self.context.svd_cache)
            )

    def scaled_model(self, model: Base, model_id: str) -> Base:
        study, base, variant = self.context.study, self.context.base, variant_of(model_id)
        assert variant is not None
        matrices = list(compared_matrices(study.base.shapes, study.trials))
        settings = SPECTRA.settings(study.config)
        return full_model_variant(base, model, variant, matrices, settings, self.context.svd_cache)
