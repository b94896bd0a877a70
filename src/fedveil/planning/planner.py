"""Which setting to choose, and its accuracy: predicted from cohort sizes before anything is spent.

Accuracy is predicted by a `Reference` for each recipe; noise is calibrated as in a run. Among the accepted
configurations, the planner prefers the strongest privacy unit, then the least trust in others, as long as that costs
little accuracy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.planning.curve import accuracy_curve
from fedveil.planning.laws import Laws, Reference
from fedveil.planning.recommendation import Candidate, Change, Prediction, Recommendation
from fedveil.planning.request import Configuration, PlanRequest
from fedveil.privacy import check_delta
from fedveil.study.recipes import METRICS, Metric, Recipe, metric_name

__all__ = ["recommend"]

optimize = later("scipy.optimize")

NEAR = 0.01
"""Stronger units, less trust and linear heads are preferred if they lose no more accuracy than this."""
NOTICEABLE = 0.003
"""A change with a smaller gain of accuracy is not recommended."""
SMALLEST_EPSILON = 1e-3
LARGEST_RATIO, SMALLEST_RATIO = 1e9, 1e-9
ROUNDING = 1e-9


def recommend(plan_request: PlanRequest, laws: Laws) -> Recommendation:
    """Recommend the strongest unit, then the least trust, that meets the plan request; or say no and why.

    Without any wish, it is the least epsilon whose accuracy is within a tolerance of the same model without privacy.
    With a limit on epsilon or on risk and no accuracy target, all of the limit is used, and a stronger unit and less
    trust are preferred if they cost at most 0.01 of accuracy. Among recipes the more accurate one is chosen. The answer
    is no if a target cannot be reached, or if noise would remove more than half of the accuracy that the images allow
    above guessing.

    Args:
        plan_request: what is available and what would be accepted.
        laws: how accuracy depends on noise, for each known recipe.

    Raises:
        InvalidValue: no accepted recipe is known, or delta is larger than one over the number of units.
    """
    plan_request = _with_known(plan_request, laws)
    for unit in plan_request.units:
        if unit != "site":
            check_delta(plan_request.study.privacy.delta, math.ceil(plan_request.count(unit)))
    candidates = tuple(
        _candidate(plan_request, laws[configuration.recipe], configuration)
        for configuration in plan_request.configurations()
    )
    chosen = _choose(plan_request, candidates)
    sampled = plan_request.best_sampling(chosen.configuration, chosen.epsilon)
    if sampled != chosen.configuration:
        chosen = _at(plan_request, laws[sampled.recipe], sampled, chosen.epsilon)
    bare = {
        metric: max(
            laws[recipe][metric].expected(plan_request.patients, math.inf) for recipe in plan_request.recipes
        )
        for metric in METRICS
    }
    changes = _changes(plan_request, laws, chosen)
    largest = max((change.gain for change in changes), default=0.0)
    helping = [c for c in changes if c.gain >= max(largest / 2, NOTICEABLE)]
    return Recommendation(
        plan_request=plan_request,
        laws=dict(laws[chosen.configuration.recipe]),
        candidates=candidates,
        chosen=chosen,
        no=_no(plan_request, laws, chosen, bare[plan_request.ranked]),
        agreement=plan_request.agreement(chosen.configuration, chosen.epsilon),
        samplings=plan_request.samplings(chosen.configuration, chosen.epsilon),
        curve=accuracy_curve(plan_request, laws[chosen.configuration.recipe], chosen),
        bare=bare,
        changes=changes,
        advice=helping[0] if helping else None,
    )


def _with_known(plan_request: PlanRequest, laws: Laws) -> PlanRequest:
    """The plan request without recipes that were never measured."""
    known = tuple(one for one in plan_request.recipes if one in laws)
    if not known:
        raise InvalidValue(
            f"method is {', '.join(map(str, plan_request.recipes))}",
            f"accuracy was measured for {', '.join(map(str, laws))}",
            "accept one of them, or fit your own sweep",
        )
    return replace(plan_request, recipes=known)


def _candidate(
    plan_request: PlanRequest, law: Mapping[Metric, Reference], configuration: Configuration
) -> Candidate:
    """The configuration at the smallest epsilon that reaches all targets; at the limit if there is no target or one
    is missed."""
    limit, needed = plan_request.limit, _needed(plan_request, law)
    if not _wanted(plan_request, law) or plan_request.ratio(configuration, limit) < needed:
        return _at(plan_request, law, configuration, limit)

    def above(log: float) -> float:
        return math.log(max(plan_request.ratio(configuration, math.exp(log)), SMALLEST_RATIO) / needed)

    low = limit
    while low > SMALLEST_EPSILON and plan_request.ratio(configuration, low) >= needed:
        low = max(low / 4, min(SMALLEST_EPSILON, limit))
    chosen = low
    if plan_request.ratio(configuration, low) < needed:
        chosen = math.exp(optimize.brentq(above, math.log(low), math.log(min(4 * low, limit)), xtol=1e-4))
    # Rounded up to two digits: the targets are still met, and the number is short.
    chosen = min(limit, _upwards(chosen))
    while chosen < limit and plan_request.ratio(configuration, chosen) < needed:
        chosen = min(limit, _upwards(chosen * (1 + 1e-6)))
    return _at(plan_request, law, configuration, chosen)


def _at(
    plan_request: PlanRequest, law: Mapping[Metric, Reference], configuration: Configuration, target: float
) -> Candidate:
    """The configuration at this epsilon."""
    ratio = plan_request.ratio(configuration, target)
    predicted: dict[Metric, Prediction] = {}
    for metric, one in law.items():
        low, high = one.interval(plan_request.patients, ratio)
        predicted[metric] = Prediction(
            expected=one.expected(plan_request.patients, ratio), low=low, high=high
        )
    wanted = _wanted(plan_request, law)
    missed = [m for m, least in wanted.items() if predicted[m].expected < least - ROUNDING]
    return Candidate(
        configuration=configuration, epsilon=target, ratio=ratio, predicted=predicted, reaches=not missed
    )


def _wanted(plan_request: PlanRequest, law: Mapping[Metric, Reference]) -> dict[Metric, float]:
    """The least accuracies of a recipe: the targets, and what the tolerance leaves of its accuracy without privacy."""
    wanted = dict(plan_request.targets)
    if plan_request.loss is not None:
        metric = plan_request.ranked
        least = law[metric].expected(plan_request.patients, math.inf) - plan_request.loss
        wanted[metric] = max(least, wanted.get(metric, 0.0))
    return wanted


def _needed(plan_request: PlanRequest, law: Mapping[Metric, Reference]) -> float:
    """The ratio nu at which all targets are met; infinite if they cannot be reached even without noise."""
    found = 0.0
    for metric, least in _wanted(plan_request, law).items():
        one = law[metric]

        def above(log: float, one: Reference = one, least: float = least) -> float:
            return one.expected(plan_request.patients, math.exp(log)) - least

        high = math.log(LARGEST_RATIO)
        if above(high) < 0:
            return math.inf
        found = max(found, math.exp(optimize.brentq(above, -high, high)) if above(-high) < 0 else 0.0)
    return found


def _choose(plan_request: PlanRequest, candidates: tuple[Candidate, ...]) -> Candidate:
    """The first sufficient unit and trust, with the recipe that needs the least epsilon or is the most accurate."""
    metric = plan_request.ranked
    best = max(candidates, key=lambda c: c.value(metric))
    if plan_request.loss is not None:
        reaching = [c for c in candidates if c.reaches]
        most = max((c.value(metric) for c in reaching), default=0.0)
        good = [c for c in reaching if c.value(metric) >= most - NEAR]
    elif plan_request.targets:
        good = [c for c in candidates if c.reaches]
    else:
        good = [c for c in candidates if c.value(metric) >= best.value(metric) - NEAR]
    if good:
        first = good[0].configuration
        alike = [
            c for c in good if (c.configuration.unit, c.configuration.trust) == (first.unit, first.trust)
        ]
        best = min(alike, key=lambda c: (c.epsilon, -c.value(metric)))
    return _plainest(metric, best, candidates)


def _plainest(metric: Metric, best: Candidate, candidates: tuple[Candidate, ...]) -> Candidate:
    """The best linear head for the same unit and trust, if it needs no more epsilon and is at least nearly as accurate.

    A network takes minutes where a head takes seconds, and no reference's test set resolves differences below `NEAR`.
    """
    heads = [
        c
        for c in candidates
        if c.configuration.recipe.network == "linear"
        and (c.configuration.unit, c.configuration.trust, c.reaches)
        == (best.configuration.unit, best.configuration.trust, best.reaches)
        and c.epsilon <= best.epsilon
        and c.value(metric) >= best.value(metric) - NEAR
    ]
    return max(heads, key=lambda c: c.value(metric), default=best)


def _upwards(value: float) -> float:
    """The smallest number with two digits that is not smaller than the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)


