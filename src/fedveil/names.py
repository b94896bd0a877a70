"""Names of sites: what stands in agreements, in ledgers' file names and before the eyes of who approves."""

import re
import unicodedata

from fedveil.errors import InvalidValue

__all__ = ["attempt_words", "SITE_NAME", "check_site_name", "check_site_names"]

SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
"""A site's name between hospitals: ASCII, so that no two names look alike, and none is a path."""

_SITE_NAME = re.compile(SITE_NAME)
_LONGEST = 80


def check_site_name(name: str, *, plain: bool = False) -> str:
    """Return a site's name, or raise InvalidValue where it could be taken for another, or for a path.

    Args:
        name: what a table, a study or a person calls a site.
        plain: whether it is shown to other hospitals, and so has to match `SITE_NAME`. Otherwise it may hold spaces
            and the letters of one script, as the tables of one machine do, in Unicode's normal form NFKC.

    >>> check_site_name("St. Mary")
    'St. Mary'
    """
    if plain:
        if _SITE_NAME.fullmatch(name):
            return name
        raise InvalidValue(
            f"a site is called {name[:100]!r}",
            "a name has 1 to 80 ASCII letters, digits, dots, dashes or underscores and begins with a letter or digit",
            "rename the site, everywhere alike",
        )
    if _is_clear(name):
        return name
    raise InvalidValue(
        f"a site is called {name[:100]!r}",
        "a name has 1 to 80 letters of one script, digits, spaces or . _ - ' ( ) & , and begins with a letter or digit",
        "rename the site in the site column",
    )


def check_site_names(names: tuple[str, ...]) -> None:
    """Raise InvalidValue for the first name that `check_site_name` refuses, or where case alone tells two apart."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(check_site_name(name).casefold(), name)
        if other != name:
            raise InvalidValue(
                f"two sites are called {other!r} and {name!r}",
                "case alone must not tell sites apart: some file systems do not see it",
                "rename one of them",
            )


def _is_clear(name: str) -> bool:
    if not 0 < len(name) <= _LONGEST or not name[0].isalnum() or name.endswith(" "):
        return False
    if unicodedata.normalize("NFKC", name) != name:
        return False
    letters = [letter for letter in name if not letter.isascii()]
    if not all(letter.isalpha() for letter in letters):
        return False
    if not all(letter.isalnum() or letter in " ._-'()&," for letter in name if letter.isascii()):
        return False
    return len({_script(letter) for letter in name if letter.isalpha()}) <= 1


def _script(letter: str) -> str:
    """The script of a letter, as the first word of its name in the Unicode database."""
    first = unicodedata.name(letter, "UNNAMED").partition(" ")[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "HANGUL") else first


def attempt_words(attempt: int) -> str:
    """An attempt's number for people: every session of a coordinator counts on from a multiple of 2**32.

    >>> attempt_words(2**32 + 1), attempt_words(3 * 2**32 + 2)
    ('attempt 1', 'attempt 2 of session 3')
    """
    session, number = divmod(attempt, 2**32)
    return f"attempt {number}" + (f" of session {session}" if session > 1 else "")
