"""JSON that says itself whether it is whole: its last entry is a hash of all bytes before it.

What one file builds on it names by that hash: a marker its shard's plan, checksums the plan.
A changed byte, a file cut short and a sound file of another set are told apart from what was written. This finds
damage, not forgery: whoever can write the files can seal them again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from changeanywhere.documents import DocumentError

KEY = "seal"
_NEARLY = re.compile(rb"[0-9a-f]{64}\W*\Z")
_END = re.compile(rb',\s*"seal": "([0-9a-f]{64})"\s*\}\s*\Z')


def sealed(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """``content``, which must hold something, as JSON with its seal."""
    body = json.dumps(content, indent=indent)[:-1].rstrip()
    between, end = ("\n" + " " * indent, "\n}\n") if indent else (" ", "}\n")
    return f'{body},{between}"{KEY}": "{hashlib.sha256(body.encode()).hexdigest()}"{end}'.encode()


def unsealed(data: bytes) -> tuple[dict[str, Any], str]:
    """Content without its seal, and the seal; "" for files of editions that had none.

    :class:`DocumentError` where bytes are not what was sealed.
    """
    end = _END.search(data, max(0, len(data) - 200))
    seal = end.group(1).decode() if end else ""
    if end and hashlib.sha256(data[: end.start()]).hexdigest() != seal:
        raise DocumentError("not the bytes that were written (its checksum differs)")
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise DocumentError("not JSON (brackets in brackets without end)") from error
    except ValueError as error:
        raise DocumentError(f"not JSON ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise DocumentError("not a JSON object")
    if not end and (KEY in content or _NEARLY.search(data[-200:])):
        raise DocumentError("its checksum is damaged")
    content.pop(KEY, None)
    return content, seal
