"""The command that opens the desk: a page on this machine for the person who decides."""

import socket
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.encoders.device import with_encoders_of
from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import Folder, load_site

__all__ = ["site_desk"]


def site_desk(
    folder: Folder = Path("site"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; by default a free one.")
    ] = 0,
) -> None:
    """Open a page on this machine for the person who decides about studies, until stopped.

    The link that it prints works once, in one browser.

    Example: fedveil site desk site
    """
    from fedveil.deploy.desk.guard import Session
    from fedveil.deploy.desk.pages import make_app
    from fedveil.deploy.site.offline import offline
    from fedveil.errors import InvalidValue

    with speak_plainly(), offline(), with_encoders_of(folder):
        config = load_site(folder)
        try:
            import uvicorn

            listener = socket.create_server(("127.0.0.1", port))
        except ImportError:
            raise InvalidValue(
                "uvicorn is not installed", "the desk is a web page", 'pip install "fedveil[desk]"'
            ) from None
        session = Session(port=listener.getsockname()[1])
        app = make_app(config, session)
        server = uvicorn.Server(
            uvicorn.Config(
                app, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False
            )
        )
        console.print("open this link in a browser on this machine; it works once:")
        print(session.link, flush=True)
        console.print("Ctrl-C stops the desk")
        server.run(sockets=[listener])
