"""New keys and certificates: old evidence stays verifiable, others compare the new key, running studies are kept."""

import json
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from tests.deploy.hospital import WHO, Hospital, record_withdrawal
from tests.deploy.test_gate import found
from tests.deploy.test_transport import COST
from tests.deploy.town import wait_until
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.progress import noted
from fedveil.deploy.flower.carrier import FlowerCarrier
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.provisioning import renewal
from fedveil.deploy.provisioning.expiry import expiring
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.deploy.receipts import Receipt, Receipts
from fedveil.deploy.records.handover import HandOver, read_hand_over
from fedveil.deploy.records.statement import verify_statement
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import FederationError, InvalidValue, LedgerError, Refused
from fedveil.federation import Reply
from fedveil.privacy import verify_ledger

WHY = {**WHO, "reason": "yearly"}


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, " ".join((done.output + done.stderr).split())


def stop(hospital: Hospital) -> None:
    hospital.service.finish()
    hospital.service.ledger.close()


def renewed(folder: Path) -> tuple[HandOver, Path]:
    return renewal.renew_identity(folder, **WHY)


def held_out(folder: Path) -> object:
    return Cohorts(SiteConfig.load(folder), Identity.load(folder / "identity.key")).settings(None)["secret"]


def test_a_hospital_renews_its_key_and_what_the_old_one_signed_stays_its_own(hospital, tmp_path):
    assert isinstance(hospital.round(1, 1), Reply)
    folder, old = hospital.folder, hospital.service.identity.public
    code, text = run("site", "statement", "toy", folder, "--out", tmp_path / "out")
    assert code == 0, text
    (page,) = (tmp_path / "out").glob("*.html")
    secret = held_out(folder)
    command = ("site", "renew", folder, "--yes", "--by", "A", "--role", "B", "--reason", "C")
    code, text = run(*command)
    assert code == 2
    assert "approved and not finished" in text
    assert f"fedveil site withdraw {hospital.agreement.digest}" in text
    record_withdrawal(hospital.service, hospital.agreement.digest)
    code, text = run(*command)
    assert code == 2
    assert "stop `fedveil site serve` first" in text
    assert Identity.load(folder / "identity.key").public == old
    stop(hospital)
    code, text = run(*command)
    assert code == 0, text
    new = Identity.load(folder / "identity.key").public
    assert new != old
    assert (folder / "identity.pub").read_text().strip() == new
    assert fingerprint(new) in text
    one = read_hand_over(folder / f"handover-north-{new[:12]}.json")
    assert (one.site, one.old, one.new) == ("north", old, new)
    (line,) = (one for one in verify_ledger(folder / "ledger.jsonl").decisions if one.act == "renewed")
    assert (line.by, line.role, line.reason, line.subject) == ("A", "B", "C", one.subject)
    assert held_out(folder) == secret, "the same patients are held out"
    with pytest.raises(Refused, match="was expected"):
        verify_statement(page, fingerprint(new))
    assert verify_statement(page, fingerprint(new), [one]).signer == old
    handover = folder / f"handover-north-{new[:12]}.json"
    assert run("statement", "verify", page, "--key", fingerprint(new), "--handover", handover)[0] == 0
    hospital.restart()
    assert hospital.open(hospital.service.answer(hospital.seal(b"x"))).kind == "refused", (
        "it opens what is sealed to it"
    )


def test_without_the_first_key_no_image_is_read(hospital):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    renewed(hospital.folder)
    secret = held_out(hospital.folder)
    renewed(hospital.folder)
    assert held_out(hospital.folder) == secret, "also after the second renewal"
    key = hospital.folder / "patients.key"
    key.write_bytes((hospital.folder / "identity.key").read_bytes())
    with pytest.raises(InvalidValue, match="is not this site's first identity key"):
        held_out(hospital.folder)
    key.unlink()
    with pytest.raises(InvalidValue, match=r"patients\.key cannot be read"):
        held_out(hospital.folder)


@pytest.fixture
def keys(tmp_path) -> tuple[Identity, Identity]:
    return Identity.create(tmp_path / "old.key"), Identity.create(tmp_path / "new.key")


def written(path: Path, one: HandOver) -> Path:
    path.write_text(json.dumps(one.to_dict()))
    return path


@pytest.mark.parametrize("field", ["site", "old", "new", "time", "by_old", "by_new"])
def test_a_hand_over_is_valid_as_both_keys_signed_it_or_not_at_all(keys, tmp_path, field):
    one = HandOver.make("south", *keys)
    assert read_hand_over(written(tmp_path / "h.json", one)) == one
    other = HandOver.make("north", *(Identity.create(tmp_path / name) for name in ("a.key", "b.key")))
    value = "2031-01-01T00:00:00+00:00" if field == "time" else getattr(other, field)
    with pytest.raises(InvalidValue, match="a signature in it is wrong"):
        read_hand_over(written(tmp_path / "h.json", replace(one, **{field: value})))


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"site": 1}', "nonsense" * 1000])
def test_what_is_no_hand_over_is_named(tmp_path, text):
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(InvalidValue, match=r"h\.json holds no hand-over of a key"):
        read_hand_over(tmp_path / "h.json")


