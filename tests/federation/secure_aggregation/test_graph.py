"""The sparse graph's failure bound, against graphs that are really drawn."""

import itertools

import numpy as np
import pytest

from fedveil.federation.secure_aggregation.graph import (
    FAILURE,
    _exposed,
    _split,
    edge_probability,
    failure_probability,
    sparse_threshold,
)


@pytest.mark.parametrize(("sites", "colluding"), [(65, 3), (100, 5), (200, 10)])
def test_default_graphs_fail_with_negligible_probability(sites, colluding):
    threshold = 2 * sites // 3 + 1
    probability = edge_probability(sites, colluding, threshold)
    assert failure_probability(sites, colluding, threshold, probability) <= FAILURE
    assert failure_probability(sites, colluding, threshold, probability - 0.01) > FAILURE


def test_degree_grows_like_a_logarithm():
    """For one colluding site: four times as many sites, less than twice the neighbours."""
    degrees = [sites * edge_probability(sites, 1, 2 * sites // 3 + 1) for sites in (60, 120, 240)]
    assert degrees[2] < 2 * degrees[0]


def random_graph(generator, sites, probability):
    upper = np.triu(generator.random((sites, sites)) < probability, 1)
    return upper | upper.T


def test_exposed_sites_are_as_rare_as_computed():
    """(a) in graphs of 12 sites, of which the last 2 collude and are everyone's neighbour."""
    generator = np.random.default_rng(1)
    sites, colluding, probability, trials = 12, 2, 0.5, 4000
    seen = 0
    for _ in range(trials):
        graph = random_graph(generator, sites - colluding, probability)
        holders = graph.sum(axis=1) + 1 + colluding
        seen += sum(sparse_threshold(int(m)) <= colluding + 2 for m in holders)
    expected = _exposed(sites, colluding, 2, probability)
    assert expected > 0.1
    assert seen / trials == pytest.approx(expected, rel=0.1)


def components(graph, members):
    left, parts = set(members), []
    while left:
        part, new = set(), {left.pop()}
        while new:
            part |= new
            new = {v for u in new for v in left if graph[u, v]}
            left -= new
        parts.append(len(part))
    return parts


def falls_apart(graph, lost):
    """Whether some choice of at most `lost` sites leaves two parts of more than 2 sites each."""
    sites = range(len(graph))
    for count in range(lost + 1):
        for gone in itertools.combinations(sites, count):
            rest = [site for site in sites if site not in gone]
            parts = components(graph, rest)
            sums = {sum(chosen) for k in range(len(parts)) for chosen in itertools.combinations(parts, k)}
            if any(2 < one < len(rest) - 2 for one in sums):
                return True
    return False


def test_graphs_fall_apart_no_more_often_than_bounded():
    """(b) in graphs of 9 honest sites of which a server may declare 2 lost, over all its choices."""
    generator = np.random.default_rng(2)
    trials, probability = 300, 0.5
    seen = sum(falls_apart(random_graph(generator, 9, probability), 2) for _ in range(trials)) / trials
    bound = _split(9, 2, 2, probability)
    assert 0 < seen <= bound < 1
