"""The pieces that the bytes of a WebSocket connection consist of (RFC 6455, section 5.2)."""

from __future__ import annotations

from typing import NamedTuple

MOST_HEAD = 2**16  # bytes of the opening handshake in one direction
MOST_FRAME = 2**24  # bytes
_HEADS = (b"GET ", b"HTTP/1.1 101")


class Piece(NamedTuple):
    """Bytes that belong together; `is_message` if they are a whole message in one frame."""

    data: bytes
    is_message: bool = False


class Splitter:
    """Splits one direction of a connection into its opening handshake and frames.

    What is no WebSocket, or has frames beyond 16 MiB, passes as it comes. The pieces add up to the bytes.
    """

    def __init__(self) -> None:
        self._waiting = b""
        self._is_open = False  # whether the handshake is over
        self._is_raw = False

    def feed(self, data: bytes) -> list[Piece]:
        """Take bytes; returns the pieces that are complete now."""
        self._waiting += data
        pieces: list[Piece] = []
        while self._waiting and not self._is_raw:
            size = self._frame() if self._is_open else self._head()
            if not size or size > len(self._waiting):
                break
            piece, self._waiting = self._waiting[:size], self._waiting[size:]
            pieces.append(Piece(piece, self._is_open and piece[0] in (0x81, 0x82)))  # final, text or binary
            self._is_open = True
        if self._is_raw and self._waiting:
            pieces.append(Piece(self.rest()))
        return pieces

    def rest(self) -> bytes:
        """Return what waits for the rest of its piece, and forget it."""
        rest, self._waiting = self._waiting, b""
        return rest

    def _head(self) -> int:
        """Return the size of the handshake, 0 if it is not complete."""
        begun = self._waiting[: max(map(len, _HEADS))]
        end = self._waiting.find(b"\r\n\r\n")
        fits = any(begun.startswith(head[: len(begun)]) for head in _HEADS)
        self._is_raw = not fits or max(end, len(self._waiting) if end < 0 else 0) > MOST_HEAD
        return 0 if end < 0 or self._is_raw else end + 4

    def _frame(self) -> int:
        """Return the size of the next frame, 0 if its header is not complete."""
        data = self._waiting
        if len(data) < 2:
            return 0
        length, extended = data[1] & 0x7F, 0
        if length >= 126:
            extended = 2 if length == 126 else 8
            if len(data) < 2 + extended:
                return 0
            length = int.from_bytes(data[2 : 2 + extended], "big")
        self._is_raw = length > MOST_FRAME
        return 0 if self._is_raw else 2 + extended + (4 if data[1] & 0x80 else 0) + length
