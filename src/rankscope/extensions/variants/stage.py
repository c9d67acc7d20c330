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
from rankscope.records import Variant, trial_of, variant_of
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
        ids = list(dict.fromkeys(model_id for model_id, _, _ in wanted))
        if not any(trial.is_full for trial in group):
            return self.missing_batches({i: i for i in ids}, wanted)
        cut = [i for i in ids if (variant := variant_of(i)) and variant.kind == "truncated"]
        batches += self.missing_batches({i: i for i in cut}, wanted)
        for model_id in ids:
            if model_id not in cut:
                batches += self.missing_batches({None: model_id}, wanted)
        return batches

    def run(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[Scored]:
        self.context.begin_stage(self.name, len(work))
        of_adapters = [batch for batch in work if None not in batch[2]]
        if names := list(dict.fromkeys(name for batch in of_adapters for name in batch[2] if name)):
            is_full = self.context.study.trial(names[0]).is_full
            frozen = self.context.base if is_full else model
            self.attach_truncations(model, names) if is_full else self.attach(model, names)
            yield from self.score_batches(frozen, of_adapters)
            for name in names:
                frozen.multi_lora.detach(name)
        rest = [batch for batch in work if None in batch[2]]
        for model_id, batches in itertools.groupby(rest, lambda batch: batch[2][None]):
            variant = variant_of(model_id)
            assert variant is not None
            scaled = scaled_model(self.context.base, model, variant.strength)
            yield from self.score_batches(scaled, list(batches))
            del scaled  # before the next copy is made

    def attach(self, model: Base, names: Sequence[str]) -> None:
        """Attach the variants called ``names`` next to the adapters that they scale."""
        for name in names:
            variant = variant_of(name)
            assert variant is not None
            adapter = model.multi_lora.adapters[trial_of(name)]
            model.multi_lora.attach(self.adapter_variant(adapter, name, variant, model))

    def attach_truncations(self, tuned: Base, names: Sequence[str]) -> None:
        """Attach the truncations of a fully fine-tuned model to the base.

        They are adapters on every linear layer but the output head, like those of ``shrink``.
        Everything else stays as in the base.
        """
        base, stored = self.context.base, CheckpointReader(tuned.folder)
        ranks = [round(variant.strength) for name in names if (variant := variant_of(name))]
        factors: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in ranks]
        linears, device = base.linears(), decomposition_device(base.device)
        for module in stored.layers:
            weight = to_float64(dense_weight(linears[module]).to(device))
            delta = to_float64(stored.weight(module, device)) - weight
            cuts = LowRankUpdate.from_dense(delta).truncations(ranks)
            for own, cut in zip(factors, cuts, strict=True):
                own[module] = cut.A.float(), cut.B.float()
        for name, own in zip(names, factors, strict=True):
            base.multi_lora.attach(adapter_of(name, own).to(base.device))

    def adapter_variant(self, adapter: Adapter, name: str, variant: Variant, base: Base) -> Adapter:
        """Scale or truncate an adapter's update."""
        linears, device = base.linears(), decomposition_device(base.device)
        if variant.kind == "scale":
            return scaled_adapter(adapter, name, variant.strength, linears)

        def update_of(module: str) -> LowRankUpdate:
            weight = dense_weight(linears[module]).to(device)
            update = LowRankUpdate.from_adapter(adapter, module, weight)
            return update.truncated(round(variant.strength))

        return replaced_updates(adapter, name, update_of)
