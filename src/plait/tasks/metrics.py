"""How good answers are: BLEU and chrF with their signatures, exact match, and error rates to the nearest of several right answers."""

from collections.abc import Sequence
from typing import Any


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def nearest_edits(answer: Sequence[Any], right: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """(distance to the nearest right answer, that answer's length)."""
    return min((edits(answer, reference), len(reference)) for reference in right)


def score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics of translation as (figures, signatures); every source may have several right answers.

    symbol_error_rate: edits to the nearest right answer over its length, symbols being what white space separates (phonemes, words);
    sequence_error_rate: the share of answers equal to no right one. Both are in percent, as BLEU and chrF are.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(answers) != len(references) or not answers:
        raise ValueError(f"{len(answers)} answers for {len(references)} sources: there must be one for each, and at least one")
    most = max(len(right) for right in references)
    columns: Any = [[right[i] if i < len(right) else None for right in references] for i in range(most)]
    bleu, chrf = BLEU(), CHRF()
    figures = {"bleu": bleu.corpus_score(list(answers), columns).score, "chrf": chrf.corpus_score(list(answers), columns).score}
    pairs = [nearest_edits(answer.split(), [r.split() for r in right]) for answer, right in zip(answers, references, strict=True)]
    exact = sum(answer in right for answer, right in zip(answers, references, strict=True)) / len(answers)
    figures["exact_match"] = 100 * exact
    figures["symbol_error_rate"] = 100 * sum(d for d, _ in pairs) / max(sum(n for _, n in pairs), 1)
    figures["sequence_error_rate"] = 100 - 100 * exact
    return figures, {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
