"""Images as people store them: sound ones in every mode and format, and broken ones."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

from scripts.campaign.tables import picture

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9"/></svg>'


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 12), **how: Any) -> bytes:
    """An image of a mode in a format."""
    file = io.BytesIO()
    Image.new(mode, size, how.pop("color", 1)).save(file, kind, **how)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int) -> bytes:
    """A black one-bit PNG of any size, without holding it."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    line = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def animated() -> bytes:
    """A GIF of three frames."""
    frames = [Image.new("P", (16, 12), number) for number in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def turned() -> bytes:
    """A JPEG that says it lies on its side."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return saved("JPEG", exif=tags)


def _spoilt(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


SOUND: dict[str, bytes] = {
    "CMYK JPEG": saved("JPEG", "CMYK", color=(1, 2, 3, 4)),
    "16-bit PNG": saved("PNG", "I;16"),
    "animated GIF": animated(),
    "palette PNG": saved("PNG", "P"),
    "palette PNG with transparency": saved("PNG", "P", transparency=0),
    "RGBA PNG": saved("PNG", "RGBA", color=(1, 2, 3, 0)),
    "grey and alpha PNG": saved("PNG", "LA", color=(9, 9)),
    "one-bit PNG": saved("PNG", "1"),
    "progressive JPEG": saved("JPEG", progressive=True),
    "grey JPEG": saved("JPEG", "L"),
    "WebP": saved("WEBP"),
    "BMP": saved("BMP"),
    "TIFF": saved("TIFF"),
    "1 x 1": saved("PNG", size=(1, 1)),
    "1 x 3000": saved("PNG", size=(1, 3000)),
    "JPEG on its side": turned(),
    "PNG with bytes behind it": picture() + b"more" * 50,
    "2000 x 2000": png(2000, 2000),
}

BROKEN: dict[str, bytes] = {
    "empty": b"",
    "half a PNG": saved("PNG", size=(64, 64))[:90],
    "half a JPEG": saved("JPEG", size=(256, 256))[:700],
    "PNG without its end": picture()[:-30],  # the last 20 bytes are checksums and a mark
    "PNG with a wrong checksum": _spoilt(saved("PNG", size=(64, 64)), 50),
    "0 x 0 PNG": png(0, 0),
    "0 x 0 GIF": b"GIF89a" + bytes(7) + b";",
    "SVG": SVG,
    "20,000 x 20,000": png(20_000, 20_000),
    "60,000 x 60,000 by its head": _spoilt(png(8, 8), 18),
    "text": b"not an image",
    "HTML": b"<html><body>404 Not Found</body></html>",
    "PDF": b"%PDF-1.4\n1 0 obj\n",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "JSON": b'{"error": "gated"}',
    "zeros": bytes(500),
    "GIF head only": b"GIF89a",
    "PNG signature only": b"\x89PNG\r\n\x1a\n",
    "base64 text": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB",
}
