"""Fingerprints of errors: equal for the same error of a stage in every run, process and Python version."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from types import FrameType

from ._interrupts import INTERRUPTS
from .errors import is_internal_code, leaves_of, name_of_error

__all__ = ["FINGERPRINT_VERSION", "fingerprint", "fingerprint_of", "module_of"]


FINGERPRINT_VERSION = 1
"""The prefix of each fingerprint. Increment it with every change that alters fingerprints: an error with a
fingerprint of another version is not a new error."""

_MAX_CHARS = 4000
"""Number of characters of a message that are read."""

_MAX_NORMALIZED_CHARS = 500
"""Number of characters of a normalized message that count. It is smaller than `_MAX_CHARS`, so that it has no
effect where a long message is cut, which depends on the length of its variable parts."""

# Every repetition is possessive or bounded, so that matching takes linear time.
# ASCII only: what `\w` and `\d` match otherwise depends on the version of Unicode, and so of Python.
_VARIABLE = re.compile(
    r"""
    # Text in quotes. An apostrophe within a word does not end it; without a closing quote, the text does.
    (?<!\w) [bBrRuUfF]{0,2}+ (?: '(?:\\.?+|[^'\\]|'(?=\w))*+ (?:'|\Z) | "(?:\\.?+|[^"\\])*+ (?:"|\Z) )
    | ` [^`]*+ (?:`|\Z)
    # URLs
    | (?<![\w+.-]) [A-Za-z][A-Za-z0-9+.-]{0,30}+ :// [^\s'"<>]++
    # e-mail addresses
    | (?<![\w.+-]) [\w.+-]{1,64}+ @ [\w.-]++
    # paths, and words with a slash
    | (?<![\w.~-]) (?: [A-Za-z]: (?=[\\/]) )?+ [\w.~-]*+ (?: [\\/] [\w.@%+=~-]++ )++ [\\/]?+
    # UUIDs, parts of which can contain no digits
    | (?<!\w) [0-9a-fA-F]{8} (?: - [0-9a-fA-F]{4} ){3} - [0-9a-fA-F]{12} (?!\w)
    # IPv6 addresses, and times of day
    | (?<![\w:]) (?: [0-9a-fA-F]{0,4} : ){2,7}+ [0-9a-fA-F]{0,4} (?![\w:])
    # names of days and months next to a number: Tue, 24 Nov 2026 and Nov 24
    | (?<!\w) (?: (?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ,?\ + )?+
        (?: \d{1,2} [\ -] (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)
        | (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \ + \d{1,2} ) (?!\w)
    # numbers, and words that contain a digit: hexadecimal numbers, ids, timestamps
    | (?: (?<!\w) [+-] )?+ \b [A-Za-z_]*+ \d \w*+
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_SEQUENCE = re.compile(r"#(?:[\s,;:.=/\\()\[\]{}+-]*+#)++", re.ASCII)
"""Several variable parts in a row: the numbers in a list, the parts of an IP address or a timestamp."""

_SPACE = re.compile(r"\s+", re.ASCII)
_OTHERS = re.compile(r" \(and \d+ others?\)\Z", re.ASCII)
"""The number of other exceptions in an `ExceptionGroup`; see `describe`."""

_COMPREHENSION = re.compile(r"(?:\.<locals>\.<(?:list|dict|set)comp>)+\Z")
"""From Python 3.12 on, these comprehensions are part of the frame of their function."""


def fingerprint(place: str, kind: str, message: str, frame: str = "") -> str:
    """Return the fingerprint of an error: the version of the algorithm, and a hash of its arguments.

    Args:
        place: Name of the stage; for an error of a whole run, name of its pipeline.
        kind: The class of the exception, or the outcome of the run.
        message: The message, without secrets.
        frame: The innermost frame of the application; empty if there is none.

    Example:
        >>> one = fingerprint("look_up", "LookupError", "no object 'list.push'", "app.docs:find")
        >>> one == fingerprint("look_up", "LookupError", "no object 'dict.has_key'", "app.docs:find")
        True
        >>> one
        '1:02b2d59bcec86ed7'
    """
    text = "\0".join((place, kind, frame, _normalized(message)))
    digest = hashlib.sha256(text.encode(errors="backslashreplace"), usedforsecurity=False).hexdigest()
    return f"{FINGERPRINT_VERSION}:{digest[:16]}"


def fingerprint_of(place: str, error: str, exception: BaseException | None) -> str:
    """Return the fingerprint of an error of a stage or a run.

    Args:
        place: See `fingerprint`.
        error: Its text, without secrets.
        exception: Its exception, or None. The first leaf of an `ExceptionGroup` counts, as in `error_type`.
    """
    if exception is None:
        return fingerprint(place, "", error)
    first = leaves_of(exception)[0]
    return fingerprint(place, name_of_error(first), error, _application_frame(first))


def _normalized(message: str) -> str:
    """Return a message with its variable parts replaced by `#`, and at most 500 characters.

    Variable parts are text in quotes, numbers, words that contain a digit, UUIDs, timestamps, URLs, paths,
    and e-mail and IP addresses. Several in a row are replaced by one `#`.

    Example:
        >>> _normalized("no object 'list.push' in /srv/app.py at 10.0.0.7:8080")
        'no object # in # at #'
        >>> _normalized("user 5f3c9a can't pay 12.50 EUR [1, 2, 3]")
        "user # can't pay # EUR [#]"
    """
    text = _VARIABLE.sub("#", _OTHERS.sub("", message[:_MAX_CHARS]))
    return _SPACE.sub(" ", _SEQUENCE.sub("#", text)).strip()[:_MAX_NORMALIZED_CHARS]


def _application_frame(error: BaseException) -> str:
    """Return the module and the function of the innermost frame of the application; empty if there is none.

    The standard library, installed packages and stageflow are not part of the application. If there is no
    other frame, the application itself is probably installed: its package is that of the outermost frame,
    which is the function of the stage.
    """
    frames: list[FrameType] = []
    try:
        at = error.__traceback__
        while at is not None:
            frames.append(at.tb_frame)
            at = at.tb_next
        innermost = next((frame for frame in reversed(frames) if _is_application(frame)), None)
        if innermost is None:
            frames = [frame for frame in frames if not is_internal_code(frame.f_code.co_filename)]
            if not frames or _is_standard_library(frames[0].f_code.co_filename):
                return ""
            package = _package_of(frames[0])
            innermost = next(frame for frame in reversed(frames) if _package_of(frame) == package)
        return f"{module_of(innermost)}:{_COMPREHENSION.sub('', innermost.f_code.co_qualname)}"
    except BaseException as raised:  # raised by a property of its class
        INTERRUPTS.contain(raised)
        return ""


def module_of(frame: FrameType) -> str:
    """Return the name of the module of a frame, which does not depend on how the program was started.

    The main module has the name of its file, or the name given to `python -m`, as when it is imported.
    """
    name = frame.f_globals.get("__name__")
    if type(name) is str and name not in ("__main__", "__mp_main__"):
        return name
    spec_name = getattr(frame.f_globals.get("__spec__"), "name", None)
    if type(spec_name) is str:
        return spec_name
    file = frame.f_globals.get("__file__")
    return os.path.splitext(os.path.basename(file))[0] if type(file) is str else "__main__"


def _package_of(frame: FrameType) -> str:
    return module_of(frame).partition(".")[0]


_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_STAGEFLOW = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_OTHER_LIBRARY = re.compile(r"[\\/]lib(?:64)?[\\/]python3\.\d+[\\/]")
"""The standard library of a worker on another machine."""

_INSTALLED = re.compile(r"[\\/](?:site|dist)-packages[\\/]")


@functools.lru_cache(maxsize=4096)
def _is_application_file(filename: str) -> bool:
    # Generated code, such as the methods of a dataclass, has a file name in angle brackets.
    return not (
        filename.startswith(("<", _STAGEFLOW))
        or _INSTALLED.search(filename)
        or _is_standard_library(filename)
    )


def _is_application(frame: FrameType) -> bool:
    return _is_application_file(frame.f_code.co_filename)


def _is_standard_library(filename: str) -> bool:
    if _INSTALLED.search(filename):
        return False
    return filename.startswith(("<frozen ", _LIBRARY)) or _OTHER_LIBRARY.search(filename) is not None
