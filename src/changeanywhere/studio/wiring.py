"""How functions of ours become listeners of Gradio: the session by its hash, errors as one line, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from changeanywhere.errors import ChangeAnywhereError
from changeanywhere.studio import pictures
from changeanywhere.studio.session import Session
from changeanywhere.studio.studio import Studio

Act = Callable[..., tuple[Any, ...]]
"""``act(session, *values)`` → a value per output; :class:`ChangeAnywhereError` and ``OSError`` become the message."""
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Wiring:
    """Listeners of one tab: what goes wrong stands in its message."""

    def __init__(self, studio: Studio, message: Any) -> None:
        self.studio, self.message = studio, message

    def on(self, event: Any, act: Act, inputs: Sequence[Any], outputs: Sequence[Any], **more: Any) -> Any:
        """At an event: values of ``inputs`` in, of ``outputs`` out."""

        def run(request: gr.Request, *values: Any) -> tuple[Any, ...]:
            return self._guarded(lambda: act(self._session(request), *values), len(outputs))

        return event(run, list(inputs), [self.message, *outputs], **(HIDDEN | more))

    def asked(self, html: Any, act: Act, outputs: Sequence[Any]) -> Any:
        """At a click on one of our buttons in ``html``: ``act(session, asked)``."""

        def run(request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
            asked = str((event._data or {}).get("asked", ""))[:400]
            return self._guarded(lambda: act(self._session(request), asked), len(outputs))

        return html.click(run, [], [self.message, *outputs], **HIDDEN)

    def stream(
        self, event: Any, act: Callable[..., Iterator[tuple[Any, ...]]], inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> Any:
        """As :meth:`on`, for what shows how far it is."""

        def run(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            try:
                for shown in act(self._session(request), *values):
                    yield ("", *shown)
            except (ChangeAnywhereError, OSError) as error:
                yield (pictures.error(_line(error)), *([gr.skip()] * (len(outputs) - 1)), "")

        return event(run, list(inputs), [self.message, *outputs], **HIDDEN)

    def _session(self, request: gr.Request) -> Session:
        return self.studio.sessions.of(str(request.session_hash))

    def _guarded(self, act: Callable[[], tuple[Any, ...]], count: int) -> tuple[Any, ...]:
        try:
            return ("", *act())
        except (ChangeAnywhereError, OSError) as error:
            return (pictures.error(_line(error)), *([gr.skip()] * count))


def _line(error: Exception) -> str:
    """One line; of the system's errors without the path, which is nobody's business."""
    return str(error) if isinstance(error, ChangeAnywhereError) else f"the file system says: {error.strerror or error}"  # type: ignore[attr-defined]
