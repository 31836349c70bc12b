"""The report of a set, by the set's name, on the studio's own address."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response

from changeanywhere.errors import InputError
from changeanywhere.studio.keeping import set_folder
from changeanywhere.studio.review import sets_in
from changeanywhere.studio.studio import Studio


def report_link(name: str) -> str:
    """Where it is served; ``name`` is that of a set, which is a plain one."""
    return f"/sets/{name}/report"


def add_reports(app: FastAPI, studio: Studio) -> None:
    """Serve them: of sets in the studio's folder, nothing else of this machine."""

    @app.get("/sets/{name}/report")
    def report(name: str) -> Response:
        out = studio.options.out
        try:
            file = set_folder(out, name) / "report.html"
        except InputError:
            return PlainTextResponse("no such set", 404)
        if name not in sets_in(out) or not file.is_file() or file.is_symlink():
            return PlainTextResponse("no such set", 404)
        return FileResponse(file, media_type="text/html")
