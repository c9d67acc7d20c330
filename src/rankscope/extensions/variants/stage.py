"""The stage that scores variants of trained trials, each under its own model id.

A variant has the same weights, scaled or truncated without training.
"""

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from rankscope.extensions.variants import VARIANTS
from rankscope.extensions.variants.scaling import replaced_updates, scaled_adapter, scaled_model
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter, adapter_of
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.quantize import dense_weight
from rankscope.models.svd_cache import decomposition_device
from rankscope.records import ScoredModel, Variant
from rankscope.run.groups import Group
from rankscope.run.stages.evaluate import EvalBatch, EvaluateStage, Scored


class VariantsStage(EvaluateStage):
    """Trials with their weight update scaled down, or truncated."""

    name = "variants"

    def missing(self, group: Group) -> list[EvalBatch]:
        """Return batches of the missing variants.

        Variants that are adapters are scored together. A full model scaled down is a copy of the
        whole model, so each gets its own batches. Cut to a rank, it is an adapter.
        """
        study, batches = self.context.study, list[EvalBatch]()
        wanted = [key for trial in group for key in VARIANTS.wanted_evals(study, trial)]
        variants: dict[str | None, ScoredModel] = {str(model): model for model, _, _ in wanted}
        if any(trial.is_full for trial in group):
            for name, variant in list(variants.items()):
                if isinstance(variant, Variant) and variant.kind == "scale":
                    batches += self.missing_batches({None: variants.pop(name)}, wanted)
        return self.missing_batches(variants, wanted) + batches

    def run(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[Scored]:
        self.context.begin_stage(self.name, len(work))
        of_adapters = [batch for batch in work if None not in batch[2]]
        found = (v for batch in of_adapters for v in batch[2].values() if isinstance(v, Variant))
        if variants := list(dict.fromkeys(found)):
            is_full = self.context.study.trial(variants[0]).is_full
            frozen = self.context.base if is_full else model
            self.attach_truncations(model, variants) if is_full else self.attach(model, variants)
            yield from self.score_batches(frozen, of_adapters)
            for variant in variants:
                frozen.multi_lora.detach(str(variant))
        rest = [batch for batch in work if None in batch[2]]
        for variant, batches in itertools.groupby(rest, lambda batch: batch[2][None]):
            assert isinstance(variant, Variant)
            scaled = scaled_model(self.context.base, model, variant.strength)
            yield from self.score_batches(scaled, list(batches))
            del scaled  # before the next copy is made

    def attach(self, model: Base, variants: Sequence[Variant]) -> None:
        """Attach variants next to the adapters that they scale."""
        for variant in variants:
            adapter = model.multi_lora.adapters[variant.trial_id]
            model.multi_lora.attach(self.adapter_variant(adapter, variant, model))

    def attach_truncations(self, tuned: Base, variants: Sequence[Variant]) -> None:
        """Attach the truncations of a fully fine-tuned model to the base.

        They are adapters on every linear layer but the output head, like those of ``shrink``.
        Everything else stays as in the base.
        """
        base, stored = self.context.base, CheckpointReader(tuned.folder)
        ranks = [round(variant.strength) for variant in variants]
        factors: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in ranks]
        linears, device = base.linears(), decomposition_device(base.device)
        for module in stored.layers:
            weight = to_float64(dense_weight(linears[module]).to(device))
            delta = to_float64(stored.weight(module, device)) - weight
            cuts = LowRankUpdate.from_dense(delta).truncations(ranks)
            for own, cut in zip(factors, cuts, strict=True):
                own[module] = cut.A.float(), cut.B.float()
        for variant, own in zip(variants, factors, strict=True):
            base.multi_lora.attach(adapter_of(str(variant), own).to(base.device))

    def adapter_variant(self, adapter: Adapter, variant: Variant, base: Base) -> Adapter:
        """Scale or truncate an adapter's update."""
        name = str(variant)
        linears, device = base.linears(), decomposition_device(base.device)
        if variant.kind == "scale":
            return scaled_adapter(adapter, name, variant.strength, linears)

        def update_of(module: str) -> LowRankUpdate:
            weight = dense_weight(linears[module]).to(device)
            update = LowRankUpdate.from_adapter(adapter, module, weight)
            return update.truncated(round(variant.strength))

        return replaced_updates(adapter, name, update_of)
