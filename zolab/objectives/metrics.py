"""Token F1 of a generated answer."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation marks and articles.

    Source: the evaluation of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250).
    """
    plain = text.lower().translate(_NO_PUNCTUATION)
    return [word for word in plain.split() if word not in _ARTICLES]


def token_f1(text: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, each as often as it occurs; 0 to 1."""
    found, wanted = words_of(text), words_of(gold)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    return 2 * shared / (len(found) + len(wanted))


def best_f1(text: str, golds: Sequence[str]) -> float:
    """F1 against the gold answer that fits best."""
    return max(token_f1(text, gold) for gold in golds)
