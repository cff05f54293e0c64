"""The guard against being sent to addresses inside: what is refused, and that the connection goes where was looked."""

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.remote_images import RemoteImages, is_public
from megatron_moe_grpo.serving.request_error import RequestError

CONTENT = b"a picture"


class Host(http.server.BaseHTTPRequestHandler):
    """Answers what its path says, and remembers the Host header."""

    hosts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture")
        else:
            self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT * (1000 if self.path == "/long" else 1))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_outside_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a", "file:///etc/passwd", "http:///a", "//example.org/a", "example.org/a", "",
        "http://user:word@example.org/a", "http://127.0.0.1:6666\\@1.1.1.1/", "http://example.org/a b",
        "http://exämple.org/a", "http://example.org:99999/", "http://[::1", "http://example.org/\r\nHost: b",
        "http://example.org/" + "a" * 3000,
    ],
)  # fmt: skip
def test_addresses_that_are_not_plain_are_refused_before_any_look_up(url: str) -> None:
    def never(host: str, port: int) -> list[str]:
        raise AssertionError("looked up")

    with pytest.raises(RequestError):
        RemoteImages(Limits(), resolve=never).fetch(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a", "http://localhost/a", "http://[::1]/a", "http://2130706433/", "http://0x7f.1/"]
)
def test_names_of_this_machine_are_refused(url: str) -> None:
    with pytest.raises(RequestError, match="public internet|no address"):
        RemoteImages(Limits()).fetch(url)


LOOPBACK_HOSTS = (
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "localhost", "LOCALHOST", "localhost.", "0.0.0.0", "0",
    "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "017700000001", "2130706433", "127.0.0.1.", "%31%32%37.0.0.1", "[::1]",
    "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]",
    "[::127.0.0.1]", "[::1%25lo]", "127.0.0.1%00.example.org", "127。0。0。1", "ⓛocalhost", "1.1.1.1@127.0.0.1",
    "127.0.0.1#@1.1.1.1", "127.0.0.1?@1.1.1.1", "1.1.1.1 @127.0.0.1", "1.1.1.1\\@127.0.0.1", "127.0.0.1\\@1.1.1.1",
)  # fmt: skip


def test_no_spelling_reaches_a_listener_on_this_machine() -> None:
    """Nor two look-ups with two answers: there is one."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        port = canary.getsockname()[1]
        for host in LOOPBACK_HOSTS:
            for scheme in ("http", "https"):
                with pytest.raises(RequestError):
                    RemoteImages(Limits()).fetch(f"{scheme}://{host}:{port}/a.png")
        # 192.0.2.1 belongs to nobody: the second answer would be this machine.
        answers = iter((["192.0.2.1"], ["127.0.0.1"]))
        rebinding = RemoteImages(Limits(), lambda host, port: next(answers), lambda address: address == "192.0.2.1")
        with pytest.raises(RequestError, match="cannot be fetched"):
            rebinding.fetch(f"http://example.org:{port}/a.png")
        with pytest.raises(TimeoutError):
            canary.accept()


def test_one_address_inside_among_others_refuses_the_name() -> None:
    remote = RemoteImages(Limits(), resolve=lambda host, port: ["1.1.1.1", "127.0.0.1"])
    with pytest.raises(RequestError, match="public internet"):
        remote.fetch("http://example.org/a")


def allowing(found: list[str], max_image_bytes: int = 100) -> RemoteImages:
    """Looks every name up as this machine, which is allowed here."""

    def resolve(host: str, port: int) -> list[str]:
        found.append(host)
        return ["127.0.0.1"]

    return RemoteImages(Limits(max_image_bytes=max_image_bytes), resolve, lambda address: address == "127.0.0.1")


def test_the_connection_goes_to_the_address_that_was_checked(port: int) -> None:
    found: list[str] = []
    assert allowing(found).fetch(f"http://pictures.example:{port}/picture") == CONTENT
    # One look-up, and the host still learns the name that was asked for.
    assert found == ["pictures.example"]
    assert Host.hosts[-1] == f"pictures.example:{port}"


def test_redirects_long_files_and_silence_are_refused(port: int) -> None:
    with pytest.raises(RequestError, match="answered 302"):
        allowing([]).fetch(f"http://pictures.example:{port}/redirect")
    with pytest.raises(RequestError, match="more than 100 bytes") as caught:
        allowing([]).fetch(f"http://pictures.example:{port}/long")
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="cannot be fetched"):
        allowing([]).fetch("http://pictures.example:1/")


def test_no_proxy_of_the_environment_is_used(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert allowing([]).fetch(f"http://pictures.example:{port}/picture") == CONTENT
