"""Draws icon.png, the icon of the packages: calls on the channels of a pool. Needs Python alone."""
import struct
import sys
import zlib

SIZE, SCALE = 128, 4  # drawn larger, and averaged
BLUE, PALE, WHITE = (27, 73, 124), (122, 170, 219), (255, 255, 255)


def inside_box(x, y, left, top, right, bottom, radius):
    dx = max(left + radius - x, 0, x - (right - radius))
    dy = max(top + radius - y, 0, y - (bottom - radius))
    return left <= x <= right and top <= y <= bottom and dx * dx + dy * dy <= radius * radius


def color(x, y):
    if not inside_box(x, y, 2, 2, 126, 126, 26):
        return (0, 0, 0, 0)
    for lane, calls in ((34, (38, 58, 78)), (64, (38, 58, 78, 98)), (94, (38, 58))):
        if any((x - call) ** 2 + (y - lane) ** 2 <= 36 for call in calls):
            return (*WHITE, 255)
        if inside_box(x, y, 22, lane - 10, 106, lane + 10, 10):
            return (*PALE, 255)
    return (*BLUE, 255)


def pixel(x, y):
    samples = [color(x + (i + 0.5) / SCALE, y + (j + 0.5) / SCALE) for i in range(SCALE) for j in range(SCALE)]
    alpha = sum(s[3] for s in samples)
    return bytes([*(sum(s[c] * s[3] for s in samples) // alpha if alpha else 0 for c in range(3)), alpha // len(samples)])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


rows = b"".join(b"\0" + b"".join(pixel(x, y) for x in range(SIZE)) for y in range(SIZE))
with open(sys.argv[1] if len(sys.argv) > 1 else "icon.png", "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 6, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))
