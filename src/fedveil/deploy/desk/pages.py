"""The desk's pages, and the decisions that their forms take through the same functions as the commands."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedveil.deploy.approval import approve, check_approval, decline, match_keys, withdraw
from fedveil.deploy.desk.guard import COOKIE, Guard, Session
from fedveil.deploy.desk.views import overview, study_page
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.review import review
from fedveil.errors import FedveilError, InvalidValue, Refused

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["make_app"]

Form = Mapping[str, str]

_templates = Environment(
    loader=PackageLoader("fedveil.deploy.desk"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Pages:
    """The pages of one site.

    Args:
        config: the hospital's settings.
        session: the secrets of this run of the desk.
    """

    def __init__(self, config: SiteConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._own = fingerprint(Identity.load(config.folder / "identity.key").public)

    def home(self) -> str:
        """The budget, the studies, finished models and refusals."""
        return self._page("home.html.j2", view=overview(self._config))

    def study(self, digest: str, said: Form | None = None, error: str = "") -> str:
        """A study with everything that an approval needs to know, and the forms that decide about it."""
        view = study_page(self._config, digest)
        return self._page("study.html.j2", view=view, said=said or {}, error=error)

    def decide(self, digest: str, act: str, form: Form) -> None:
        """Approve, decline or withdraw, as the form says.

        Raises:
            FedveilError: the decision is refused; nothing is recorded.
        """
        if act not in ("approve", "decline", "withdraw"):
            raise InvalidValue(
                f"{act!r} is no decision", "a study is approved, declined or withdrawn", "go back"
            )
        who = {name: form.get(name, "").strip() for name in ("by", "role", "reason")}
        if act == "decline":
            decline(self._config, digest, **who, told="quiet" not in form)
        elif act == "withdraw":
            withdraw(self._config, digest, **who)
        else:
            self._approve(digest, form, who)

    def _approve(self, digest: str, form: Form, who: dict[str, str]) -> None:
        found = review(self._config, Studies(self._config.folder / "studies").read(digest))
        checked = check_approval(self._config, found, leave_out="leave_out" in form)
        read = [f"{site}={form[f'key:{site}']}" for site in checked.new if form.get(f"key:{site}")]
        if missing := match_keys(checked.new, read):
            raise Refused(
                f"nobody here has confirmed the key of {', '.join(missing)}",
                "a coordinator that may choose the hospitals' keys can read their sums",
                "have each hospital read its fingerprint by telephone, and type what they read",
            )
        approve(self._config, checked, **who)

    def style(self) -> str:
        """The style sheet."""
        return (Path(__file__).parent / "templates" / "desk.css").read_text(encoding="utf-8")

    def refusal(self, error: str) -> str:
        """A page that says why something cannot be shown."""
        return self._page("refused.html.j2", error=error)

    def _page(self, name: str, **values: Any) -> str:
        common = {"site": self._config.site.name, "own": self._own}
        common |= {"home": self._session.home, "token": self._session.token}
        return _templates.get_template(name).render(**common, **values)


def make_app(config: SiteConfig, session: Session) -> "Starlette":
    """The desk of a site as an ASGI application.

    Raises:
        InvalidValue: the extra ``desk`` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.routing import Route
    except ImportError:
        raise InvalidValue(
            "Starlette is not installed", "the desk is a web page", 'pip install "fedveil[desk]"'
        ) from None
    answers, here = Answers(Pages(config, session), session), session.home.rstrip("/")
    return Starlette(
        routes=[
            Route("/open", answers.opened, methods=["GET"]),
            Route(f"{here}/", answers.home, methods=["GET"]),
            Route(f"{here}/desk.css", answers.style, methods=["GET"]),
            Route(f"{here}/studies/{{digest}}", answers.study, methods=["GET"]),
            Route(f"{here}/studies/{{digest}}/{{act}}", answers.decided, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, session=session)],
    )


class Answers:
    """Requests to pages, and back.

    Args:
        pages: of the site.
        session: the secrets of this run of the desk.
    """

    def __init__(self, pages: Pages, session: Session) -> None:
        self._pages, self._session = pages, session

    async def opened(self, request: "Request") -> "Response":
        """The one-time link: the session's cookie, and on to the first page."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        if not self._session.unlock(request.query_params.get("key", "")):
            return PlainTextResponse("this link was used already: start `fedveil site desk` again\n", 403)
        home = self._session.home
        answer = RedirectResponse(home, 303)
        answer.set_cookie(COOKIE, self._session.cookie, path=home, httponly=True, samesite="strict")
        return answer

    async def home(self, _: "Request") -> "Response":
        """The first page."""
        return await self._shown(self._pages.home)

    async def study(self, request: "Request") -> "Response":
        """The page of a study."""
        return await self._shown(lambda: self._pages.study(_digest(request)))

    async def decided(self, request: "Request") -> "Response":
        """A decision; if it is refused, the study's page with what was typed and the reason."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        digest, act = _digest(request), request.path_params["act"]
        form = {
            key: values[-1]
            for key, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()
        }
        if form.get("token") != self._session.token:
            return PlainTextResponse("this form is not the desk's\n", 403)

        def take() -> str:
            self._pages.decide(digest, act, form)
            return ""

        answer = await self._shown(take, lambda error: self._pages.study(digest, form, error))
        back = RedirectResponse(f"{self._session.home}studies/{digest}", 303)
        return back if answer.status_code == 200 else answer

    async def style(self, _: "Request") -> "Response":
        """The style sheet."""
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(self._pages.style(), media_type="text/css")

    async def _shown(
        self, make: Callable[[], str], otherwise: Callable[[str], str] | None = None
    ) -> "Response":
        """A page, made in a thread; or the page that says why it cannot be shown."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import HTMLResponse

        def page() -> tuple[str, int]:
            try:
                return make(), 200
            except FedveilError as error:
                if otherwise is not None:
                    with suppress(FedveilError):  # the study itself cannot be shown either
                        return otherwise(str(error)), 409
                return self._pages.refusal(str(error)), 409

        return HTMLResponse(*await run_in_threadpool(page))


def _digest(request: "Request") -> str:
    """The digest in a path; one that no study has for anything else, so that no path leads to another file."""
    found = str(request.path_params["digest"])
    return found if re.fullmatch("[0-9a-f]{64}", found) else "0" * 64
