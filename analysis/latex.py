"""Tables as LaTeX with booktabs: `tables.tex` to put into a paper, `report.tex` to look at alone.

Both need only booktabs and graphicx, and no package for Unicode: every character that LaTeX does
not know is spelled in ASCII.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from analysis.tables import Table

_PLAIN = {
    "\\": r"\textbackslash{}",
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "±": r"$\pm$", "×": r"$\times$", "≥": r"$\ge$", "≤": r"$\le$", "∞": r"$\infty$",
    "−": "$-$", "–": "--", "—": "---", "…": r"\dots{}", "“": "``", "”": "''", "’": "'",
    "ε": r"$\varepsilon$", "θ": r"$\theta$", "δ": r"$\delta$", "·": r"$\cdot$", "→": r"$\to$",
}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX prints it, on one line; what has no ASCII form becomes its code point."""
    return "".join(_character(char) for char in " ".join(text.split()))


def _character(char: str) -> str:
    if char in _PLAIN:
        return _PLAIN[char]
    if " " <= char <= "~":
        return char
    ascii_form = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return ascii_form if ascii_form.isprintable() and ascii_form else f"[U+{ord(char):04X}]"


def table(content: Table, label: str) -> str:
    """One `table` environment.

    Args:
        content: the table.
        label: what `\\ref` calls it, letters, digits and hyphens.
    """
    columns = "".join("l" if words else "r" for words in content.is_text)
    lines = [
        r"\begin{table}[htbp]",
        r"  \centering",
        rf"  \caption{{{escape(content.title)}}}\label{{tab:{label}}}",
        # Shrunk only where it is wider than the text.
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        "    " + _row(content.headers),
        r"    \midrule",
        *("    " + _row(row) for row in content.rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *(rf"  \par\smallskip\footnotesize {escape(note)}" for note in content.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    # Braces: a cell that begins with a bracket would otherwise be read as an option of `\\`.
    return " & ".join(f"{{{escape(cell)}}}" for cell in cells) + r" \\"


def tables_file(tables: Sequence[Table]) -> str:
    """All tables one after the other, to be `\\input`."""
    head = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
    return head + "\n".join(
        table(content, f"zolab-{number}-{_slug(content.title)}")
        for number, content in enumerate(tables, start=1)
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:40].strip("-")


DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[margin=2cm]{geometry}
\begin{document}
\input{tables.tex}
\end{document}
"""
