"""The desk: what it shows, whom it answers, and that its decisions are those of the commands."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.deploy.desk import AXE, CHROMIUM, DRIVER, REBOUND, Desk, browser, hospital, open_desk, serving

from fedveil.deploy.desk.guard import COOKIE
from fedveil.deploy.site.keys import Peers

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk")) as made:
        yield made


@pytest.fixture
def client(desk: Desk) -> Iterator[httpx.Client]:
    """A program that knows every secret of the session."""
    cookies = {COOKIE: desk.session.cookie}
    with httpx.Client(cookies=cookies, trust_env=False, timeout=60) as made:
        yield made


def form(desk: Desk, **said: str) -> dict[str, str]:
    return {"by": "A. Lind", "role": "privacy officer", "reason": "no", "token": desk.session.token, **said}


def test_the_first_page_shows_budget_studies_and_decisions(desk, client):
    page = client.get(desk.url()).text
    for text in ("epsilon 20 at delta 0.001 per patient", "masked", "running", "approved by Dr. A. Lind"):
        assert text in page


def test_a_study_is_shown_with_all_that_an_approval_needs(desk, client):
    page = client.get(desk.url(f"studies/{desk.plain}")).text
    for label in (
        "description",
        "purpose",
        "legal basis",
        "coordinator",
        "classes",
        "model",
        "method",
        "encoder",
    ):
        assert f"<dt>{label}</dt>" in page
    for label in ("recipients", "cost", "risk", "alone", "budget"):
        assert f"<dt>{label}</dt>" in page
    assert "What differs from" in page
    assert "study.description" in page
    assert "<script" not in page, "what a coordinator wrote is text"
    assert "&lt;script&gt;" in page


def test_who_does_not_read_out_the_right_fingerprint_confirms_nothing(desk, client):
    """The page never shows the digits that have to be typed: they come by telephone."""
    url = desk.url(f"studies/{desk.masked}")
    page = client.get(url).text
    assert "all 32 digits, as they read it to you by telephone" in page
    assert not any(read in page for read in desk.keys.values())
    origin = {"origin": desk.origin}
    for read in ({}, {"key:south": desk.keys["south"]}, {f"key:{n}": desk.keys["west"] for n in desk.keys}):
        answer = client.post(f"{url}/approve", data=form(desk, **read), headers=origin)
        assert answer.status_code == 409
        assert 'role="alert"' in answer.text
    assert not desk.studies.is_approved(desk.masked)
    assert not Peers(desk.folder / "peers").known()


def test_wrong_digits_are_refused_without_the_right_ones(desk, client):
    digits = desk.keys["south"]
    wrong = {"key:south": digits[:-1] + ("0" if digits[-1] != "0" else "1"), "key:west": desk.keys["west"]}
    url, origin = desk.url(f"studies/{desk.masked}/approve"), {"origin": desk.origin}
    answer = client.post(url, data=form(desk, **wrong), headers=origin)
    assert answer.status_code == 409
    assert "the fingerprint of south is not the one that the coordinator gives" in answer.text
    assert digits not in answer.text
    assert not desk.studies.is_approved(desk.masked)


@pytest.mark.parametrize("act", ["approve", "decline", "withdraw", "else"])
def test_nothing_is_decided_about_a_study_that_was_not_offered(desk, client, act):
    before = desk.decisions()
    for digest in ("f" * 64, "x"):
        url = desk.url(f"studies/{digest}/{act}")
        answer = client.post(url, data=form(desk), headers={"origin": desk.origin})
        assert answer.status_code == 409
        assert 'role="alert"' in answer.text
    assert desk.decisions() == before


REFUSED = {
    "no cookie": ({"cookie": ""}, 403),
    "another cookie": ({"cookie": f"{COOKIE}=x"}, 403),
    "another host": ({"host": f"{REBOUND}:1"}, 421),
    "a name of this machine": ({"host": "localhost:1"}, 421),
    "another origin": ({"origin": "http://evil.example"}, 403),
    "no origin": ({"origin": ""}, 403),
    "a null origin": ({"origin": "null"}, 403),
    "another site": ({"sec-fetch-site": "cross-site"}, 403),
    "another port of this host": ({"sec-fetch-site": "same-site"}, 403),
    "no form": ({"content-type": "text/plain"}, 415),
    "a long form": ({"content-length": "70000"}, 413),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_request_with_one_thing_wrong_is_refused(desk, client, kind):
    changes, status = REFUSED[kind]
    before = desk.decisions()
    headers = {"origin": desk.origin, "sec-fetch-site": "same-origin"} | changes
    if changes.get("cookie") is not None:
        client.cookies.clear()
    data = form(desk) if kind != "a long form" else form(desk, reason="x" * 70000)
    headers.pop("content-length", None)
    if kind == "no form":
        answer = client.post(desk.url(f"studies/{desk.plain}/decline"), content=b"x", headers=headers)
    else:
        answer = client.post(desk.url(f"studies/{desk.plain}/decline"), data=data, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert desk.decisions() == before


def test_a_form_needs_the_sessions_token_and_a_path_its_word(desk, client):
    before, origin = desk.decisions(), {"origin": desk.origin}
    url = f"studies/{desk.plain}/decline"
    assert client.post(desk.url(url), data=form(desk, token="x"), headers=origin).status_code == 403
    assert client.post(f"{desk.origin}/{url}", data=form(desk), headers=origin).status_code == 403
    assert client.get(f"{desk.origin}/").status_code == 403
    assert client.get(f"{desk.origin}/open?key=x").status_code == 403
    assert client.request("PUT", desk.url()).status_code == 405
    for path in ("studies/..%2f..%2fidentity", f"studies/{'0' * 64}", "studies/x"):
        assert client.get(desk.url(path)).status_code in (404, 409)
    assert desk.decisions() == before


def test_a_decision_without_a_name_or_a_reason_is_refused_and_what_was_typed_stays(desk, client):
    before = desk.decisions()
    for missing in ("by", "role", "reason"):
        said = form(desk, **{missing: " "})
        answer = client.post(
            desk.url(f"studies/{desk.plain}/decline"), data=said, headers={"origin": desk.origin}
        )
        assert answer.status_code == 409
        assert f"{missing} of the decision" in answer.text
    assert desk.decisions() == before


def test_the_command_opens_a_desk_whose_link_works_once(tmp_path):
    folder, _, _ = hospital(tmp_path)
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "from fedveil.cli import main; main()",
        "site",
        "desk",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            link = process.stdout.readline().strip()
            with httpx.Client(trust_env=False, timeout=60) as client:
                first = client.get(link)
                assert first.status_code == 303
                assert first.headers["set-cookie"].startswith(f"{COOKIE}=")
                assert "HttpOnly" in first.headers["set-cookie"]
                assert "SameSite=strict" in first.headers["set-cookie"]
                assert "Budget" in client.get(link.partition("/open")[0] + first.headers["location"]).text
                assert client.get(link).status_code == 403
        finally:
            process.terminate()
            _, said = process.communicate(timeout=120)
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def chromium(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A browser that has opened the one-time link."""
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.get(desk.session.link)
        assert driver.current_url == desk.url()
        yield driver


