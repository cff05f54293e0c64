"""Pictures from the web, where an operator allows it: one parse of the address, one look-up, and that very machine.

The usual hole is a check of one thing and a connection to another: a second parser, a second look-up, a redirect, a
proxy.  Here the address is parsed once, its name is looked up once, all its numbers are checked, and the connection
goes to the first of them by number; redirects and proxies are not followed.
"""

import ipaddress
import socket
import time
from collections.abc import Callable

import httpx

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError, bad

MAX_URL_CHARS = 2048
TOTAL_S, CONNECT_S = 20.0, 5.0
# IPv6 that carries an IPv4 address inside, by which a private one could be reached.
WRAPPING_NETWORKS = tuple(
    ipaddress.ip_network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def is_public(address: str) -> bool:
    """Whether a numeric address belongs to the public internet and wraps no other."""
    number = ipaddress.ip_address(address)
    return number.is_global and not number.is_multicast and not any(number in network for network in WRAPPING_NETWORKS)


def look_up(host: str, port: int) -> list[str]:
    """Numeric addresses of a name.  Raises OSError where it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class RemoteImages:
    """Fetches pictures; blocking, for a worker thread."""

    def __init__(
        self,
        limits: Limits,
        resolve: Callable[[str, int], list[str]] = look_up,
        is_allowed: Callable[[str], bool] = is_public,
    ):
        self._limits, self._resolve, self._is_allowed = limits, resolve, is_allowed

    def fetch(self, text: str) -> bytes:
        """The file behind `text`.  Raises RequestError: refused, unreachable, too long, too slow, or no success."""
        url = self._parsed(text)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = self._resolve(url.host, port)
        except OSError as error:
            raise bad("the image's host has no address", "image_url") from error
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise bad("the image's host is not on the public internet", "image_url")
        try:
            return self._download(url, addresses[0])
        except httpx.HTTPError as error:
            raise bad(f"the image cannot be fetched: {type(error).__name__}", "image_url") from error

    def _parsed(self, text: str) -> httpx.URL:
        if len(text) > MAX_URL_CHARS or not text.isascii() or any(mark in text for mark in "\\ \t\r\n"):
            raise bad("the image's address is not a plain one", "image_url")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise bad("the image's address cannot be read", "image_url") from error
        is_port = url.port is None or 0 < url.port < 2**16
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or not is_port:
            raise bad("the image's address is not http(s)://host/...", "image_url")
        return url

    def _download(self, url: httpx.URL, address: str) -> bytes:
        deadline_s = time.monotonic() + TOTAL_S
        host = url.netloc.decode("ascii")
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=CONNECT_S) as client,
            client.stream(
                "GET",
                url.copy_with(host=address),
                headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"},
                # The certificate is checked for the name, though the connection goes to the number.
                extensions={"sni_hostname": url.host},
            ) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise bad(f"the image's host answered {response.status_code}", "image_url")
            content = bytearray()
            for part in response.iter_raw():
                content += part
                if len(content) > self._limits.max_image_bytes:
                    raise RequestError(413, f"an image has more than {self._limits.max_image_bytes} bytes")
                if time.monotonic() > deadline_s:
                    raise bad(f"the image did not arrive within {TOTAL_S:g} s", "image_url")
            return bytes(content)
