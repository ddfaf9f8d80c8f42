"""Runs every check on every backbone family and writes the table tests/model/FAMILIES.md.

python -m tests.model.families_table                 # all families
python -m tests.model.families_table bert longformer # these, printed
"""

import sys
from pathlib import Path

import torch
import transformers

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from .families import FAMILIES, LEFT_OUT, UNUSED, UNUSED_WHEN_CUT, tiny_config
from .test_families import CHECKS, outcome


def row(family):
    """Cells of one row, the reasons it refers to, and the checks that fail."""
    if family in LEFT_OUT:
        return [family, "left out", "", "", "", *[""] * len(CHECKS)], [LEFT_OUT[family]], []
    cells, reasons, failures = [], [], []
    for check in CHECKS:
        cell, expected = outcome(family, check)
        if not expected:
            failures.append(f"{family} {check}: {cell}")
        if cell != "yes":
            reasons.append(f"{check}: {cell}")
        cells.append("yes" if cell == "yes" else "excused" if expected else "FAILS")
    tables = [("trains", UNUSED), ("cut", UNUSED_WHEN_CUT)]
    reasons += [
        f"{check}: without a gradient `{pattern}`: {reason}"
        for check, table in tables
        for pattern, reason in table.get(family, {}).items()
    ]
    try:
        model = LstmPoolForSequenceClassification(tiny_config(family))
        found = "hooks" if model.lstmpool.capture.streams else "output_hidden_states"
        facts = [found, model.config.num_hidden_layers, model.config.token_pooling, model.config.layer_norm]
    except Exception:
        facts = ["FAILS", "", "", ""]
    return [family, *facts, *cells], reasons, failures


def table(families):
    """The Markdown of FAMILIES.md, and all failures."""
    rows = [row(family) for family in families]
    passing = sum(cells[1] != "left out" and not failures for cells, _, failures in rows)
    lines = [
        "# Backbone families",
        "",
        f"{passing} of {len(rows)} families pass every check that applies to them "
        f"(transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}).",
        "",
        "Written by `python -m tests.model.families_table`, on tiny random models (`families.py`). "
        '"excused" cells have their reason, which lies in the backbone, in the list below the table.',
        "",
        *(f"- **{check}**: {meaning}" for check, (_, meaning) in CHECKS.items()),
        "",
    ]
    head = ["family", "layers found by", "layers", "token pooling", "layer_norm", *CHECKS]
    lines += [
        "| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *(r[0] for r in rows))
    ]
    lines += ["", "## Reasons", ""]
    lines += [f"- {cells[0]}: " + "; ".join(reasons) for cells, reasons, _ in rows if reasons]
    return "\n".join(lines) + "\n", [failure for *_, failures in rows for failure in failures]


def main(families):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    text, failures = table(families or FAMILIES)
    if families:
        print(text)
    else:
        (Path(__file__).parent / "FAMILIES.md").write_text(text)
    print("\n".join(failures) or "all pass")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
