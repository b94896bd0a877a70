"""Who is left out when sites contradict each other: boxes of shares are encrypted, so the server cannot tell which
site lies.

Site A claims that B's box cannot be read. Either B sent an invalid box, or A lies. Leaving one of the two out ends
the dispute, and an honest site has disputes only with dishonest ones: the site with the most disputes is left out
first.
"""

from collections import Counter
from collections.abc import Iterable

__all__ = ["Dispute", "suspects"]

Dispute = tuple[str, str]
"""Pairs of complaining and accused site."""


def suspects(disputes: Iterable[Dispute]) -> frozenset[str]:
    """Sites whose removal ends all disputes: a greedy vertex cover; ties are resolved against the accused site.

    A single dishonest site is found at its second dispute at the latest, and a site left out because of it returns.

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
