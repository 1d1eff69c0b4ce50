"""The demo's figures as a table for a terminal of 80 columns."""

from rich import box
from rich.table import Table

from worker.demo.figures import Figures


def figures_table(figures: Figures) -> Table:
    """Two columns, one line a figure; what is not known is left out."""
    run = figures.run
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="What the worker found", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(
        "Parts sent, answered", f"{run.parts}, {run.results} ({run.repeated} repeated, {run.dead} dead letters)"
    )
    table.add_row("Learned, calibrated, scored", f"{run.learned}, {run.calibrated}, {figures.scored}")
    if figures.anomalies_found is None:
        table.add_row("Anomalous", f"{figures.anomalous} of {figures.scored} (the truth is not known)")
    else:
        found = f"{figures.anomalies_found} found, {figures.anomalies_missed} missed, of {figures.defective}"
        table.add_row("Defective parts", found, style="bold")
    for kind in figures.kinds:
        auroc = "" if kind.auroc is None else f", AUROC {kind.auroc:.4f}"
        table.add_row(f"  {kind.kind.replace('_', ' ')}", f"{kind.found} of {kind.parts} found{auroc}")
    if figures.false_positive_rate is not None and figures.false_positive_rate_interval is not None:
        low, high = (f"{100 * bound:.1f}" for bound in figures.false_positive_rate_interval)
        table.add_row("False alarms", f"{figures.false_alarms} of {figures.good} good parts", style="bold")
        rate, wanted = f"{100 * figures.false_positive_rate:.1f} %", f"{100 * run.wanted_false_positive_rate:.1f} %"
        table.add_row("  rate (95 % interval)", f"{rate} ({low} to {high}), asked for {wanted}")
    if figures.auroc is not None:
        table.add_row("AUROC", f"{figures.auroc:.4f}", style="bold")
    speed = f"{figures.learning_images_per_second:.1f} learning, {figures.images_per_second:.1f} scoring"
    table.add_row("Images per second", speed)
    weights = f", {run.weights} weights" if run.weights else ", which brings its weights"
    table.add_row("Backbone", f"{run.backbone}{weights}")
    return table