def violations(driver: object) -> list[str]:
    """What axe-core finds against WCAG 2.2 A and AA and good practice, on the page that is shown."""
    driver.execute_script(AXE.read_text())
    found = driver.execute_async_script("axe.run(document).then(arguments[arguments.length - 1])")
    assert found["passes"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]


@needs_browser
def test_no_page_has_a_barrier(desk, chromium):
    for digest in ("", desk.plain, desk.masked, desk.running, "0" * 64):
        chromium.get(desk.url(f"studies/{digest}" if digest else ""))
        assert violations(chromium) == []
        assert chromium.title != "taken"


HOSTILE = """<!doctype html><title>waiting</title><body><script>
const where = "%(target)s", body = new URLSearchParams(%(form)s);
const tries = [];
for (const mode of ["no-cors", "cors", "same-origin"])
  for (const act of ["approve", "decline", "withdraw"])
    for (const digest of %(digests)s)
      tries.push(fetch(`${where}studies/${digest}/${act}`, {method: "POST", mode, credentials: "include", body})
        .then(r => r.type === "opaque" ? "" : r.text(), () => ""));
tries.push(fetch(where, {credentials: "include"}).then(r => r.text(), () => ""));
for (const digest of %(digests)s) {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = digest; document.body.append(frame);
  form.method = "post"; form.target = digest; form.action = `${where}studies/${digest}/decline`;
  for (const [name, value] of body) {
    const input = document.createElement("input"); input.name = name; input.value = value; form.append(input);
  }
  document.body.append(form); form.submit();
}
const image = new Image(); image.src = where; document.body.append(image);
const read = document.createElement("iframe"); read.src = where; document.body.append(read);
Promise.all(tries).then(texts => setTimeout(() => {
  let seen = texts.join("");
  for (const frame of document.querySelectorAll("iframe"))
    try { seen += frame.contentDocument.body.innerText; } catch (error) { }
  document.title = seen.includes("epsilon") ? "read it" : "read nothing";
}, 1500));
</script>"""


