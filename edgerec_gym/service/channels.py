"""The publisher's models: versions in folders, and channels that say which user gets which.

registry/NAME/VERSION/ holds a model, versions 1, 2, ...; registry/NAME/channels.json says who gets which:

| channel | who gets it |
| --- | --- |
| stable | everyone else |
| canary | a share of the users, chosen by a hash of name, version and user |
| previous | nobody; what `rollback` returns to |

A version never changes: what is published again under another content is another version. channels.json is
replaced atomically, so a service that reads it sees the old channels or the new ones.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Annotated

from msgspec import Meta, structs

from edgerec_gym.device.description import digest_of
from edgerec_gym.device.registry import recorded_files
from edgerec_gym.device.session import load
from edgerec_gym.documents import Document, check_version, read_document
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import atomic_folder, only_writer, write_json

FILE = "channels.json"
SCHEMA_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
CANARY_SHARE = 0.1

Version = Annotated[int, Meta(ge=1, le=10**6)]


class Published(Document):
    """A version of a model: its number, and the sha256 of its device.json."""

    version: Version
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Channels(Document):
    """The content of channels.json.

    Attributes:
        schema_version: :data:`SCHEMA_VERSION`.
        stable, canary, previous: what each channel offers; None for nothing.
        share: of the users that get the canary, 0 to 1.
    """

    schema_version: int = SCHEMA_VERSION
    stable: Published | None = None
    canary: Published | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    previous: Published | None = None


class ModelChannels:
    """The channels of one model.

    Args:
        registry: folder of all models.
        name: the model's name.

    Raises:
        InputError: the name is no name.
    """

    def __init__(self, registry: str | Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise InputError(f"model {shown(name)} is not a name; allowed: 1 to 64 of A-Z a-z 0-9 _ -")
        self.name, self.folder = name, Path(registry) / name
        self._known: tuple[tuple[int, int, int], Channels] | None = None

    def read(self) -> Channels:
        """Return the channels as they are now; InputError if channels.json is broken."""
        file = self.folder / FILE
        try:
            found = file.stat()
        except FileNotFoundError:
            return Channels()
        stamp = found.st_mtime_ns, found.st_ino, found.st_size
        if self._known is None or self._known[0] != stamp:
            channels = read_document(file, Channels)
            check_version(file, channels.schema_version, SCHEMA_VERSION)
            self._known = stamp, channels
        return self._known[1]

    def versions(self) -> list[Published]:
        """Return all versions that lie there, the oldest first."""
        numbers = [int(path.name) for path in self._folders()]
        return [Published(version=n, digest=digest_of(self.place(n))) for n in sorted(numbers)]

    def place(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.folder / str(version)

    def publish(self, folder: str | Path, share: float = CANARY_SHARE) -> Published:
        """Take in a model and offer it as canary, in place of another; the first of all is stable at once.

        Every graph must pass its golden test, in the engine that will run it. A model that has been published
        before keeps its version.

        Args:
            folder: the model's folder, see `edgerec export`.
            share: of the users that get it as canary.

        Raises:
            InputError: the model is wrong, or runs for everyone already; or the share is out of range.
            MissingExtraError: its engine is not installed.
        """
        _check_share(share)
        folder = Path(folder)
        digest = load(folder).digest
        with only_writer(self.folder):
            channels = self.read()
            if channels.stable is not None and channels.stable.digest == digest:
                raise InputError(
                    f"{folder} is version {channels.stable.version} of {self.name}, stable already"
                )
            published = self._taken_in(folder, digest)
            if channels.stable is None:
                self._write(structs.replace(channels, stable=published))
            else:
                self._write(structs.replace(channels, canary=published, share=share))
        return published

    def promote(self, share: float | None = None) -> Channels:
        """Give the canary to another share of the users; without one, to everyone.

        Raises:
            InputError: there is no canary, or the share is out of range.
        """
        if share is not None:
            _check_share(share)
        with only_writer(self.folder):
            channels = self.read()
            if channels.canary is None:
                raise InputError(f"{self.name} has no canary; publish one first")
            if share is not None:
                return self._write(structs.replace(channels, share=share))
            return self._write(Channels(stable=channels.canary, previous=channels.stable))

    def rollback(self) -> Channels:
        """Withdraw the canary; without one, return to the version before.

        Raises:
            InputError: there is neither.
        """
        with only_writer(self.folder):
            channels = self.read()
            if channels.canary is not None:
                return self._write(structs.replace(channels, canary=None, share=0.0))
            if channels.previous is None:
                raise InputError(f"{self.name} has neither a canary nor a version before")
            return self._write(structs.replace(channels, stable=channels.previous, previous=None))

    def model_for(self, user: int) -> Published | None:
        """Return the version that a user gets; None if nothing is offered.

        A user who has the canary keeps it when its share grows. Another canary draws other users.
        """
        channels = self.read()
        canary = channels.canary
        if canary is not None and place_of(self.name, canary.version, user) < channels.share:
            return canary
        return channels.stable

    def _taken_in(self, folder: Path, digest: str) -> Published:
        """Copy a model, unless it lies there; InputError if it changes meanwhile."""
        for known in self.versions():
            if known.digest == digest:
                return known
        version = 1 + max((int(path.name) for path in self._folders()), default=0)
        with atomic_folder(self.place(version)) as copy:
            for name in recorded_files(folder):
                shutil.copyfile(folder / name, copy / name)
            recorded_files(copy)
            if digest_of(copy) != digest:
                raise InputError(f"{folder} changed while it was published; try again")
        return Published(version=version, digest=digest)

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [
            path
            for path in self.folder.iterdir()
            if path.is_dir() and re.fullmatch(r"[1-9]\d{0,5}", path.name)
        ]

    def _write(self, channels: Channels) -> Channels:
        write_json(self.folder / FILE, {"schema_version": SCHEMA_VERSION} | _plain(channels))
        self._known = None
        return channels


def place_of(name: str, version: int, user: int) -> float:
    """Return a user's place in 0..1 for a canary: the first 8 bytes of sha256("NAME/VERSION/USER")."""
    told = hashlib.sha256(f"{name}/{version}/{user}".encode()).digest()
    return int.from_bytes(told[:8], "big") / 2**64


def names(registry: str | Path) -> list[str]:
    """Return the names of the models that a registry holds."""
    folder = Path(registry)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; `edgerec registry publish` makes it")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def _plain(channels: Channels) -> dict[str, object]:
    values = structs.asdict(channels)
    return {
        key: structs.asdict(value) if isinstance(value, Published) else value for key, value in values.items()
    }


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"share = {share} is out of range; allowed: 0 to 1")
