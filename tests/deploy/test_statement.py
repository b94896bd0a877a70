"""A signed statement: true to the ledger, checked by anybody, void with one byte changed."""

import hashlib
import io
import json

import pypdf
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.deploy.hospital import WHO, Hospital
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.records.inventory import bill_of_materials
from fedveil.deploy.records.printed import printed
from fedveil.deploy.records.statement import verify_statement
from fedveil.errors import InvalidValue, Refused
from fedveil.federation import Reply
from fedveil.installed import code_hash


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, " ".join((done.output + done.stderr).split())


@pytest.fixture
def stated(hospital: Hospital, tmp_path):
    """A hospital that answered one round, and its statement."""
    assert isinstance(hospital.round(1, 1), Reply)
    code, text = run("site", "statement", "toy", str(hospital.folder), "--out", str(tmp_path / "out"))
    assert code == 0, text
    (page,) = (tmp_path / "out").glob("*.html")
    return hospital, page


def test_a_statement_says_who_decided_what_it_cost_and_with_what(stated):
    hospital, page = stated
    text = page.read_text()
    state = hospital.ledger
    for words in (
        f"approved by {WHO['by']} ({WHO['role']}",
        hospital.agreement.digest,
        f"epsilon {state.spent():.4g}",
        state.head.hash,
        code_hash(),
        "each hospital adds all of the noise itself",
        "name = &#34;toy&#34;",
    ):
        assert words in text
    assert "<td>training</td><td>1</td>" in text
    materials = page.with_suffix("").with_suffix(".sbom.json")
    assert hashlib.sha256(materials.read_bytes()).hexdigest() in text


def test_charges_under_the_title_of_earlier_versions_are_stated(hospital, tmp_path):
    agreement = hospital.agreement
    hospital.service.ledger.reserve(
        agreement.main.mechanism, study=agreement.titles[1], trust="site", round=1, label=agreement.main.name
    )
    code, text = run("site", "statement", "toy", str(hospital.folder), "--out", str(tmp_path / "out"))
    assert code == 0, text
    (page,) = (tmp_path / "out").glob("*.html")
    assert f"<td>{agreement.main.name}</td><td>1</td>" in page.read_text()


def test_anybody_can_check_it_against_the_hospitals_fingerprint(stated):
    hospital, page = stated
    own = hospital.service.identity.public
    for key in (own, fingerprint(own), fingerprint(own).upper().replace("-", " ")):
        assert verify_statement(page, key).signer == own
        assert run("statement", "verify", str(page), "--key", key)[0] == 0
    other = Identity.create(page.with_name("other.key")).public
    with pytest.raises(Refused, match="was expected"):
        verify_statement(page, fingerprint(other))
    assert run("statement", "verify", str(page), "--key", fingerprint(other))[0] == 2
    assert "compare this fingerprint" in run("statement", "verify", str(page))[1]


def test_every_change_makes_it_void(stated):
    _, page = stated
    content = page.read_bytes()
    for place in (
        0,
        1000,
        len(content) // 2,
        content.rfind(b"<!--") - 1,
        len(content) - 20,
        len(content) - 160,
    ):
        changed = bytearray(content)
        changed[place] ^= 1
        page.write_bytes(changed)
        with pytest.raises((Refused, InvalidValue)):
            verify_statement(page)
    for changed in (content + b"more", content.replace(b"</body>", b"<p>more</p></body>"), b"", content[:-1]):
        page.write_bytes(changed)
        with pytest.raises((Refused, InvalidValue)):
            verify_statement(page)
    page.write_bytes(content)
    verify_statement(page)


