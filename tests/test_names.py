"""What sites may be called: no path, no look-alike, the same rule wherever a name enters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.federation.toy import make_agreement

from fedveil.data import load
from fedveil.deploy.receipts import Receipt
from fedveil.errors import DataError, FederationError, InvalidValue, StudyError
from fedveil.names import check_site_name
from fedveil.study import RunDirectory, Study

PATHS = ("../../x", "..", ".", "a/b", "a\\b", ".hidden", "/etc/x", "")
LOOK_ALIKES = ("n\u043erth", "north\u200b", "\uff4eorth", "north\u0301", "no\u202erth", "north\n", "\u2160I")


@pytest.mark.parametrize("name", [*PATHS, *LOOK_ALIKES, "x" * 81, "two  ", " north"])
def test_a_name_that_is_a_path_or_looks_like_another_is_refused(name: str) -> None:
    for plain in (False, True):
        with pytest.raises(InvalidValue, match="a site is called"):
            check_site_name(name, plain=plain)


@pytest.mark.parametrize("name", ["north", "site-1", "St. Mary's (II)", "Köln", "Αθήνα", "東京", "a_b.c"])
def test_tables_may_use_the_names_of_their_country(name: str) -> None:
    assert check_site_name(name) == name


@pytest.mark.parametrize("name", ["Köln", "two words"])
def test_between_hospitals_names_are_ascii(name: str) -> None:
    with pytest.raises(InvalidValue, match="ASCII"):
        check_site_name(name, plain=True)


@pytest.mark.parametrize("site", ["../../x", "n\u043erth"])
def test_a_manifest_with_such_a_site_is_refused_when_it_is_read(tmp_path: Path, site: str) -> None:
    rows = ["path,label,patient,site,split"]
    for number in range(8):
        Image.fromarray(np.full((8, 8), 9 * number, np.uint8)).save(tmp_path / f"{number}.png")
        split = "test" if number > 5 else "train"
        rows.append(
            f"{number}.png,{('a', 'b')[number % 2]},p{number},{site if number < 4 else 'south'},{split}"
        )
    (tmp_path / "images.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="a site is called"):
        load("images.csv", image_size=8, base=tmp_path)


@pytest.mark.parametrize("name", PATHS)
def test_no_ledger_leaves_its_folder(tmp_path: Path, name: str) -> None:
    directory = RunDirectory.create(tmp_path / "run", Study())
    for place in (directory.ledger, directory.personal):
        with pytest.raises(InvalidValue):
            place(name)


@pytest.mark.parametrize(
    "names", [("../../x", "b", "c"), ("n\u043erth", "north", "c"), ("North", "north", "c")]
)
def test_terms_hold_no_such_name(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue):
        replace(make_agreement("site"), sites=names, min_sites=2)


@pytest.mark.parametrize("name", ["..", "t\u043ey", "a/b", "", " toy"])
def test_a_study_of_such_a_name_is_refused(name: str) -> None:
    with pytest.raises(StudyError):
        Study.parse(f'[study]\nname = "{name}"')


@pytest.mark.parametrize("name", ["../../x", "a/b", ".."])
def test_no_receipt_leaves_its_folder(name: str) -> None:
    values = {
        "study": "0" * 64,
        "release": "training",
        "round": 1,
        "attempt": 1,
        "answer": "0" * 64,
        "cost": None,
    }
    values |= {"seq": 1, "hash": "0" * 64}
    assert Receipt.from_dict({**values, "site": "north"}).site == "north"
    with pytest.raises(FederationError, match="not a receipt"):
        Receipt.from_dict({**values, "site": name})
