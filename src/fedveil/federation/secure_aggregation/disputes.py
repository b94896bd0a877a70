"""Who is left out when sites contradict each other: boxes of shares are encrypted, so the server cannot tell who lies.

Site A says that what B sent it cannot be read. Either B sent rubbish, or A lies. Leaving one of the two out ends the
dispute, and an honest site has disputes with dishonest ones only: whoever has most is left out first.
"""

from collections import Counter
from collections.abc import Iterable

__all__ = ["Dispute", "suspects"]

Dispute = tuple[str, str]
"""Who complains, and of whom."""


def suspects(disputes: Iterable[Dispute]) -> frozenset[str]:
    """Sites without which no dispute is left: a greedy vertex cover, of two alike the one that is complained of.

    With one dishonest site it is found at its second dispute at the latest, and who was left out for its sake returns.

    >>> sorted(suspects([("a", "b")])), sorted(suspects([("a", "b"), ("a", "c")]))
    (['b'], ['a'])
    """
    left, found = set(disputes), set[str]()
    while left:
        pairs = {frozenset(pair) for pair in left}
        counts = Counter(site for pair in pairs for site in pair)
        accused = Counter(other for _, other in left)
        worst = max(sorted(counts), key=lambda site: (counts[site], accused[site]))
        found.add(worst)
        left = {pair for pair in left if worst not in pair}
    return frozenset(found)
