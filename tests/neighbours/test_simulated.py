"""Simulated studies: one patient less moves its own hospital by its bound, and no other hospital at all."""

import numpy as np
import pytest
from tests.neighbours.checks import adversaries, check_neighbours
from tests.neighbours.cohorts import cohort, manifest, npz, with_other_hospital, without
from tests.neighbours.harness import Opened, without_noise

from fedveil.federation import HospitalUnits
from fedveil.federation.contributions import Contributions
from fedveil.study import Study
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.progress import Silent

TWO = ("ill", "normal")
STUDY = """
[data]
source = "{source}"
image_size = 16
sites = {{ count = 3 }}
[model]
features = "pixels"
whitened = false
[privacy]
delta = 1e-3
trust = "server"
evaluation_share = 0.1
"""


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    made = []

    def read(write, images) -> Prepared:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(folder)
        monkeypatch.setenv("FEDVEIL_CACHE", str(folder / "cache"))
        return prepare(Study.parse(STUDY.format(source=folder / write(folder, images))))

    return read


def open_sites(one: Prepared, sites, held_out):
    """Each hospital of a study in one process, as `fedveil.study.simulation` makes them."""
    task, found = make_task(one.study, one.dataset, Silent()), {}
    for name, rows in sites.items():
        hospital = HospitalUnits(learner=task.learner(rows), held_out=task.held_out(held_out[name]))
        contributions = Contributions(name, hospital, np.random.default_rng(0))
        found[name] = Opened(contributions, task, rows, held_out[name])
    return found


def check(whole, less, releases, gone):
    homes = [name for name, one in whole.items() if gone in one.names(np.concatenate([one.train, one.test]))]
    assert len(homes) == 1
    for name, one in whole.items():
        if name in homes:
            assert check_neighbours(one, less[name], releases) == gone
            continue
        for release in map(without_noise, releases):
            for parameters in adversaries(release, one, one.train[:1], np.random.default_rng(1)):
                total, rest = one.ask(release, parameters)[0], less[name].ask(release, parameters)[0]
                np.testing.assert_allclose(total, rest, rtol=0, atol=1e-9)


@pytest.mark.parametrize("columns", [("patient", "site"), ("patient", "site", "split")])
def test_hospitals_that_the_data_names(prepared, columns):
    images = with_other_hospital(cohort(TWO))
    for gone in ("many", "tested", "twin-1"):
        one = prepared(manifest(*columns), images)
        other = prepared(manifest(*columns), without(images, "patient", gone))
        assert list(one.sites) == list(other.sites) == ["north", "south"]
        whole, less = (open_sites(each, each.sites, each.held_out) for each in (one, other))
        agreement = make_agreement(one.study, sites=tuple(one.sites), model=whole["north"].task.model)
        check(whole, less, agreement.releases, gone)


def test_hospitals_that_patients_were_dealt_to_stay_where_they_are(prepared):
    """Dealt anew, others would move: the guarantee is for those who stay, and the deal is taken over."""
    images = cohort(TWO)
    for gone in ("many", "rare", "p3"):
        one, other = prepared(npz, images), prepared(npz, without(images, "patient", gone))
        place = {name: row for row, name in enumerate(other.dataset.image_names)}

        def kept(parts, names=one.dataset.image_names, place=place):
            return {
                site: np.array([place[names[row]] for row in rows if names[row] in place], dtype=np.int64)
                for site, rows in parts.items()
            }

        held = {
            place[one.dataset.image_names[row]]
            for row in one.dataset.test
            if one.dataset.image_names[row] in place
        }
        assert held == set(other.dataset.test.tolist())
        whole = open_sites(one, one.sites, one.held_out)
        less = open_sites(other, kept(one.sites), kept(one.held_out))
        agreement = make_agreement(one.study, sites=tuple(one.sites), model=whole["site-1"].task.model)
        check(whole, less, agreement.releases, gone)