@needs_browser
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", REBOUND])
def test_a_hostile_page_has_no_effect_and_reads_nothing(desk, chromium, host):
    """It even knows the path and the token, in the browser that holds the session."""
    chromium.get(desk.url())
    before = desk.decisions()
    target = desk.url() if host != REBOUND else desk.url().replace("127.0.0.1", REBOUND)
    words = {"target": target, "form": form(desk), "digests": [desk.plain, desk.masked, desk.running]}
    with serving(HOSTILE % words) as port:
        chromium.get(f"http://{host}:{port}/")
        until = time.monotonic() + 180
        while chromium.title == "waiting":
            assert time.monotonic() < until
            time.sleep(0.1)
    assert chromium.title == "read nothing"
    assert desk.decisions() == before
    if host == REBOUND:
        chromium.get(target)
        assert "not the desk's address" in chromium.page_source


@needs_browser
def test_a_person_decides_by_keyboard_alone(desk, chromium):
    from selenium.webdriver.common.keys import Keys

    def send(first: str, *words: str) -> None:
        """Type into a form from its first field on, going on with the tabulator, and submit with the last field."""
        chromium.find_element("id", first).click()
        for word in words:
            chromium.switch_to.active_element.send_keys(word + Keys.TAB)
        chromium.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB + Keys.NULL)
        chromium.switch_to.active_element.send_keys(Keys.ENTER)

    chromium.get(desk.url(f"studies/{desk.masked}"))
    send(
        "key-south",
        desk.keys["south"],
        desk.keys["west"].upper().replace("-", " "),
        "B. Holm",
        "data protection",
        "",
    )
    wait(lambda: desk.studies.is_approved(desk.masked))
    assert desk.studies.decisions.last(desk.masked).by == "B. Holm"
    assert set(Peers(desk.folder / "peers").known()) == {"south", "west"}
    wait(lambda: "Withdraw the approval" in chromium.page_source)
    assert violations(chromium) == []
    send("withdraw-by", "B. Holm", "data protection", "a new law")
    wait(lambda: desk.studies.read(desk.masked).state == "withdrawn")
    chromium.get(desk.url(f"studies/{desk.plain}"))
    send("decline-by", "B. Holm", "data protection", "no legal basis")
    wait(lambda: desk.studies.is_declined(desk.plain))
    assert desk.studies.decisions.last(desk.plain).reason == "no legal basis"


def wait(happened) -> None:
    until = time.monotonic() + 180
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)
