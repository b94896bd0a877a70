"""Identities, certificates, kits and their settings."""

import configparser
import shutil
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from tests.deploy.hospital import edit

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.identity import Identity, check_private
from fedveil.deploy.provisioning.kits import init_site, make_kits
from fedveil.deploy.provisioning.renewal import renew_certificate
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers
from fedveil.errors import InvalidValue, Refused
from fedveil.privacy import verify_ledger

HOSPITALS = ["north", "south", "west"]


@pytest.fixture
def kits(tmp_path):
    folder = tmp_path / "lungs"
    public = make_kits(
        folder, name="lungs", hospitals=HOSPITALS, hosts=["fl.example.org", "10.0.0.7"], port=9443
    )
    return folder, public


def test_a_kit_holds_what_a_hospital_needs_and_no_more(kits):
    folder, public = kits
    for name in HOSPITALS:
        config = SiteConfig.load(folder / name / "site")
        assert (config.site.name, config.site.coordinator) == (name, public)
        assert (
            tomllib.loads((folder / name / "node" / "node.toml").read_text())["superlink"]
            == "fl.example.org:9443"
        )
        load_ssh_private_key((folder / name / "node" / "node.key").read_bytes(), None)
        assert {path.name for path in (folder / name).rglob("*") if path.is_file()} == {
            "README.md",
            "site.toml",
            "ca.pem",
            "node.key",
            "node.pub",
            "node.toml",
            "fedveil-site.service",
            "fedveil-node.service",
        }
        site, node = (
            (folder / name / "systemd" / f"fedveil-{part}.service").read_text() for part in ("site", "node")
        )
        assert "User=fedveil-site" in site
        assert "User=fedveil-node" in node


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_the_units(kits):
    """Nothing in the units is unknown to systemd, and they shut out what a service need not reach."""
    folder = kits[0] / "north" / "systemd"
    program = shutil.which("true")
    study = (kits[0] / "coordinator" / "fedveil-study@.service").read_text()
    (folder / "fedveil-study@lungs.service").write_text(study)
    superlink = (kits[0] / "coordinator" / "fedveil-superlink.service").read_text()
    (folder / "fedveil-superlink.service").write_text(superlink)
    units = (
        ("fedveil-site.service", 35),
        ("fedveil-node.service", 40),
        ("fedveil-study@lungs.service", 45),
        ("fedveil-superlink.service", 45),
    )
    for name, most in units:
        unit = folder / name
        unit.write_text(unit.read_text().replace("/opt/fedveil/bin/fedveil", program))
        for command in (
            ["systemd-analyze", "verify", f"./{name}"],
            ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", f"./{name}"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_study_as_a_service_resumes_what_has_begun(kits, tmp_path):
    """The unit's own command line, with a program that prints its arguments."""
    text = (kits[0] / "coordinator" / "fedveil-study@.service").read_text()
    _, _, rest = text.partition("ExecStart=")
    command = rest[: rest.index("\nRestart")].replace("\\\n", " ").replace("$$", "$").replace("%i", "lungs")
    command = command.replace("/opt/fedveil/bin/fedveil", "echo").replace("/var/lib/fedveil", str(tmp_path))
    said = []
    for _ in range(2):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        said.append(done.stdout.split())
        (tmp_path / "runs" / "lungs").mkdir(parents=True, exist_ok=True)
    assert said[0] == ["coordinate", "/etc/fedveil/studies/lungs.toml", *OPTIONS]
    assert said[1] == [*said[0], "--resume"]


OPTIONS = ["--federation", "/etc/fedveil/coordinator", "--out", "runs/lungs"]


def unit(folder: Path, part: str) -> dict[str, str]:
    """The [Service] table of a unit of the kit."""
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str
    parser.read(folder / "north" / "systemd" / f"fedveil-{part}.service")
    return dict(parser["Service"])


def test_the_units_keep_the_node_away_from_the_images(kits):
    site, node = unit(kits[0], "site"), unit(kits[0], "node")
    assert site["User"] != node["User"]
    assert site["ExecStart"].endswith("fedveil site serve /etc/fedveil/site")
    assert node["ExecStart"].endswith("fedveil site connect /etc/fedveil/node")
    assert (site["RestrictAddressFamilies"], site["PrivateNetwork"]) == ("AF_UNIX", "yes")
    assert site["ReadWritePaths"] == node["InaccessiblePaths"] == "/etc/fedveil/site"
    assert node["ReadWritePaths"] == "/etc/fedveil/node"
    for settings in (site, node):
        assert (settings["UMask"], settings["ProtectSystem"]) == ("0077", "strict")
        assert (settings["NoNewPrivileges"], settings["CapabilityBoundingSet"]) == ("yes", "")
        assert settings["SupplementaryGroups"] == "fedveil-line"
    guide = (kits[0] / "north" / "README.md").read_text()
    for settings in (site, node):
        assert f"useradd --system --groups fedveil-line {settings['User']}" in guide


def test_secrets_are_for_their_owner_only(kits):
    folder, _ = kits
    secrets = [*folder.rglob("*.key"), *folder.rglob("*.secret")]
    assert len(secrets) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert {stat.S_IMODE((folder / name / "site").stat().st_mode) for name in HOSPITALS} == {0o700}


def test_the_certificate_names_every_address(kits):
    folder, _ = kits
    home = folder / "coordinator"
    certificate = x509.load_pem_x509_certificate((home / "superlink.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "127.0.0.1", "::1"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "superlink.pem", home / "superlink.key")
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((home / "ca.pem").read_bytes()))


def test_a_renewed_certificate_is_trusted_as_the_old_one_was(kits):
    home = kits[0] / "coordinator"
    before = x509.load_pem_x509_certificate((home / "superlink.pem").read_bytes())
    assert renew_certificate(home)[:2] == ["fl.example.org", "10.0.0.7"]
    after = x509.load_pem_x509_certificate((home / "superlink.pem").read_bytes())
    assert after.public_key() != before.public_key()
    assert after.not_valid_after_utc >= before.not_valid_after_utc
    assert names(after) == names(before)
    after.verify_directly_issued_by(x509.load_pem_x509_certificate((home / "ca.pem").read_bytes()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "superlink.pem", home / "superlink.key")
    assert stat.S_IMODE((home / "superlink.key").stat().st_mode) == 0o600
    (home / "ca.key").unlink()
    with pytest.raises(InvalidValue, match=r"ca\.key"):
        renew_certificate(home)


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sorted(str(name.value) for name in found)


def test_the_coordinators_folder_is_read_back(kits):
    federation = Federation.load(kits[0] / "coordinator")
    assert federation.table.sites == tuple(HOSPITALS)
    assert set(federation.nodes()) == set(HOSPITALS)
    assert federation.keys() == {}
    key = Identity.create(kits[0] / "k.key").public
    federation.pin("north", key)
    assert federation.keys() == {"north": key}
    (kits[0] / "coordinator" / "sites" / "north.pub").write_text("nonsense")
    with pytest.raises(InvalidValue, match="not a public key"):
        federation.keys()


@pytest.mark.parametrize("names", [[], ["a", "a"], ["../a"], ["coordinator"], [".hidden"], [""]])
def test_bad_names_are_refused_before_anything_is_written(tmp_path, names):
    with pytest.raises(InvalidValue):
        make_kits(tmp_path / "new", name="x", hospitals=names, hosts=["h"], port=1)
    assert not (tmp_path / "new").exists()


def test_kits_are_never_overwritten(kits):
    with pytest.raises(InvalidValue, match="not empty"):
        make_kits(kits[0], name="x", hospitals=HOSPITALS, hosts=["h"], port=1)


def test_site_init_opens_the_ledger_that_the_settings_name(kits):
    site = kits[0] / "north" / "site"
    edit(site / "site.toml", epsilon=3.5)
    identity = init_site(site)
    assert verify_ledger(site / "ledger.jsonl").budget.epsilon == 3.5
    assert Identity.load(site / "identity.key").public == identity.public
    with pytest.raises(InvalidValue, match="never replaced"):
        init_site(site)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("epsilon", "-1", "budget.epsilon"),
        ("delta", '"small"', "budget.delta"),
        ("listen", '"tcp:0.0.0.0:80"', "site.listen"),
        ("coordinator", '"abc"', "public key"),
        ("trust", '["everyone"]', "policy.trust"),
        ("surprise", "1", "site.toml"),
    ],
)
def test_wrong_settings_are_named(kits, key, value, named):
    path = kits[0] / "north" / "site" / "site.toml"
    if key == "surprise":
        path.write_text(path.read_text() + "\n[surprise]\nkey = 1\n")
    else:
        edit(path, **{key: value})
    with pytest.raises(InvalidValue, match=named):
        SiteConfig.load(path.parent)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    Identity.create(tmp_path / "k.key")
    (tmp_path / "k.key").chmod(0o640)
    with pytest.raises(InvalidValue, match="chmod 600"):
        Identity.load(tmp_path / "k.key")
    with pytest.raises(InvalidValue, match="cannot be read"):
        check_private(tmp_path / "missing.key")


def test_a_key_is_never_replaced(tmp_path):
    Identity.create(tmp_path / "k.key")
    with pytest.raises(InvalidValue, match="never replaced"):
        Identity.create(tmp_path / "k.key")


def test_a_hospitals_key_is_confirmed_once_and_then_held_to(tmp_path):
    peers = Peers(tmp_path / "peers")
    keys = {name: Identity.create(tmp_path / f"{name}.key").public for name in HOSPITALS}
    assert peers.unconfirmed(HOSPITALS, keys, "north") == {"south": keys["south"], "west": keys["west"]}
    peers.confirm({"south": keys["south"], "west": keys["west"]})
    assert peers.unconfirmed(HOSPITALS, keys, "north") == {}
    with pytest.raises(Refused, match="was confirmed here"):
        peers.unconfirmed(HOSPITALS, {**keys, "west": keys["north"]}, "north")
    with pytest.raises(Refused, match="the key of east is not known"):
        peers.unconfirmed([*HOSPITALS, "east"], keys, "north")
