"""Who gets into the page, and what a request may weigh."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import write_toy_dataset
from page_browser import needs_chromium
from page_server import TOKEN, Client, page

from medsaga.app import entrance, server
from medsaga.app.security import MOST_BYTES, MOST_BYTES_OF_A_STROKE


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("page")
    with page(write_toy_dataset(root / "toy"), root) as found:
        yield found


PATHS = ("/", "/api/state", "/api/cases", "/api/folders", "/static/main.js", "/nothing", "/api/runs/x/report")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "cookie", [None, "", "medsaga-1=x", "medsaga-{port}=", "medsaga-{port}=wrong", "medsaga-{port}=é"]
)
def test_nothing_is_shown_without_the_token(client: Client, path: str, cookie: str | None) -> None:
    given = None if cookie is None else cookie.format(port=client.port).encode().decode("latin-1")
    answer = client.get(path, Cookie=given)
    assert answer.status == 403
    assert b"toy" not in answer.body


@pytest.mark.parametrize(
    "query", ["", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?token={TOKEN}&token={TOKEN}", f"?x={TOKEN}"]
)
def test_a_wrong_token_does_not_open_the_door(client: Client, query: str) -> None:
    answer = client.get(f"/{query}", Cookie=None)
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_cookie_that_no_script_reads_and_leaves_the_address(client: Client) -> None:
    answer = client.get(f"/?token={TOKEN}", Cookie=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    name, *kinds = (part.strip().lower() for part in answer.headers["set-cookie"].split(";"))
    assert name == f"medsaga-{client.port}={TOKEN}"
    assert {"httponly", "samesite=strict", "path=/"} <= set(kinds)
    assert client.get(f"/api/state?token={TOKEN}", Cookie=None).status == 403


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes there")
def test_the_browser_is_started_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    class Running:
        def run(self, sockets: list[socket.socket]) -> None:
            self.path = Path(unquote(urlsplit(opened[0]).path))
            assert (self.path.stat().st_mode & 0o777, self.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
            assert said[0].split()[-1] in self.path.read_text()

    running = Running()
    monkeypatch.setattr(server, "make_server", lambda *_, **__: running)
    server.serve(None, port=0, open_browser=True, say=said.append, folder=tmp_path)
    assert said[0].split("token=")[1] not in opened[0]
    assert not running.path.parent.exists()


@needs_chromium
def test_the_file_that_the_browser_is_given_opens_the_page(client: Client, tab: Any, tmp_path: Path) -> None:
    tab.goto(entrance.entrance(tmp_path, f"http://127.0.0.1:{client.port}/?token={TOKEN}").as_uri())
    tab.wait_for_selector(".card")
    assert tab.evaluate("location.search") == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", "", None],
)
def test_a_foreign_host_is_refused_though_it_resolves_to_this_machine(client: Client, host: str | None) -> None:
    given = None if host is None else host.format(port=client.port)
    # Without a Host, HTTP itself refuses.
    assert client.get("/api/state", Host=given).status in (400, 421)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}.evil.example",
    ],
)
def test_a_foreign_origin_is_refused(client: Client, origin: str) -> None:
    given = origin.format(port=client.port)
    assert client.get("/api/state", Origin=given).status == 403
    assert client.post("/api/labels", {"labels": []}, Origin=given).status == 403


def test_what_changes_something_must_say_where_it_comes_from(client: Client) -> None:
    assert client.get("/api/state", Origin=None).status == 200
    assert client.post("/api/labels", {"labels": []}, Origin=None).status == 403
    assert client.get("/api/state", Sec_Fetch_Site="cross-site").status == 403
    assert client.get("/api/state", Sec_Fetch_Site="same-site").status == 403
    assert client.get("/api/state", Sec_Fetch_Site="same-origin").status == 200


@pytest.mark.parametrize("path", ["/", "/api/state", "/nothing", "/static/main.js"])
def test_every_answer_has_its_policy(client: Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_a_page_without_inline_script_or_style(client: Client) -> None:
    html = client.get("/").body.decode()
    assert "style=" not in html
    assert "<style" not in html
    assert "onclick" not in html
    assert html.count("<script") == html.count('<script type="module" src="/static/')


def test_a_websocket_is_not_accepted(client: Client) -> None:
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "x" * 24,
    }
    assert client.get("/api/state", **upgrade).status != 101


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2f..%2fsecurity.py",
        "/static/%252e%252e/server.py",
        "/static//etc/passwd",
        "/api/cases/..%2f..%2fetc/image?plane=image&index=0&channel=0",
        "/api/cases/%2e%2e/thumbnail",
        "/api/runs/..%2f..%2f/report",
        "/api/runs/%2fetc%2fpasswd/report",
    ],
)
def test_addresses_do_not_lead_out(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=3)
    secret = tmp_path / "secret.png"
    for kind, name in (("images", "img0"), ("masks", "img1")):
        path = toy / kind / f"{name}.png"
        shutil.move(path, secret)
        path.symlink_to(secret)
        before = secret.read_bytes()
        with page(toy, tmp_path) as client:
            key = client.key(name)
            for part in ("", "/image?plane=image&index=0&channel=0", "/labels?plane=image&index=0", "/thumbnail"):
                if kind == "masks" and part.startswith("/image"):
                    continue
                answer = client.get(f"/api/cases/{key}{part}")
                assert answer.status == 422, part
                assert "link" in answer.json["message"]
            assert client.paint(key, "image", (0, 0, 0), (1, 4, 4), 1).status == 422
            assert client.post(f"/api/cases/{key}/finish").status == 422
            assert client.get(f"/api/cases/{client.key('img2')}").status == 200
        assert secret.read_bytes() == before
        path.unlink()
        shutil.move(secret, path)


def test_a_declared_size_is_refused_before_it_is_sent(client: Client) -> None:
    for size in (str(MOST_BYTES + 1), str(10 * 2**30), "-1", "x"):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
        connection.putrequest("POST", "/api/labels", skip_host=True)
        for name, value in {**client.headers, "Content-Length": size}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status in (400, 413)
        connection.close()


def test_a_stroke_may_be_as_large_as_a_picture(client: Client) -> None:
    about = f"/api/cases/{client.key('img0')}"
    for path, size in ((f"{about}/edit", MOST_BYTES_OF_A_STROKE + 1), (f"{about}/undo", MOST_BYTES + 1)):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
        connection.putrequest("POST", path, skip_host=True)
        for name, value in {**client.headers, "Content-Length": str(size)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
    # Read to its end, and refused because the toy image is smaller.
    assert client.paint(client.key("img0"), "image", (0, 0, 0), (1, 6000, 6000), 1).status == 422


def test_a_stream_without_end_is_cut_off(client: Client) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as sock:
        sock.sendall(f"POST /api/labels HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        sent = 0
        try:
            while sent < 4 * MOST_BYTES:
                sock.sendall(chunk)
                sent += 2**20
        except OSError:  # it has hung up
            pass
        assert sent < 3 * MOST_BYTES
        answer = b""
        try:
            while part := sock.recv(4096):
                answer += part
        except OSError:
            pass
        assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    assert client.get("/api/state").status == 200


def test_many_requests_at_a_time_end_nothing(client: Client) -> None:
    key, statuses = client.key("img0"), []
    lock = threading.Lock()

    def ask(number: int) -> None:
        try:
            status = client.get(f"/api/cases/{key}/image?plane=image&index=0&channel=0").status
        except OSError:
            status = 0
        with lock:
            statuses.append(status)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(200)))
    assert set(statuses) <= {200, 503, 0}
    assert statuses.count(200) > 100
    assert client.get("/api/state").status == 200


@pytest.mark.exhaustive
def test_a_thousand_requests_at_a_time_end_nothing(client: Client) -> None:
    request = "GET /api/state HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in client.headers.items()) + "\r\n"
    sockets = [socket.create_connection(("127.0.0.1", client.port), timeout=20) for _ in range(1000)]
    for each in sockets:
        each.sendall(request.encode())
    statuses = [each.recv(64).split(b" ")[1] for each in sockets]
    for each in sockets:
        each.close()
    assert set(statuses) <= {b"200", b"503"}
    assert client.get("/api/state").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"labels": 3}',
        b'{"labels": [3]}',
        b'{"labels": [{"name": 3}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_nonsense_is_answered_with_what_was_expected(client: Client, body: bytes) -> None:
    answer = client.ask("POST", "/api/labels", body)
    assert answer.status == 422
    assert answer.json["expected"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *[
            (f"/api/{route}", {"path": path})
            for route in ("open", "images")
            for path in ("\0", "\ud800", "x" * 300, "~x-y/")
        ],
        *[("/api/cases/{key}/interpolate", {"plane": "image", name: "q"}) for name in ("index", "label")],
        *[("/api/cases/{key}/interpolate", {"plane": "image", "index": index}) for index in (1e400, [1], None, -1)],
        *[("/api/cases/{key}/begin", {"version": version}) for version in ("q", {"q": 1}, 99)],
        *[("/api/labels", {"add": name}) for name in ("a\0b", "\ud800", "a\nb")],
        ("/api/labels", {"value": True, "name": "q"}),
    ],
)
def test_what_no_page_would_ask_for_is_answered_with_what_was_expected(client: Client, path: str, body: Any) -> None:
    answer = client.post(path.format(key=client.key("img0")), body)
    assert answer.status == 422
    assert answer.json["expected"]


@pytest.mark.parametrize("path", ["%00", "%ED%A0%80", "~x-y"])
def test_no_folder_of_an_impossible_name_is_listed(client: Client, path: str) -> None:
    assert client.get(f"/api/folders?path={path}").status == 422


def test_names_of_files_are_in_no_address_and_no_title(client: Client) -> None:
    cases = client.get("/api/cases").json
    assert all(each["name"] not in each["id"] and len(each["id"]) == 12 for each in cases)
    assert "toy" not in client.get("/").body.decode()


def test_only_this_machine_is_listened_to(client: Client) -> None:
    name = socket.gethostname()
    for address in {info[4][0] for info in socket.getaddrinfo(name, None, socket.AF_INET)} - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as sock:
            sock.settimeout(2)
            assert sock.connect_ex((address, client.port)) != 0


def test_a_file_that_no_browser_asked_for_is_not_written(client: Client, tmp_path: Path) -> None:
    before = {str(path) for path in client.session.folder.rglob("*")}
    client.post("/api/export", {"what": "labels", "format": "../../x"})
    client.post("/api/cases/000000000000/finish")
    client.post("/api/open", {"path": str(tmp_path / "nothing")})
    assert {str(path) for path in client.session.folder.rglob("*")} - before == set()
    assert json.loads(client.get("/api/state").body)["project"]["name"] == "toy"
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the names alone
