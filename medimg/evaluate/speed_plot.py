"""How good backbones are, against how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.evaluate.plots import line_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from medimg.evaluate.comparison import Candidate

__all__ = ["speed_plot"]

_MARKERS: Final = "osD^vP*X"


def speed_plot(candidates: Sequence[Candidate], ci: float, device: str, axes: Axes | None) -> Axes:
    """
    Draw AUROC, with its interval, against images per second.

    Parameters
    ----------
    candidates : sequence of Candidate
        Those that failed are left out.
    ci : float
        Of the intervals.
    device : str
        What they were timed on.
    axes : matplotlib Axes or None
        Where to; a new figure, known to no window, by default.

    Returns
    -------
    matplotlib Axes
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(7.2, 4.2), layout="constrained").subplots()
    scored = [(one, one.scores.metrics["auroc"]) for one in candidates if one.scores is not None]
    for number, (one, found) in enumerate(scored):
        color, _ = line_style(number)
        ends = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        axes.errorbar(
            one.images_per_second,
            found.value,
            yerr=ends,
            fmt=_MARKERS[number % len(_MARKERS)],
            color=color,
            capsize=4,
            markersize=7,
            label=f"{one.backbone}, {one.parameters:.3g} M",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=f"Images per second ({device})", ylabel=f"AUROC, {100 * ci:g} % interval over patients")
    if axes.has_data():
        # beside the points, which may lie anywhere
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    axes.grid(color="#d5dde5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return axes
