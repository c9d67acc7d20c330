"""The stage that compares singular values and vectors of trained matrices with the base's.

For a fully fine-tuned model, the matrices are those that the study's adapters change. If the study
has no adapters, they are all linear layers but the output head.
"""

from collections.abc import Iterator, Sequence

from rankscope.extensions.spectra import SPECTRA
from rankscope.extensions.spectra.record import SpectraRecord
from rankscope.extensions.spectra.spectra import analyze_trial
from rankscope.extensions.spectra.stored_models import given_spectra
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.parameters import compared_matrices
from rankscope.models.svd_cache import SvdCache
from rankscope.records import TrialSpec
from rankscope.run.stages import Stage


class SpectraStage(Stage[TrialSpec, SpectraRecord]):
    name = "spectra"

    def run(self, model: Base, work: Sequence[TrialSpec]) -> Iterator[SpectraRecord]:
        context, study = self.context, self.context.study
        context.begin_stage(self.name, len(work))
        for trial in work:
            context.begin_piece(trial.arm_label)
            names = compared_matrices(study.base.shapes, study.trials)
            settings, svds = SPECTRA.settings(study.config), context.svd_cache
            if trial.given is None or trial.peft is not None:
                record = analyze_trial(trial, context.base, model, names, settings, svds)
            else:  # from stored weights, whatever dtype the models run in
                base = CheckpointReader(context.base.folder)
                svds = SvdCache(max_bytes=0, folder=svds.folder)  # other weights, equal names
                record = given_spectra(trial, base, names, settings, svds, context.base.device)
            if not record.matrices:
                context.reporter.note(
                    f"{trial.arm_label}: this method's update cannot be merged into a weight "
                    "matrix, so the trial has no spectra"
                )
            yield record
