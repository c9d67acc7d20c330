"""Check analysis settings against a model's matrices, before any weight is loaded."""

from collections.abc import Mapping

from rankscope.analyze.spectra import SpectraSettings
from rankscope.config.study import SpectraConfig
from rankscope.errors import UserError

STUDY_OPTIONS = {
    "top_k": "analyze.spectra.top_k",
    "intruder_k": "analyze.spectra.intruder_k",
    "intruder_epsilon": "analyze.spectra.intruder_epsilon",
}
"""Names of the settings in a study file."""


def check_spectra_settings(
    settings: SpectraSettings,
    shapes: Mapping[str, tuple[int, int]],
    options: Mapping[str, str] = STUDY_OPTIONS,
) -> None:
    """Refuse more vectors than a matrix has, and an epsilon that is not a cosine.

    All singular vectors of a matrix together span the same space whatever training did, so they
    would compare as equal. The default of ``intruder_k`` fits any matrix: it is cut to its size.

    Args:
        settings: of the study or the command.
        shapes: module path -> (out, in) of the matrices to analyze.
        options: field of ``settings`` -> its name in error messages.
    """
    if not 0 < settings.intruder_epsilon < 1:
        raise UserError(
            f"{options['intruder_epsilon']} {settings.intruder_epsilon}: expected a number between "
            "0 and 1, a cosine"
        )
    has_default = settings.intruder_k == SpectraConfig().intruder_k
    counts = {"top_k": settings.top_k, "intruder_k": None if has_default else settings.intruder_k}
    for name, shape in shapes.items():
        for field, k in counts.items():
            if k is not None and not 1 <= k <= min(shape):
                raise UserError(
                    f"{options[field]} {k}: {name} {shape} has {min(shape)} singular vectors; "
                    f"expected 1 to {min(shape)}"
                )