def test_nothing_is_stated_about_a_study_that_nobody_decided(make_hospital, tmp_path):
    hospital = make_hospital(approve=False)
    code, text = run("site", "statement", "toy", str(hospital.folder), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "nothing was decided" in text
    assert not (tmp_path / "out").exists()


def test_a_statement_is_never_overwritten(stated):
    hospital, page = stated
    before = page.read_bytes()
    code, text = run("site", "statement", "toy", str(hospital.folder), "--out", str(page.parent))
    assert code == 2
    assert "never overwritten" in text
    assert page.read_bytes() == before


def test_a_printout_shows_the_same_and_names_the_signed_page(hospital, tmp_path):
    """Its text is extracted by another library than wrote it."""
    assert isinstance(hospital.round(1, 1), Reply)
    words = ("site", "statement", "toy", str(hospital.folder), "--out", str(tmp_path), "--pdf")
    code, text = run(*words)
    assert code == 0, text
    (page,), (paper,) = tmp_path.glob("*.html"), tmp_path.glob("*.pdf")
    found = "".join("".join(one.extract_text() for one in pypdf.PdfReader(paper).pages).split())
    state = hospital.ledger
    for words in (
        f"approved by {WHO['by']} ({WHO['role']}",
        f"Signed original is {page.name}, SHA-256 {hashlib.sha256(page.read_bytes()).hexdigest()}"[7:],
        f"epsilon {state.spent():.4g}",
        state.head.hash,
        code_hash(),
        hospital.agreement.digest,
        'name = "toy"',
    ):
        assert "".join(words.split()) in found, words
    assert paper.stat().st_mode & 0o777 == 0o600
    page.unlink()
    assert run(*words)[0] == 2


def test_a_statement_whose_printout_fails_is_not_written(hospital, tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(28, "no space left on device")

    assert isinstance(hospital.round(1, 1), Reply)
    monkeypatch.setattr("fedveil.deploy.records.statement.printed", failing)
    out = tmp_path / "out"
    assert run("site", "statement", "toy", str(hospital.folder), "--out", str(out), "--pdf")[0] == 2
    assert not out.exists()


def test_a_folder_with_brackets_is_printed_as_it_is(hospital, tmp_path):
    assert isinstance(hospital.round(1, 1), Reply)
    out = tmp_path / "[" / "b]"
    code, text = run("site", "statement", "toy", str(hospital.folder), "--out", str(out))
    assert code == 0, text
    assert f"wrote {out}" in text


def test_a_printout_of_any_text_has_only_its_own_lines():
    """Names of studies come from elsewhere."""
    values = {
        **dict.fromkeys(("site", "fingerprint", "trust"), "x"),
        "name": "a\u202eb\x1b[2J\n\u4e2d\U00020000",
        "made": "2026-01-01T00:00:00+00:00",
        "digest": "ab" * 32,
        "rows": [("purpose", "w" * 3000), ("", "")],
        **{key: [] for key in ("decisions", "curve", "charged")},
        "budget": [("ledger", "x")],
        "software": [("code", "y" * 64)],
        "study": "k = 1\n\n" * 200 + "of {nb} total",
    }
    found = "".join(
        one.extract_text() for one in pypdf.PdfReader(io.BytesIO(printed(values, "p", "h"))).pages
    )
    assert "\u202e" not in found
    assert "\x1b" not in found
    assert found.count("w") >= 3000
    assert "of {nb} total" in found, "only the page's own number is filled in"
    pages = len(pypdf.PdfReader(io.BytesIO(printed(values, "p", "h"))).pages)
    assert f"page 1 of {pages}" in found
    assert r"\u4e2d\U00020000" in found, "what the fonts lack is shown by number"


def test_the_bill_of_materials_is_valid_by_the_schema_of_cyclonedx():
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill_of_materials()))
    assert found is None, found
    broken = json.dumps({**bill_of_materials(), "components": [{"type": "library"}]})
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_the_bill_of_materials_names_every_package_once():
    bill = bill_of_materials()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    names = [one["name"] for one in bill["components"]]
    assert len(names) == len(set(names))
    assert {"numpy", "torch", "cryptography", "dp-accounting"} <= set(names)
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bill["components"])
    json.dumps(bill)
