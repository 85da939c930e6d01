"""One table of several systems, from what compute_metrics.py has written of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.summary import HIGHER_IS_BETTER, LABELS, METRICS, number
from utils.files import atomic_path, write_csv
from utils.metrics import PROTOCOLS

COLUMNS = [
    (protocol, metric)
    for protocol in PROTOCOLS
    for metric in METRICS
    if (protocol, metric) != ("released", "fid")  # which is not part of it
]


def row_of(name: str, scores: Mapping[str, dict]) -> dict[str, str]:
    """A row of the table: text for each metric in each protocol, and notes on those without."""
    missing = len(scores["left_out"]) + len(scores["unmatched"].get("gt", ()))
    row = {
        "system": name,
        "note": f"{name} lacks {missing} of the test photographs." * bool(missing),
    }
    for protocol, metric in COLUMNS:
        estimate = scores["summary"][protocol].get(metric, {"value": None, "note": ""})
        value = estimate["value"]
        row[f"{protocol}_{metric}"] = "" if value is None else number(float(value), metric)
        row[f"{protocol}_{metric}_note"] = estimate["note"]
    return row


def write_tables(
    rows: Sequence[Mapping[str, str]],
    notes: Sequence[str],
    chosen: str,
    budget: float,
    output: Path,
) -> None:
    """Write table.csv and table.md; metrics that no row has are left out, with a sentence.

    Args:
        rows: of `row_of`, with the costs of those that were trained.
        notes: sentences on what is missing.
        chosen: the set.
        budget: the share of the published iterations.
        output: the folder.
    """
    columns = [pair for pair in COLUMNS if any(row[f"{pair[0]}_{pair[1]}"] for row in rows)]
    header = ["system", *(f"{p} {LABELS[m]}" for p, m in columns), "iterations", "seconds"]
    names = ["system", *(f"{p}_{m}" for p, m in columns), "iterations", "seconds"]
    cells = [[row.get(name, "") for name in names] for row in rows]
    write_csv(output / "table.csv", [dict(zip(names, line, strict=True)) for line in cells])
    more = {row["note"]: None for row in rows}  # each once, in order
    more |= {row[f"{p}_{m}_note"]: None for row in rows for p, m in COLUMNS}
    better = ", ".join(LABELS[m] for m in METRICS if HIGHER_IS_BETTER[m])
    lines = [
        f"{chosen}'s test split, after {budget:g} of the published iterations. Higher is "
        f"better for {better}. Figures of the two protocols must not be compared.",
        "",
        *(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *cells)),
        "",
        *(f"- {note}" for note in [*notes, *filter(None, more)]),
    ]
    with atomic_path(output / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
