"""Masked words look uniformly random, alone and in every combination that a server can form; a test that bites.

The statistics: bytes of the masked words of single sites, of neighbouring coordinates' differences, and of sums and
differences between sites and rounds, each against the uniform distribution (chi-squared over the 256 values, at each
of the four places in a word). Weakened on purpose, as in other people's code, the masks fail it.
"""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedveil.federation.secure_aggregation import client as client_module
from fedveil.federation.secure_aggregation import masks

LENGTH = 20_000
TINY = 1e-7  # of 1e-7 a statistic is rejected by chance


def smallest_p_value(samples):
    """Over samples of words: the smallest p-value of any test that their bytes are uniform."""
    values = []
    for sample in samples:
        for place in sample.reshape(-1, 1).view(np.uint8).reshape(-1, 4).T:
            values.append(stats.chisquare(np.bincount(place, minlength=256)).pvalue)
    return min(values)


def observations(box, own, rounds=(1, 2)):
    """All that a server can build from masked words whose masks should not cancel."""
    seen = {(site, r): box.masked(site, r, own[site]).words for r in rounds for site in box.sites}
    samples = [*seen.values(), *(np.diff(one) for one in seen.values())]
    for one, other in combinations(seen.values(), 2):
        samples += [one - other, one + other]
    return samples


def plain(sites):
    """What the sites send is as far from random as can be."""
    return {site: np.full(LENGTH, number, dtype=np.uint32) for number, site in enumerate(sites)}


@pytest.mark.parametrize("count", [4, 5])
def test_masked_input_is_indistinguishable_from_uniform(federation, count):
    box = federation(count, rounds=2)
    assert smallest_p_value(observations(box, plain(box.sites))) > TINY


def one_scalar_for_all_weights(monkeypatch):
    def apply(words, add, subtract):
        for sign, keys in ((1, add), (-1, subtract)):
            for key in keys:
                words += np.uint32(sign * int.from_bytes(key[:4]) % 2**32)

    monkeypatch.setattr(client_module, "apply_masks", apply)


def one_key_for_all_sites(monkeypatch):
    monkeypatch.setattr(client_module, "pair_mask_key", lambda *context: bytes(32))
    monkeypatch.setattr(client_module, "self_mask_key", lambda *context: bytes(32))


def one_key_for_all_rounds(monkeypatch):
    right_pair, right_self = masks.pair_mask_key, masks.self_mask_key
    monkeypatch.setattr(client_module, "agree", lambda private, public: bytes(32))
    monkeypatch.setattr(client_module, "pair_mask_key", lambda *context: right_pair(*context[:-2], 0))
    monkeypatch.setattr(
        client_module, "self_mask_key", lambda seed, *context: right_self(bytes(32), *context[:-2], 0)
    )


def sixteen_bit_masks(monkeypatch):
    right = masks.apply_masks

    def apply(words, add, subtract):
        mask = np.zeros_like(words)
        right(mask, add, subtract)
        words += mask & np.uint32(0xFFFF)

    monkeypatch.setattr(client_module, "apply_masks", apply)


def masks_of_pairs_only(monkeypatch):
    """Without self masks, the sum of all sites' words is open before anyone agreed to open it."""
    right = masks.apply_masks
    monkeypatch.setattr(client_module, "apply_masks", lambda words, add, sub: right(words, add[1:], sub))


WEAKENINGS = [one_scalar_for_all_weights, one_key_for_all_sites, one_key_for_all_rounds, sixteen_bit_masks]


@pytest.mark.parametrize("weaken", WEAKENINGS)
def test_weakened_masks_are_caught(federation, monkeypatch, weaken):
    box = federation(4, rounds=2)
    weaken(monkeypatch)
    assert smallest_p_value(observations(box, plain(box.sites))) < TINY


def total_before_recovery(box):
    own = plain(box.sites)
    return np.sum([box.masked(site, 1, own[site]).words for site in box.sites], axis=0, dtype=np.uint32)


def test_the_sum_stays_masked_until_recovery(federation, monkeypatch):
    assert smallest_p_value([total_before_recovery(federation(4))]) > TINY
    masks_of_pairs_only(monkeypatch)
    assert smallest_p_value([total_before_recovery(federation(4))]) < TINY