def test_another_hospital_compares_the_new_key_and_has_the_study_offered_again(make_hospital, keys, tmp_path):
    hospital = make_hospital(trust="secure-aggregation", approve=False)
    folder, (old, new) = hospital.folder, keys
    peers, offered = Peers(folder / "peers"), folder / "studies" / f"{hospital.agreement.digest}.json"
    peers.confirm({"south": old.public})
    values = json.loads(offered.read_text())
    offered.write_text(json.dumps({**values, "keys": {"south": old.public}}))
    path = written(tmp_path / "h.json", HandOver.make("south", old, new))
    thief = written(tmp_path / "t.json", HandOver.make("south", Identity.create(tmp_path / "t.key"), new))
    right, wrong = f"south={fingerprint(new.public)}", f"south={fingerprint(old.public)}"
    for file, said, words in (
        (thief, right, "must follow from the one that was compared"),
        (path, wrong, "is not the one in the file"),
        (path, "", "nobody here has confirmed the key of south"),
    ):
        code, text = run("site", "confirm", file, folder, "--yes", *(["--key", said] if said else []))
        assert (code, peers.known()) == (2, {"south": old.public})
        assert words in text
    code, text = run("site", "confirm", path, folder, "--yes", "--key", right)
    assert code == 0, text
    assert peers.known() == {"south": new.public}
    assert peers.former("south") == (old.public,)
    assert not offered.exists()
    offered.write_text(
        json.dumps({**values, "keys": {"south": old.public}})
    )  # as if killed before it was deleted
    code, text = run("site", "confirm", path, folder, "--yes")
    assert (code, offered.exists()) == (0, False), text
    assert "the new key of south is used already" in text
    assert peers.unconfirmed(("north", "south"), {"south": new.public}, "north") == {}
    with pytest.raises(Refused, match="site confirm"):
        peers.unconfirmed(("north", "south"), {"south": Identity.create(tmp_path / "x.key").public}, "north")


def test_a_key_is_not_replaced_under_a_study_that_masks_with_it(make_hospital, keys, tmp_path):
    hospital = make_hospital(trust="secure-aggregation")
    Peers(hospital.folder / "peers").confirm({"south": keys[0].public})
    path = written(tmp_path / "h.json", HandOver.make("south", *keys))
    said = f"south={fingerprint(keys[1].public)}"
    code, text = run("site", "confirm", path, hospital.folder, "--yes", "--key", said)
    assert code == 2
    assert "masked with the keys that it began with" in text
    record_withdrawal(hospital.service, hospital.agreement.digest)
    assert run("site", "confirm", path, hospital.folder, "--yes", "--key", said)[0] == 0


def receipt(number: int) -> Receipt:
    texts = dict.fromkeys(("study", "answer", "hash"), "ab" * 32)
    return Receipt(site="north", release="r", round=1, cost=COST, attempt=number, seq=number, **texts)


def test_the_coordinator_takes_the_new_key_and_checks_receipts_of_both(keys, tmp_path):
    home = found(tmp_path)
    old, new = keys
    one = HandOver.make("north", old, new)
    path = written(tmp_path / "h.json", one)
    command = (
        "federation",
        "confirm",
        path,
        home.folder,
        "--yes",
        "--key",
        f"north={fingerprint(new.public)}",
    )
    assert "was never contacted" in run(*command)[1]
    home.pin("north", old.public)
    (tmp_path / "run").mkdir()
    study = {"name": "toy", "digest": "ab" * 32, "run": tmp_path / "run", "planned": 3}
    with noted(home.folder, **study) as note:
        note({"north": "ready"})
        assert "study toy of north is waiting" in run(*command)[1]
    assert "finish it first (--resume)" in run(*command)[1]
    (tmp_path / "run" / "result.json").write_text("{}")
    assert home.keys() == {"north": old.public}
    stored = home.receipts()
    stored.keep(receipt(1), receipt(1).signed(old), after=None)
    code, text = run(*command)
    assert code == 0, text
    code, text = run(*command)
    assert code == 0, text
    assert "the new key of north is used already" in text
    assert (home.keys(), home.former("north")) == ({"north": new.public}, (old.public,))
    stored.keep(receipt(2), receipt(2).signed(new), after=None)
    assert "north signed 2 receipts" in run("federation", "receipts", home.folder)[1]
    stored.keep(receipt(3), receipt(3).signed(old), after=None)
    with pytest.raises(FederationError, match="is not signed by"):
        Receipts(home.folder / "receipts").verify("north", new.public, old.public)