def _no(plan_request: PlanRequest, laws: Laws, chosen: Candidate, bare: float) -> str:
    """The reason for a no; empty if there is none."""
    for metric, least in plan_request.targets.items():
        if chosen.value(metric) < least - ROUNDING:
            return _short(plan_request, laws, chosen, metric)
    value = chosen.value(plan_request.ranked)
    if not chosen.reaches and value - 0.5 >= (bare - 0.5) / 2:
        return _beyond(plan_request, laws, chosen)
    if value - 0.5 < (bare - 0.5) / 2:
        site = chosen.configuration.unit == "site"
        why = (
            f"one of {len(plan_request.cohorts)} hospitals cannot be hidden"
            if site
            else "there are too few patients"
        )
        return f"noise would remove more than half of the accuracy that the images allow: {why}"
    return ""


def _beyond(plan_request: PlanRequest, laws: Laws, chosen: Candidate) -> str:
    """The reason why no accepted epsilon keeps the accuracy within the tolerance."""
    law, metric = laws[chosen.configuration.recipe][plan_request.ranked], plan_request.ranked
    bare = law.expected(plan_request.patients, math.inf)
    loss = plan_request.loss or 0.0
    needed = _patients_needed(
        plan_request, law, chosen, lambda patients: law.expected(patients, math.inf) - loss
    )
    more = f"; about {needed:,} patients would be needed" if needed else ""
    return (
        f"no epsilon up to {plan_request.limit:.3g} keeps the {metric_name(metric)} within {plan_request.loss:g} of "
        f"that without privacy: at most {chosen.value(metric):.3f} of {bare:.3f}{more}"
    )


