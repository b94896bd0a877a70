"""What people get wrong when they set a federation up: real programs say in one sentence what to do."""

import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from tests.deploy.hospital import edit
from tests.deploy.town import Town, wait_until
from typer.testing import CliRunner

from fedveil.cli import engines
from fedveil.cli.site import site
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower.carrier import FlowerCarrier
from fedveil.deploy.provisioning.certificates import Authority
from fedveil.deploy.site.service import open_service
from fedveil.errors import FedveilError
from fedveil.privacy import Ledger


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """A federation whose programs are all still to be started."""
    town = Town(tmp_path)
    try:
        yield town
    finally:
        town.close()


def no_line(town: Town, *words: str) -> None:
    """The coordinator's own end, with a real SuperLink or what is in its place, is refused with these words."""

    def reach() -> None:
        federation = Federation.load(town.coordinator)
        with FlowerCarrier(federation.link, federation.nodes()):
            pass

    with pytest.raises(FedveilError) as refused:
        reach()
    assert all(word in str(refused.value) for word in words), str(refused.value)


@contextmanager
def listening(port: int, certificate: tuple[Path, Path] | None = None) -> Iterator[None]:
    """A web server on the port: something else than a SuperLink."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_another_program_on_the_port(town):
    with listening(town.port):
        no_line(
            town,
            "is not this federation's SuperLink",
            "stop the program that uses the port",
            "federation.toml",
        )


def test_another_federations_superlink_on_the_port(town):
    write_certificate(town, Authority.create("other"))
    certificate = town.folder / "server.pem", town.folder / "server.key"
    with listening(town.port, certificate):
        no_line(town, "is not this federation's SuperLink", "signed by ca.pem")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("superlink.key", "put the start-up kit's file there"),
        ("identity.key", "put the start-up kit's file there"),
        ("superlink.pem", "use the folder that `fedveil federation init` wrote"),
        ("nodes/west.pub", "put west's public key there"),
    ],
)
def test_a_missing_key_of_the_coordinator(town, name, remedy):
    (town.coordinator / name).unlink()
    no_line(town, name, remedy)


def test_a_superlink_that_cannot_start(town):
    (town.coordinator / "superlink.pem").write_text("no certificate\n")
    no_line(town, "the SuperLink did not start", "superlink.log")


def test_hospitals_that_do_not_come(town):
    """The coordinator says so in one sentence, and leaves no run directory behind."""
    edit(town.coordinator / "federation.toml", wait_for_approval=1)
    town.coordinate("toy")
    town.stopped("north not connected", "a round needs 2", "repeat the command")
    assert not (town.folder / "toy").exists()


def test_a_hospital_without_a_common_protocol(town):
    newer = "from fedveil.deploy import protocol; protocol.__version__, protocol.PROTOCOLS = '9.9', (2, 3); "
    town.serve("north", newer)
    town.connect("north")
    edit(town.coordinator / "federation.toml", wait_for_approval=120)
    town.enrol(["north"])
    town.coordinate("toy", min_sites=1)
    town.stopped("north on fedveil 9.9; here runs fedveil", "upgrade the older one")
    assert "this site 9.9 with protocols 2 to 3: upgrade the older one" in town.log("north.service")


def node_says(town: Town, *words: str, ends: bool) -> None:
    """A node says so in one line; it gives up only where trying again cannot help."""
    town.connect("north")
    wait_until(lambda: all(word in town.log("north.node") for word in words), f"{words} in the node's log")
    if ends:
        assert town.processes["north.node"].wait(120) == 1
    else:
        assert town.processes["north.node"].poll() is None
    assert "Traceback" not in town.log("north.node")


def test_an_address_where_nothing_listens(town):
    node_says(town, "no connection to", "check the address in node.toml", "firewall", ends=False)


def test_an_address_that_does_not_exist(town):
    edit(town.kits / "north" / "node" / "node.toml", superlink='"nowhere.invalid:9443"')
    node_says(town, "no connection to nowhere.invalid:9443", "check the address in node.toml", ends=False)


def test_an_address_where_something_else_listens(town):
    with listening(town.port):
        node_says(
            town, "something other than a SuperLink answers", "check the address in node.toml", ends=False
        )
        town.close()


@pytest.mark.parametrize("name", ["node.key", "ca.pem"])
def test_a_missing_key_of_a_node(town, name):
    (town.kits / "north" / "node" / name).unlink()
    node_says(town, name, "copy them from the kit", ends=True)


def test_a_wrong_authority(town):
    authority = write_certificate(town, Authority.create("other"))
    assert authority != (town.coordinator / "ca.pem").read_bytes()
    with listening(town.port, (town.folder / "server.pem", town.folder / "server.key")):
        node_says(
            town, "is not trusted", "must be signed by the kit's ca.pem", "check the address", ends=True
        )


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (1, 2, ["is not valid yet", "synchronise the clock by NTP"]),
        (-2, -1, ["has expired", "synchronise the clock by NTP", "fedveil federation renew"]),
    ],
)
def test_a_clock_that_is_wrong(town, begins, ends, words):
    home = town.coordinator
    authority = Authority.load((home / "ca.key").read_bytes(), (home / "ca.pem").read_bytes())
    write_certificate(town, authority, begins, ends)
    with listening(town.port, (town.folder / "server.pem", town.folder / "server.key")):
        node_says(town, *words, ends=True)


def write_certificate(town: Town, authority: Authority, begins: int = -1, ends: int = 1) -> bytes:
    """A server's certificate that holds between these days from now; the authority's own is returned."""
    key, plain = authority.certify(["127.0.0.1"])
    certificate = x509.load_pem_x509_certificate(plain)
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=certificate.issuer,
        subject_name=certificate.subject,
        public_key=certificate.public_key(),
        serial_number=certificate.serial_number,
        not_valid_before=now + datetime.timedelta(days=begins),
        not_valid_after=now + datetime.timedelta(days=ends),
        extensions=list(certificate.extensions),
    )
    signer = load_pem_private_key(authority.key, None)
    signed = builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
    (town.folder / "server.key").write_bytes(key)
    (town.folder / "server.pem").write_bytes(signed)
    return authority.certificate


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("identity.key", "put the start-up kit's file there, or run the init command again"),
        ("ledger.jsonl", "restore the ledger from a backup"),
    ],
)
def test_a_site_without_its_files(town, name, remedy):
    site = town.site("north")
    (site / name).unlink()
    with pytest.raises(FedveilError) as refused, Ledger(site / "ledger.jsonl") as ledger:
        open_service(site, ledger)
    assert name in str(refused.value)
    assert remedy in str(refused.value)


def test_a_site_whose_port_is_taken(town):
    site = town.site("north")
    with socket.create_server(("127.0.0.1", 0)) as other:
        edit(site / "site.toml", listen=f'"tcp:127.0.0.1:{other.getsockname()[1]}"')
        (site / "token").write_text("a" * 64)
        town.serve("north")
        assert town.processes["north.service"].wait(100) == 2
    last = town.log("north.service").splitlines()[-1]
    assert "cannot listen" in last
    assert "the address must be free" in last
    assert "change site.listen in site.toml" in last


@pytest.mark.parametrize("found", [None, "1.30.0"])
@pytest.mark.parametrize(("engine", "name"), [("flower", "Flower"), ("nvflare", "NVFlare")])
def test_without_the_right_engine(monkeypatch, tmp_path, found, engine, name):
    """A site can be served without Flower or NVFlare; the programs that speak it say what to install."""
    (tmp_path / "node.toml").write_text(f'engine = "{engine}"\n')

    def version(_: str) -> str:
        if found is None:
            raise PackageNotFoundError
        return found

    monkeypatch.setattr(engines, "version", version)
    result = CliRunner().invoke(site, ["connect", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{name} is {found or 'not installed'}" in result.output
    assert f'pip install "fedveil[{engine}]"' in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("engine = 3", "engine is 3"), ('engine = "other"', "neither")],
)
def test_a_node_file_that_cannot_be_used(tmp_path, text, words):
    if text is not None:
        (tmp_path / "node.toml").write_text(text)
    result = CliRunner().invoke(site, ["connect", str(tmp_path)])
    assert result.exit_code == 2
    assert words in result.output
    assert "use the kit's node.toml" in result.output
