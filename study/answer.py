"""The short answer on EVIDENCE.md: six questions, and for each the difference that answers it."""

from dataclasses import dataclass

from lstmpool.benchmarks.results import markdown
from study.differences import Difference, compared
from study.statistics import Table


LSTM = "lstm"


@dataclass(frozen=True)
class Question:
    """Is the LSTM better than `other`, in a regime and with a token pooling?"""

    words: str
    regime: str
    token_pooling: str
    other: str


QUESTIONS = (
    Question("Does it pay to look below the top layer?", "frozen", "mean", "last"),
    Question("Does it pay to read all layers, rather than the best one?", "frozen", "mean", "best_layer"),
    Question("Does it pay to read them with a thousand times the parameters?", "frozen", "mean", "attention"),
    Question("Does the order of the layers matter?", "frozen", "mean", "lstm_shuffled"),
    Question("Does it pay with CLS vectors, the default?", "frozen", "cls", "last"),
    Question("Does it pay where the backbone is trained, too?", "full", "mean", "stock"),
)


def answer(tables: list[Table]) -> str:
    """Markdown; a row for each question, or for each backbone that answers it."""
    lines = []
    for question in QUESTIONS:
        for table in tables:
            if (table.regime, table.token_pooling) == (question.regime, question.token_pooling):
                for other, found in compared(table, LSTM, [question.other]).items():
                    lines.append([question.words, table.regime, table.token_pooling, other, *numbers(found)])
    head = [
        "question",
        "regime",
        "tokens",
        "lstm less",
        "sets",
        "mean difference, these sets",
        "95 %, sets like these",
    ]
    return markdown(head, lines, words=4)


def numbers(found: Difference) -> list[str]:
    """On how many sets, and the mean in hundredths: for these sets, and for sets like these."""
    estimate, low, high = (100 * value for value in found.pooled)
    wide = "too few sets"
    if found.enough:
        wide = "{:+.1f} to {:+.1f}".format(*(100 * value for value in found.over_sets))
    return [str(len(found.by_set)), f"{estimate:+.1f} ({low:+.1f} to {high:+.1f})", wide]
