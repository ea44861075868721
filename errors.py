"""The errors a user of lavt-edge can meet, and the exit codes of its commands.

Each message is one line: what was wrong, and what to do. Commands print it on stderr, after "error: ", and end with a
code of this table; `exits` maps what Python, the system and other packages raise to it as well:

| code | name | when |
| --- | --- | --- |
| 0 | `DONE` | it is done |
| 1 | `REFUSED` | the input, a file, a package, the disk, memory or the device does not allow it; the line says which |
| 2 | `USAGE` | the command line is wrong: an unknown option, a missing argument, a value out of range |
| 3 | `SLOWER` | `lavt-bench --baseline`: certainly slower than `--max-slowdown` allows |
| 70 | `BUG` | an error of lavt-edge itself; the line names it |
| 130 | `INTERRUPTED` | Ctrl-C (SIGINT); no half-written file is left |
| 141 | `PIPE_CLOSED` | the program that read the output ended, as in `lavt-bench ... | head -1`; nothing is printed |
| 143 | `TERMINATED` | terminated by SIGTERM; no half-written file is left |

With LAVT_EDGE_TRACEBACK=1 in the environment the traceback of whatever ended a command comes before its line.
"""

from __future__ import annotations

from enum import IntEnum

_MOST_CHARACTERS = 2000


class ExitCode(IntEnum):
    """What a command ends with; see the module's table."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    SLOWER = 3
    BUG = 70
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


def one_line(text: str) -> str:
    """`text` as one line that a terminal can show: what cannot be printed is escaped, a long one loses its middle.

    File names and sentences may hold line feeds and a terminal's control sequences.
    """
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def reason_of(error: BaseException, limit: int = 200) -> str:
    """What an exception of another package says, its white space collapsed, as part of a line; its class if nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


class LavtError(Exception):
    """Base of every error that lavt-edge raises for bad input; `str` of one is a single line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class InputError(LavtError, ValueError):
    """A value that a function cannot take: an option out of range, a mask of another type, a graph without shapes."""


class CheckpointError(LavtError):
    """A checkpoint that is unreadable, unsafe, incomplete or of another model."""


class BundleError(LavtError):
    """A bundle, or a file in it, that is missing, damaged, foreign or of an unknown format version."""


class ImageError(LavtError):
    """An image that cannot be read or has no pixels."""


class PromptError(LavtError):
    """A sentence that cannot be segmented for, such as an empty one."""


class DatasetError(LavtError):
    """A data set on disk that is missing, damaged or of another layout."""


class ExportError(LavtError):
    """An export that could not be made, or failed its check against PyTorch."""


class BackendError(LavtError):
    """An inference backend that is missing or cannot run the model."""
