"""The black-box attacker: it has the released model alone, and asks which patients it was trained on.

Likelihood ratios against reference models (RMIA, Zarifzadeh, Liu and Shokri, 2312.03262, with the mean of reference
models as its denominator; LiRA, Carlini et al., 2112.03570), at patient level: the score of a patient is

    log prod_i p(y_i | x_i, model) - log mean_k prod_i p(y_i | x_i, reference_k)

over all of the patient's images together. The patients are ones of the study, each in by a fair coin; the references
are trained as the study is, on coins of their own. The first reference stands in for the released model when the number
of guesses is chosen.
"""

from dataclasses import replace
from typing import ClassVar, final

import numpy as np
from scipy.special import logsumexp

from fedveil.audit.arena import Arena, Indices
from fedveil.audit.attacker import STUDY, Attacker, Attempt, Setup, check_enough, claim_of, roc
from fedveil.audit.evidence import OneRun, choose_guesses, guess
from fedveil.audit.one_run import coins
from fedveil.audit.statistics import Vector
from fedveil.study import make_agreement

__all__ = ["ReleasedModel"]

SMALLEST = 1e-12
"""Probabilities below it count as it."""


@final
class ReleasedModel(Attacker):
    """Membership of patients from the final model."""

    name: ClassVar[str] = "black box"

    def attack(self, setup: Setup) -> list[Attempt]:
        """Train the reference models and the one that is attacked."""
        agreement = setup.agreement
        mechanisms = tuple(one.mechanism for one in agreement.releases if not one.query.at_site)
        claim, plain = claim_of(mechanisms, agreement.target.delta)
        arena = _candidates(setup)
        needed = OneRun.needed(claim, setup.significance)
        check_enough(setup, len(arena.canaries), needed, "candidate patients", "more patients:")
        quick = _trusted(arena)
        models = [self._model(setup, arena, "target")]
        models += [self._model(setup, quick, f"reference {k + 1}") for k in range(max(2, setup.references))]
        (target, included), (first, first_in), *_ = models
        others = [one for one, _ in models[2:]]
        rehearsal = _ratios(first, others)
        guesses = choose_guesses(rehearsal, first_in, claim, setup.significance)
        scores = _ratios(target, [first, *others])
        curve, area = roc(scores[included == 0], scores[included == 1])
        return [
            Attempt(
                attacker=self.name,
                release=STUDY,
                claim=claim,
                plain=plain,
                evidence=guess(scores, included, guesses),
                curve=curve,
                area=area,
                executions=len(models),
                what=f"membership of {len(scores)} {agreement.target.unit}s from the released model, "
                f"against {len(models) - 1} others",
            )
        ]

    def _model(self, setup: Setup, arena: Arena, name: str) -> Vector:
        """(2, patients): log-likelihoods of each candidate under a trained model, and its coins."""

        def trained() -> Vector:
            included = coins(len(arena.canaries))
            parameters = arena.train(included).parameters
            setup.progress.advance()
            return np.stack([_likelihoods(arena, parameters), included])

        return setup.store.get(f"{self.name}.{name}", trained)


def _candidates(setup: Setup) -> Arena:
    """Every other patient of each hospital is a candidate, or every other image; the others are always in."""
    prepared = setup.prepared
    patients = prepared.dataset.patients
    owners = patients if prepared.study.privacy.unit == "patient" else np.arange(len(patients))
    sites, canaries, homes = {}, [], []
    for name, rows in prepared.sites.items():
        chosen = np.unique(owners[rows])[1::2]
        sites[name] = rows[~np.isin(owners[rows], chosen)]
        canaries += [rows[owners[rows] == patient] for patient in chosen]
        homes += [name] * len(chosen)
    return Arena(
        prepared=replace(prepared, sites=sites),
        task=setup.task,
        agreement=setup.agreement,
        canaries=tuple(canaries),
        homes=tuple(homes),
    )


def _trusted(arena: Arena) -> Arena:
    """The same study whose coordinator adds the noise: the attacker's own models need no masks."""
    if arena.agreement.trust != "secure-aggregation":
        return arena
    study = arena.prepared.study.with_changes({"privacy": {"trust": "server"}})
    return replace(
        arena,
        prepared=replace(arena.prepared, study=study),
        task=replace(arena.task, study=study),
        agreement=make_agreement(study, sites=arena.agreement.sites, model=arena.task.model),
    )


def _likelihoods(arena: Arena, parameters: Vector) -> Vector:
    """log prod_i p(y_i | x_i) of each candidate's images."""
    rows: Indices = np.concatenate(arena.canaries)
    probabilities = arena.task.probabilities(parameters, rows)
    own = probabilities[np.arange(len(rows)), arena.task.dataset.labels[rows]]
    patients = np.repeat(np.arange(len(arena.canaries)), [len(one) for one in arena.canaries])
    return np.asarray(np.bincount(patients, np.log(np.maximum(own, SMALLEST))), dtype=np.float64)


def _ratios(model: Vector, references: list[Vector]) -> Vector:
    """Log-likelihood under the model, less that under the mean of the references."""
    mean: Vector = logsumexp(np.array(references), axis=0) - np.log(len(references))
    return np.asarray(model - mean)
