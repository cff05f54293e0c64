"""Pictures of a request: from a data URI or, where allowed, an address, to pixels; sizes are looked at first."""

import base64
import binascii
import re
from collections.abc import Sequence

from megatron_moe_grpo.data.images import decode_image, size_of_image
from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.remote_images import RemoteImages
from megatron_moe_grpo.serving.request_error import RequestError, bad

DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)


def decode_images(urls: Sequence[str], limits: Limits, remote: RemoteImages | None) -> list[Visual]:
    """The pictures behind `urls`; blocking, for a worker thread.

    Args:
        remote: None: addresses other than data URIs are refused.
    Raises:
        RequestError: too many, too large, not readable, or not allowed.
    """
    if len(urls) > limits.max_images:
        raise RequestError(413, f"{len(urls)} images; at most {limits.max_images} are taken")
    files = [_content(url, limits, remote) for url in urls]
    try:
        sizes = [size_of_image(content, _name(index), limits.max_image_pixels) for index, content in enumerate(files)]
        if sum(width * height for width, height in sizes) > limits.max_request_pixels:
            raise RequestError(413, f"all images together have more than {limits.max_request_pixels} pixels")
        return [
            Visual((decode_image(content, _name(index), limits.max_image_pixels),))
            for index, content in enumerate(files)
        ]
    except DataError as error:
        raise bad(str(error).splitlines()[0], "image_url") from error


def _name(index: int) -> str:
    return f"number {index + 1} of the request"


def _content(url: str, limits: Limits, remote: RemoteImages | None) -> bytes:
    match = DATA_URI.match(url)
    if match is None:
        if remote is None or url[:5].lower() == "data:":
            raise bad("images are taken as data URIs: data:image/png;base64,...", "image_url")
        return remote.fetch(url)
    encoded = url[match.end() :]
    # Four characters hold three bytes.
    if len(encoded) // 4 * 3 - encoded[-2:].count("=") > limits.max_image_bytes:
        raise RequestError(413, f"an image has more than {limits.max_image_bytes} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad("an image's data URI is not base64", "image_url") from error
