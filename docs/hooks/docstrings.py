"""Set the sections of our docstrings that the reader of Google style does not know.

`Example:` is read as `Examples:`, so that it is set as code; `Reference:` becomes a paragraph.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Examples?:$", re.MULTILINE)
REFERENCE = re.compile(r"^References?:\n(?P<text>(?:[ \t]+\S.*(?:\n|$))+)", re.MULTILINE)


def reread(text: str) -> str:
    r"""Return a docstring with its sections renamed.

    Example:
        >>> reread("Add.\n\nReference:\n    Section 2.\n\nExample:\n    >>> 1\n    1")
        'Add.\n\n**Reference:** Section 2.\n\nExamples:\n    >>> 1\n    1'
    """
    text = REFERENCE.sub(lambda match: f"**Reference:** {textwrap.dedent(match['text']).strip()}\n", text)
    return EXAMPLE.sub("Examples:", text)


class Sections(griffe.Extension):
    """Rename the sections before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the sections of one object's docstring (called by griffe)."""
        if obj.docstring is not None:
            obj.docstring.value = reread(obj.docstring.value)