def trusts(ca: Path, certificate: Path) -> bool:
    """Whether a node with this ca.pem accepts the SuperLink's certificate."""
    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    for authority in x509.load_pem_x509_certificates(ca.read_bytes()):
        if leaf.issuer != authority.subject:
            continue
        with suppress(InvalidSignature):
            leaf.verify_directly_issued_by(authority)
            return True
    return False


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own
def test_a_new_authority_is_given_to_every_hospital_before_it_is_in_force(tmp_path):
    home = found(tmp_path)
    folder, node = home.folder, tmp_path / "kits" / "north" / "node"
    renew = ("federation", "renew", folder)
    assert "no new authority is prepared" in run(*renew, "--authority", "--finish")[1]
    assert "one thing is renewed at a time" in run(*renew, "--finish")[1]
    old, key, secret = (node / "ca.pem"), (folder / "ca.key").read_bytes(), folder / "superlink.secret"
    assert run(*renew, "--authority")[0] == 0
    new = tmp_path / "new.pem"
    new.write_bytes((folder / "ca.pem").read_bytes())
    assert "is prepared" in run(*renew, "--authority")[1]
    assert all(trusts(ca, folder / "superlink.pem") for ca in (old, new))
    before = secret.read_bytes()
    with FlowerCarrier(home.link, home.nodes()):
        context = ssl.create_default_context(cafile=str(old))
        with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
            assert client.get(f"https://{home.link.local}/x").status_code == 403, (
                "nodes with the old file connect"
            )
        for words in (("--authority", "--finish"), ("--secret",)):
            code, text = run(*renew, *words)
            assert code == 2
            assert "is in use" in text
        assert run(*renew)[0] == 0, "a certificate may be renewed at any time"
    assert (secret.read_bytes(), (folder / "ca.key").read_bytes()) == (before, key)
    wait_until(lambda: run(*renew, "--authority", "--finish")[0] == 0, "the SuperLink to end")
    assert (trusts(old, folder / "superlink.pem"), trusts(new, folder / "superlink.pem")) == (False, True)
    assert not list(folder.glob("ca.next.*"))
    assert run(*renew, "--secret")[0] == 0
    assert secret.read_bytes() != before
    with FlowerCarrier(Federation.load(folder).link, home.nodes()):
        context = ssl.create_default_context(cafile=str(new))
        with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
            assert client.get(f"https://{home.link.local}/x").status_code == 403


def test_a_node_gets_a_new_key_that_the_coordinator_has_to_be_given(tmp_path):
    home = found(tmp_path)
    node = tmp_path / "kits" / "north" / "node"
    before = (node / "node.pub").read_bytes()
    code, text = run("site", "renew", node)
    assert code == 0, text
    assert "as nodes/NAME.pub of its folder" in text
    assert (node / "node.pub").read_bytes() != before == (home.folder / "nodes" / "north.pub").read_bytes()


def test_what_has_no_command_over_nvflare_is_refused(tmp_path):
    """Its nodes have certificates of the authority: another authority would shut them out."""
    make_kits(
        tmp_path / "kits", name="town", hospitals=["north"], hosts=["127.0.0.1"], port=9443, engine="nvflare"
    )
    home, node = tmp_path / "kits" / "coordinator", tmp_path / "kits" / "north" / "node"
    before = {path: path.read_bytes() for path in (*home.glob("*"), *node.glob("*")) if path.is_file()}
    for words in ((home, "--authority"), (home, "--authority", "--finish"), (home, "--secret")):
        code, text = run("federation", "renew", *words)
        assert code == 2
        assert "the engine of this federation is nvflare" in text
    code, text = run("site", "renew", node)
    assert code == 2
    assert "holds a certificate, node.pem" in text
    assert {path: path.read_bytes() for path in before} == before
    assert expiring(node) == []
    assert run("federation", "renew", home)[0] == 0


def test_ages_are_metrics_and_an_end_that_is_near_is_something_to_do(tmp_path, monkeypatch):
    home = found(tmp_path)
    metrics = tmp_path / "m.prom"
    assert run("federation", "certificates", home.folder, "--prometheus", metrics)[0] == 0
    values = dict(
        line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#")
    )
    assert float(values['fedveil_certificate_days_left{file="superlink.pem"}']) == 824
    assert 0 <= float(values['fedveil_key_days{file="superlink.secret"}']) < 1
    assert run("federation", "status", home.folder)[0] == 0
    monkeypatch.setattr("fedveil.deploy.provisioning.certificates._SERVER_DAYS", 29)
    renewal.renew_certificate(home.folder)
    code, text = run("federation", "status", home.folder)
    assert code == 1
    assert "superlink.pem expires in 28 days: run `fedveil federation renew`" in text


def test_a_ledger_that_cannot_be_opened_is_not_taken_for_a_running_service(hospital):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    (hospital.folder / "ledger.jsonl").write_text("nonsense\n")
    with pytest.raises(LedgerError) as caught:
        renewed(hospital.folder)
    assert "serve" not in caught.value.remedy