def _short(plan_request: PlanRequest, laws: Laws, chosen: Candidate, metric: Metric) -> str:
    """The reason why this target cannot be reached."""
    name = metric_name(metric)
    ceiling = max(laws[recipe][metric].expected(1e12, math.inf) for recipe in plan_request.recipes)
    law = laws[chosen.configuration.recipe][metric]
    if plan_request.targets[metric] >= ceiling:
        article = "an" if metric == "auroc" else "a"
        return f"tasks like {law.name} allow {article} {name} of {ceiling:.3f} at most, with any number of patients"
    needed = _patients_needed(plan_request, law, chosen, lambda _: plan_request.targets[metric])
    more = f"; about {needed:,} patients would be needed" if needed else ""
    found = f"{name} {chosen.value(metric):.3f}, with trust {chosen.configuration.trust}"
    return f"at epsilon {plan_request.limit:.3g} the best is {found}{more}"


def _patients_needed(
    plan_request: PlanRequest, law: Reference, chosen: Candidate, wanted: Callable[[float], float]
) -> int | None:
    """The number of patients needed with the same hospitals, all larger by one factor; None if a factor of 1,000 is
    not enough."""
    if chosen.configuration.unit == "site":
        return None

    def short(log: float) -> float:
        scale = math.exp(log)
        patients = plan_request.patients * scale
        return law.expected(patients, chosen.ratio * scale) - wanted(patients)

    if short(math.log(1000)) < 0:
        return None
    scale = math.exp(optimize.brentq(short, 0.0, math.log(1000), xtol=1e-4))
    return int(_upwards(plan_request.patients * scale))


def _changes(plan_request: PlanRequest, laws: Laws, chosen: Candidate) -> tuple[Change, ...]:
    """Possible changes, those without a privacy cost first; each with the recipe that is then best."""
    n, mean = len(plan_request.cohorts), round(plan_request.patients / len(plan_request.cohorts))
    configuration, target, metric = chosen.configuration, chosen.epsilon, plan_request.ranked
    more: list[tuple[str, PlanRequest, Configuration, float]] = []
    if configuration.trust == "site" and n >= 3:
        masked = replace(configuration, trust="secure-aggregation")
        more.append(
            ("secure aggregation instead of all noise at each hospital", plan_request, masked, target)
        )
    if configuration.unit == "site":
        more.append(
            (
                "protect patients instead of whole hospitals",
                plan_request,
                replace(configuration, unit="patient"),
                target,
            )
        )
    added = replace(plan_request, cohorts=plan_request.cohorts + (mean,) * (n // 2 + 1))
    doubled = replace(plan_request, cohorts=tuple(2 * c for c in plan_request.cohorts))
    more += [
        (f"{n // 2 + 1} more hospitals of {mean:,} patients", added, configuration, target),
        ("twice as many patients in each hospital", doubled, configuration, target),
        (f"epsilon {2 * target:.3g} instead of {target:.3g}", plan_request, configuration, 2 * target),
    ]
    found = []
    for what, changed, other, spent in more:
        by = {
            recipe: laws[recipe][metric].expected(changed.patients, changed.ratio(_by(other, recipe), spent))
            for recipe in plan_request.recipes
            if plan_request.fits(recipe, other.unit)
        }
        recipe = max(by, key=lambda one: by[one])
        told = what if recipe == configuration.recipe else f"{what}, and {recipe}"
        found.append(Change(what=told, expected=by[recipe], gain=by[recipe] - chosen.value(metric)))
    return tuple(found)


def _by(configuration: Configuration, recipe: Recipe) -> Configuration:
    """The configuration with this recipe, which has its own default sampling unless it is the configuration's own
    recipe."""
    return (
        configuration
        if recipe == configuration.recipe
        else replace(configuration, recipe=recipe, sampling_rate=None)
    )
