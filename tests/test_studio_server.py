"""What the studio's server answers and refuses, without a browser; needs Gradio."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from changeanywhere.errors import ConfigError
from changeanywhere.studio.options import StudioOptions
from changeanywhere.studio.server import POLICY, listening
from conftest import write_source
from studio_served import Served, serving

if importlib.util.find_spec("gradio") is None:
    pytest.skip("no Gradio: pip install 'changeanywhere[studio]'", allow_module_level=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    source = write_source(folder / "source")
    words = ["--source", str(source), "--model", str(tiny_model_folder), "--max-upload-mb", "2"]
    with serving(folder / "sets", *words) as studio:
        yield studio


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]


def ask(served: Served, path: str, method: str = "GET", *, body: bytes = b"", **headers: str) -> Answer:
    place = urlsplit(served.url)
    connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="host" in headers)
        if body and "content_length" not in headers:
            connection.putheader("content-length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, answer.read().decode("utf-8", "replace"), found)
    finally:
        connection.close()


def upload(served: Served, content: bytes) -> Answer:
    head = '--x\r\ncontent-disposition: form-data; name="files"; filename="../../x.png"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    return ask(served, "/gradio_api/upload", "POST", body=body, content_type="multipart/form-data; boundary=x")


def test_the_page_comes_under_its_policy_and_from_here_alone(served: Served) -> None:
    answer = ask(served, "/")
    assert answer.status == 200 and "ChangeAnywhere studio" in answer.text
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//[^"' >]+""", answer.text)
    assert "*" not in POLICY and "http" not in POLICY


def test_other_sites_and_other_names_of_this_machine_are_refused(served: Served) -> None:
    port = urlsplit(served.url).port
    for headers, says in (
        ({"host": "evil.example"}, "serves 127.0.0.1 alone"),
        ({"host": f"127.0.0.1.evil.example:{port}"}, "serves 127.0.0.1 alone"),
        ({"host": ""}, "serves 127.0.0.1 alone"),
        ({"host": "[::1"}, "no address"),
        ({"origin": "http://[x"}, "no address"),
        ({"origin": "http://127.0.0.1\xbd:1"}, "another site"),
        ({"origin": "http://evil.example"}, "another site"),
        ({"origin": "http://127.0.0.1:1"}, "another site"),
        ({"origin": "null"}, "another site"),
    ):
        for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join")):
            answer = ask(served, path, method, body=b"", **headers)
            assert answer.status == 403 and says in answer.text
    own = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
    assert ask(served, "/", body=b"", **own).status == 200
    assert ask(served, "/", "DELETE").status == 403


def test_what_is_uploaded_is_bounded_and_lies_in_the_studios_folder(served: Served) -> None:
    kept = upload(served, b"1" * 1000)
    assert kept.status == 200
    place = Path(json.loads(kept.text)[0])
    assert place.parents[2].name.startswith("changeanywhere-studio-") and place.read_bytes() == b"1" * 1000
    assert place.resolve() == place
    assert upload(served, b"1" * 2_300_000).status == 413
    assert ask(served, "/gradio_api/upload", "POST", content_length="3500000").status == 413
    assert ask(served, "/", "POST", content_length="x").status in (400, 413)
    for method in ("POST", "GET"):
        answer = ask(served, "/gradio_api/upload", method, transfer_encoding="chunked")
        assert answer.status == 411 and "content-length" in answer.text, "nobody counts what comes in chunks"
    assert ask(served, "/gradio_api/queue/join", "POST").status == 411


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../pyproject.toml", "src/changeanywhere/cli.py"])
def test_files_of_this_machine_are_nobodys(served: Served, path: str) -> None:
    for place in (f"/gradio_api/file={path}", f"/file={path}", f"/sets/{path}/report", f"/sets/..%2f{path}/report"):
        assert ask(served, place).status in (403, 404, 422), place


def test_a_report_is_served_by_the_name_of_its_set(served: Served) -> None:
    folder = served.out / "town"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<title>the report</title>")
    assert ask(served, "/sets/town/report").status == 404, "no set"
    (folder / "metadata.jsonl").write_text("{}\n")
    answer = ask(served, "/sets/town/report")
    assert answer.status == 200 and "the report" in answer.text and answer.headers["content-security-policy"]
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to("/etc/passwd")
    assert ask(served, "/sets/town/report").status == 404


def test_the_library_asks_nobody_and_offers_no_api(served: Served) -> None:
    config = json.loads(ask(served, "/config").text)
    assert not config["analytics_enabled"] and not config.get("is_space")
    shown = json.loads(ask(served, "/gradio_api/info").text)
    assert not shown["named_endpoints"] and not shown["unnamed_endpoints"]


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: cannot be listened to"):
            listening(StudioOptions(port=port))
    with pytest.raises(ConfigError, match="cannot be listened to"):
        listening(StudioOptions(host="no.such.host.invalid", port=0))
    free = listening(StudioOptions(port=0))
    assert free.getsockname()[0] == "127.0.0.1"
    free.close()
