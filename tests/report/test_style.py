"""Colors of the report."""

import re

from rankscope.report.style import dark_colors, faded, rank_colors


def luminance(color: str) -> float:
    """Relative luminance of an ``rgb(r, g, b)`` color (WCAG 2, definition of contrast)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_rank_colors_are_ordered_distinct_and_readable_in_both_modes() -> None:
    colors = list(rank_colors([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]).values())
    for mode, page in ((0, "rgb(254, 254, 254)"), (1, "rgb(22, 25, 29)")):
        levels = [luminance(color[mode]) for color in colors]
        assert levels == sorted(levels)
        assert len(set(levels)) == len(levels)
        ground = luminance(page)
        for level in levels:
            high, low = max(level, ground) + 0.05, min(level, ground) + 0.05
            # Graphics need less contrast than text: the marks also differ in shape and place.
            assert high / low > 1.9


def test_one_rank_alone_has_a_color() -> None:
    assert list(rank_colors([16])) == [16]
    assert rank_colors([]) == {}


def test_faded_colors_have_faded_partners() -> None:
    pairs = dark_colors([4, 8])
    for light, dark in list(pairs.items()):
        if not light.startswith("rgba"):
            assert pairs[faded(light)] == faded(dark)
