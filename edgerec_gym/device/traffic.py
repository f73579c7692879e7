"""Bytes on the wire, by direction and kind of message.

Messages are whole frames without compression, so a frame is its payload and a header of known length
(RFC 6455, section 5.2). Whatever else the socket carried (handshakes, pings, closing frames) is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]  # up: from the phone to the cloud
MASK = 4  # bytes; a phone masks its frames


@dataclass
class Amount:
    """Messages of one kind: their number, and bytes without and with the header of the frame."""

    messages: int = 0
    payload: int = 0
    frames: int = 0


@dataclass
class Traffic:
    """What a link has sent and received over all of its connections.

    Attributes:
        amounts: by direction and kind, the tag of the message; "malformed" for what cannot be decoded.
        socket: all bytes by direction, before encryption.
    """

    amounts: dict[tuple[Direction, str], Amount] = field(default_factory=dict)
    socket: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def count(self, direction: Direction, kind: str, payload: int) -> None:
        """Count a message of a kind."""
        amount = self.amounts.setdefault((direction, kind), Amount())
        amount.messages += 1
        amount.payload += payload
        amount.frames += payload + frame_header(payload, masked=direction == "up")

    def total(self, direction: Direction) -> Amount:
        """Return the sum over all kinds in a direction."""
        found = [amount for (way, _), amount in self.amounts.items() if way == direction]
        return Amount(
            sum(amount.messages for amount in found),
            sum(amount.payload for amount in found),
            sum(amount.frames for amount in found),
        )

    def rest(self, direction: Direction) -> int:
        """Return the bytes of handshakes and control frames in a direction."""
        return self.socket[direction] - self.total(direction).frames


def frame_header(payload: int, masked: bool) -> int:
    """Return the bytes of a frame's header."""
    return 2 + (0 if payload < 126 else 2 if payload < 2**16 else 8) + (MASK if masked else 0)
