"""Variants of trained trials: the same weights, scaled without training, to be scored again, each
under a model id of its own."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rankscope.analyses.spectra import SPECTRA
from rankscope.analyses.spectra.intruders import control_factor, scale_intruders
from rankscope.analyses.variants import VARIANTS
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.parameters import compared_matrices
from rankscope.models.quantize import dense_weight
from rankscope.models.scaling import replaced_updates, scaled_adapter, scaled_model, variant_factors
from rankscope.models.svd_cache import decomposition_device
from rankscope.records import Variant, trial_of, variant_of
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
        names = list(dict.fromkeys(name for batch in work for name in batch[2] if name))
        if names:
            self.attach(model, names)
            yield from self.score_batches(model, work)
            for name in names:
                model.multi_lora.detach(name)
            return
        for model_id, batches in itertools.groupby(work, lambda batch: batch[2][None]):
            scaled = self.scaled_model(model, model_id)
            yield from self.score_batches(scaled, list(batches))
            del scaled  # before the next copy is made

    def attach(self, model: Base, names: Sequence[str]) -> None:
        """Attach the variants called ``names`` next to the adapters that they scale."""
        for name in names:
            variant = variant_of(name)
            assert variant is not None
            adapter = model.multi_lora.adapters[trial_of(name)]
            model.multi_lora.attach(self.adapter_variant(adapter, name, variant, model))

    def adapter_variant(self, adapter: Adapter, name: str, variant: Variant, base: Base) -> Adapter:
        """An adapter's update with a factor for all of it or per layer, with scaled intruder
        dimensions, scaled to the same Frobenius norm, matrix by matrix, or truncated."""
        linears, device = base.linears(), decomposition_device(base.device)
        if variant.kind in ("scale", "layers"):
            factor_of = variant_factors(variant, base.record.num_layers)
            return scaled_adapter(adapter, name, factor_of, linears)

        def update_of(module: str) -> LowRankUpdate:
            weight = dense_weight(linears[module]).to(device)
            update = LowRankUpdate.from_adapter(adapter, module, weight)
            if variant.kind == "truncated":
                return update.truncated(round(variant.strength))
            delta = update.dense()
            change = self.scaled_intruders(module, weight, delta, variant)
            if variant.kind == "control":
                return update.scaled(control_factor(delta, *change))
            return update.plus(*change)

        return replaced_updates(adapter, name, update_of)

    def scaled_intruders(
        self, name: str, weight: Tensor, delta: Tensor, variant: Variant
    ) -> tuple[Tensor, Tensor]:
        settings, svds = SPECTRA.settings(self.context.study.config), self.context.svd_cache
        return scale_intruders(weight, delta, svds.of(name, weight), variant.strength, settings)

    def scaled_model(self, tuned: Base, model_id: str) -> Base:
        """A variant of a fully fine-tuned model: a copy. Intruder dimensions are scaled only in the
        matrices whose spectra the study compares; the other parameters stay as tuned."""
        study, base, variant = self.context.study, self.context.base, variant_of(model_id)
        assert variant is not None
        if variant.kind in ("scale", "layers"):
            return scaled_model(base, tuned, variant_factors(variant, base.record.num_layers))
        model = scaled_model(base, tuned, lambda name: 1.0)
        linears, base_linears = model.linears(), base.linears()
        device = decomposition_device(base.device)
        for name in compared_matrices(study.base.shapes, study.trials):
            weight = dense_weight(base_linears[name]).to(device)
            delta: Tensor = linears[name].weight.detach().to(device).float() - weight.float()
            left, right = self.scaled_intruders(name, weight, delta, variant)
            if variant.kind == "control":
                delta = control_factor(delta, left, right) * delta
            else:
                delta = delta + (left @ right).float()
            with torch.no_grad():
                linears[name].weight.copy_(weight.float() + delta)
        return model
