"""Whose an image is decides the unit of the guarantee: names that leave it in doubt are asked about."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data import check, load, load_usable
from fedveil.data.options import Options
from fedveil.errors import DataError

PUBLIC = {"classes": ("a", "b"), "channels": 1, "image_size": 8}


def usable(source, *, need_patients=True, **settings):
    """What a hospital that has approved a study takes part with."""
    return load_usable(source, Options.of({**PUBLIC, **settings}), base=Path(), need_patients=need_patients)


@pytest.fixture
def table(tmp_path):
    def write(patients):
        rows = ["path,label,patient"]
        for number, patient in enumerate(patients):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
            rows.append(f"{number}.png,{'ab'[number % 2]},{patient}")
        (tmp_path / "set.csv").write_text("\n".join(rows))
        return str(tmp_path / "set.csv")

    return write


@pytest.mark.parametrize(("one", "other"), [("007", "7"), ("A1", "a1"), ("P 7", "P7"), ("P-07", "p-7")])
def test_two_spellings_of_a_patient_are_asked_about(table, one, other):
    source = table([one, "X1", other, "X2"])
    with pytest.raises(DataError, match=f"patient {other} is spelt {one} elsewhere"):
        load(source, image_size=8)
    (problem,) = check(source).problems
    assert problem.place.endswith("line 4")
    assert len(load(source, image_size=8, accept=["similar-patients"]).patient_names) == 4
    assert len(usable(source).patient_names) == 3, "a hospital's guarantee covers both at once"
    assert len(usable(source, accept=["similar-patients"]).patient_names) == 4


def test_others_are_not_confused(table):
    assert check(table(["P1", "P10", "P2", "P100"])).ok
    assert check(table(["70", "7", "700", "1-7"])).ok


@pytest.mark.parametrize("name", ["ANONYMOUS", "anonymized", "unknown", "N/A", "XXXX", "-", "de-identified"])
def test_a_name_of_nobody_is_no_patient(table, name):
    source = table([name] * 3 + ["P1", "P2", name])
    with pytest.raises(DataError, match="this is a placeholder"):
        load(source, image_size=8)
    assert len(check(source).problems) == 4
    accepted = load(source, image_size=8, accept=["placeholder-patients"])
    assert len(accepted.patient_names) == 3
    assert len(usable(source)) == 2
