"""A report as a W&B report, through wandb's own package for them; online only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis import tables
from analysis.contents import Contents
from zolab.errors import UserError


def publish(report: Contents, project: str, title: str, package: Any | None = None) -> str:
    """Make a W&B report of the tables in a project; its address.

    Args:
        report: what to publish.
        project: "entity/project", or "project" of the default entity.
        title: of the report.
        package: `wandb_workspaces.reports.v2`; None imports it.

    Raises:
        UserError: the package is missing, nobody is logged in, or the server refuses.
    """
    if package is None:
        package = _package()
    entity, _, name = project.rpartition("/")
    about = {"entity": entity} if entity else {}
    try:
        made = package.Report(project=name, title=title, blocks=_blocks(report, package), **about)
        made.save()
    except Exception as error:  # the package raises its own and requests' errors alike
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--publish={project}: {line}") from error
    return str(made.url)


def _package() -> Any:
    try:
        import wandb_workspaces.reports.v2 as package
    except ImportError as error:
        raise UserError(
            "--publish needs wandb's package for reports: pip install wandb-workspaces"
        ) from error
    return package


def _blocks(report: Contents, package: Any) -> Sequence[Any]:
    """One Markdown block per table, notes last."""
    parts = zip(report.mains, report.details, strict=True)
    shown = [table for main, rest in parts for table in (main, *rest)] + list(report.overall)
    blocks = [package.MarkdownBlock(text=tables.markdown(table, heading="##")) for table in shown]
    if report.notes:
        lines = "".join(f"- {tables.plain_markdown(note)}\n" for note in report.notes)
        blocks.append(package.MarkdownBlock(text=f"## Notes\n\n{lines}"))
    return blocks
