"""Tokens of devices: who holds one may speak for one user until a day.

A token is `DEVICE.USER.DAY.MAC`, where MAC is an HMAC-SHA256 under the service's secret (RFC 2104). Comparing
takes the same time whatever is wrong.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from pathlib import Path

from edgerec_gym.errors import InputError
from edgerec_gym.files import read_bytes

LEAST_SECRET = 16  # bytes
MOST_SECRET = 4096
DEVICE = re.compile(r"[A-Za-z0-9_-]{1,64}")
DAY = 86_400  # seconds


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_hex(32).encode()


def read_secret(path: str | Path) -> bytes:
    """Read a secret; InputError if the file is missing or holds fewer than 16 bytes."""
    secret = read_bytes(Path(path), MOST_SECRET).strip()
    if len(secret) < LEAST_SECRET:
        raise InputError(f"{path} holds {len(secret)} bytes; a secret needs at least {LEAST_SECRET}")
    return secret


def make_token(secret: bytes, device: str, user: int, days: int = 30) -> str:
    """Return a token for a device and a user, valid for some days from now."""
    if not DEVICE.fullmatch(device):
        raise InputError(f"device {device!r} is not a name; allowed: 1 to 64 of A-Z a-z 0-9 _ -")
    body = f"{device}.{user}.{int(time.time() // DAY) + days}"
    return f"{body}.{_mac(secret, body)}"


def is_valid(secret: bytes, token: str, device: str, user: int) -> bool:
    """Whether a token lets a device speak for a user today."""
    body, _, mac = token.rpartition(".")
    parts = body.split(".")
    genuine = hmac.compare_digest(_mac(secret, body).encode(), mac.encode())
    if not genuine or len(parts) != 3:
        return False
    return parts[:2] == [device, str(user)] and int(parts[2]) >= int(time.time() // DAY)


def _mac(secret: bytes, body: str) -> str:
    return hmac.digest(secret, body.encode(), "sha256").hex()
