"""The desk: a page at the hospital for the person who decides about studies. It is reachable from this machine only.

`guard` decides who may call; `views` reads what a page shows; `pages` turns it into HTML and takes decisions, through
the same functions as the commands. Starlette and uvicorn are in the extra ``fedveil[desk]``.
"""

__all__: list[str] = []
