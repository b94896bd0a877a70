"""A desk in this process, over a hospital's folder with studies on offer, and a browser to look at it."""

import http.server
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from tests.deploy.hospital import SITES, make_offer, record_approval, set_up

from fedveil.deploy.desk.guard import Session
from fedveil.deploy.desk.pages import make_app
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(__file__).parent / "assets" / "axe.min.js"
REBOUND = "rebound.example"
"""A name that the browser resolves to this machine."""
HOSTILE_TEXT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@dataclass
class Desk:
    """A running desk.

    Attributes:
        folder: the site's.
        session: its secrets, which the tests know and a hostile page does not.
        plain, masked, running: digests of studies: two on offer, the second with secure aggregation, one approved.
        keys: the other hospitals' fingerprints.
    """

    folder: Path
    session: Session
    plain: str
    masked: str
    running: str
    keys: dict[str, str]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.session.port}"

    def url(self, path: str = "") -> str:
        return f"{self.origin}{self.session.home}{path}"

    @property
    def studies(self) -> Studies:
        return Studies(self.folder / "studies")

    def decisions(self) -> list[tuple[str, str]]:
        return [(one.act, one.subject) for one in self.studies.decisions.all()]


def hospital(base: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A folder with three offered studies; their digests by kind, and the other hospitals' fingerprints."""
    folder = set_up(base, Identity.create(base / "coordinator.key"))
    keys = {name: Identity.create(base / f"{name}.key").public for name in SITES[1:]}
    studies, offer = Studies(folder / "studies"), make_offer(base)
    described = offer.study.with_changes({"study": {"description": HOSTILE_TEXT}})
    masked = make_offer(base, trust="secure-aggregation", min_sites=3, name="masked")
    offers = {
        "plain": replace(offer, study=described),
        "masked": replace(masked, keys=keys),
        "running": make_offer(base, name="running"),
    }
    digests = {kind: studies.add(one) for kind, one in offers.items()}
    record_approval(studies, digests["running"])
    return folder, digests, {name: fingerprint(key) for name, key in keys.items()}


@contextmanager
def open_desk(base: Path) -> Iterator[Desk]:
    folder, digests, keys = hospital(base)
    listener = socket.create_server(("127.0.0.1", 0))
    session = Session(port=listener.getsockname()[1])
    app = make_app(SiteConfig.load(folder), session)
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Desk(folder, session, **digests, keys=keys)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def browser(profile: Path) -> Iterator[object]:
    """A Chromium without a window, for which `REBOUND` is a name of this machine."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
    ):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def serving(page: str) -> Iterator[int]:
    """A web server of somebody else on this machine, on a port of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
