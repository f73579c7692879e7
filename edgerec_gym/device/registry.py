"""The phone's folder of models: what it runs, what it can go back to, and what it will not take again.

| place | content |
| --- | --- |
| DIGEST/ | a complete model; DIGEST is the sha256 of its device.json |
| .DIGEST.part/ | a model that is being downloaded |
| active.json | :class:`State`, replaced atomically |

A model comes in five steps, each of which may be the last before the phone is switched off:

1. `room(offer)` gives a folder to download into (:class:`~edgerec_gym.device.model_download.Download`).
2. `receive(digest, files)` checks it against the digest that the cloud has told, never one from the folder,
   moves it into place, and runs its golden test, in another process where the engine needs that.
3. The session swaps (:meth:`~edgerec_gym.device.session.DeviceSession.swap`).
4. `activate(digest)`: from now on the phone starts with it. The model before is kept.
5. `rollback()` returns to that one.

Whatever goes wrong, the model before stays, and one line says why. What is wrong with a model itself is kept,
so that it isn't downloaded again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from edgerec_gym.device.description import (
    DESCRIPTION,
    GOLDEN,
    digest_of,
    file_name,
    read_description,
    read_file,
)
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import load
from edgerec_gym.documents import Document, check_version, read_document
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import make_folder, remove_folder, write_json
from edgerec_gym.protocol.messages import ModelFile, ModelOffer

STATE, PART = "active.json", ".part"
SCHEMA_VERSION = 1
MOST_REJECTED = 100  # digests; the oldest are forgotten
MOST_REASON = 300  # characters
DIGEST = re.compile(r"[0-9a-f]{64}")


class State(Document):
    """The content of active.json.

    Attributes:
        schema_version: :data:`SCHEMA_VERSION`.
        active: digest of the model that the phone runs; "" for none.
        previous: digest of the one before; "" for none.
        rejected: why models are not taken, by digest; the oldest first.
    """

    schema_version: int = SCHEMA_VERSION
    active: str = ""
    previous: str = ""
    rejected: dict[str, str] = {}


class ModelRegistry:
    """The models of one phone; one process at a time uses the folder.

    Args:
        folder: its place; made if it is missing. What a killed process has left is put in order.
        features: digest of what the feed's models read, see
            :func:`~edgerec_gym.device.description.feature_digest`; "" accepts any.

    Attributes:
        state: what runs, what ran before, and what is rejected.
        said: the last line about something that went wrong; "" if nothing did.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, features: str = "") -> None:
        self.folder, self.features = make_folder(folder), features
        self.said = ""
        self._tested: set[str] = set()
        self.state = self._read()
        self._tidy()

    @property
    def active(self) -> str:
        """Digest of the model that the phone runs; "" for none."""
        return self.state.active

    @property
    def previous(self) -> str:
        """Digest of the model before; "" for none."""
        return self.state.previous

    def place(self, digest: str) -> Path:
        """Return the folder of a complete model."""
        return self.folder / digest

    def is_wanted(self, digest: str) -> bool:
        """Whether the phone takes an offered model: not if it runs already or is rejected."""
        return bool(DIGEST.fullmatch(digest)) and digest != self.active and digest not in self.state.rejected

    def holds(self, digest: str) -> bool:
        """Whether a model is complete, so that it need not be downloaded."""
        return bool(DIGEST.fullmatch(digest)) and self.place(digest).is_dir()

    def room(self, offer: ModelOffer) -> Path | None:
        """Return the folder to download a model into, with what has come of it; None to leave it.

        None if it is not wanted or is complete. There is room for one: what was begun of another is dropped.
        """
        if not self.is_wanted(offer.digest) or self.holds(offer.digest):
            return None
        self._tidy(waiting=offer.digest)
        return self._part(offer.digest)

    def receive(self, digest: str, files: Sequence[ModelFile], version: int | None = None) -> DeviceModel:
        """Check a model that has come, move it into place, and load it; it may then take over.

        Args:
            digest: as the cloud has told it, in Welcome or ModelOffer.
            files: its files, as offered; not read if the model is complete already.
            version: of the protocol that is spoken; None for any.

        Raises:
            InputError: the model is rejected now, or was before; or its download is not complete; or it does
                not serve this version of the protocol; or the disk is full. One line says which.
            MissingExtraError: its engine is not installed.
        """
        if not DIGEST.fullmatch(digest):
            raise self._say(f"the offered model has the digest {shown(digest)}; allowed: a sha256")
        if digest in self.state.rejected:
            raise self._say(f"model {digest[:12]} was rejected before: {self.state.rejected[digest]}")
        if not self.holds(digest):
            self._complete(digest, files)
        try:
            model = load(self.place(digest), digest)
            if self.features and model.described.features != self.features:
                raise InputError(
                    f"{model.folder} reads other features than this feed; allowed: the same digest"
                )
        except InputError as error:
            raise self.reject(digest, str(error)) from None
        oldest, newest = model.described.protocol
        if version is not None and not oldest <= version <= newest:
            raise self._say(
                f"{model.folder} serves versions {oldest} to {newest} of the protocol; {version} is spoken"
            )
        self._tested.add(digest)
        return model

    def load(self) -> DeviceModel | None:
        """Return the model that the phone starts with: the active one, else the one before, else None.

        A model that fails is rejected. One whose files have changed since is removed, and may come again.

        Raises:
            MissingExtraError: an engine is not installed.
        """
        for digest in (self.active, self.previous):
            if not digest:
                continue
            try:
                model = load(self.place(digest), digest)
                if self.features and model.described.features != self.features:
                    raise InputError(f"{model.folder} reads other features than this feed")
            except InputError as error:
                if self._is_intact(digest):
                    self.reject(digest, str(error))
                else:
                    self._say(str(error))
                    self._leave(digest, self.state.rejected)
                continue
            self._tested.add(digest)
            return model
        return None

    def activate(self, digest: str) -> None:
        """Start with a model from now on; the one that runs is kept, and what ran before that is removed.

        Raises:
            InputError: it was not received or loaded in this process, or the folder cannot be written to.
        """
        if digest not in self._tested or not self.holds(digest):
            raise InputError(f"model {shown(digest[:12])} has not passed its tests; receive it first")
        if digest != self.active:
            dropped = self.previous
            self._save(structs.replace(self.state, active=digest, previous=self.active))
            if dropped and dropped != digest:
                with suppress(OSError):
                    remove_folder(self.place(dropped))

    def rollback(self, reason: str = "rolled back") -> str:
        """Return to the model before, and reject the one that runs; returns the digest that is active now.

        Raises:
            InputError: there is no model before.
        """
        if not self.previous:
            raise InputError(f"{self.folder} holds no model to return to")
        self.reject(self.active, reason)
        return self.active

    def reject(self, digest: str, reason: str) -> InputError:
        """Remove a model and do not take it again; if it runs, the one before is active.

        Returns:
            The error that says so.
        """
        line = " ".join(reason.split())[:MOST_REASON]
        if DIGEST.fullmatch(digest):
            rejected = {key: text for key, text in self.state.rejected.items() if key != digest}
            last = [*rejected.items(), (digest, line)][-MOST_REJECTED:]
            self._leave(digest, dict(last))
        return self._say(line)

    def _leave(self, digest: str, rejected: dict[str, str]) -> None:
        """Take a model out of the state and remove it; what a full disk cannot keep holds in this process."""
        active, previous = self.active, self.previous
        if digest in (active, previous):
            active, previous = (previous if digest == active else active), ""
        state = State(active=active, previous=previous, rejected=rejected)
        with suppress(InputError):
            self._save(state)
        self.state = state
        self._tested.discard(digest)
        with suppress(OSError):
            remove_folder(self.place(digest))
            remove_folder(self._part(digest))

    def _complete(self, digest: str, files: Sequence[ModelFile]) -> None:
        """Move a download into place; InputError if it is not what the cloud has told."""
        part = self._part(digest)
        for file in files:
            path = part / file.name
            size = path.stat().st_size if path.is_file() else 0
            if size < file.bytes:
                raise self._say(
                    f"model {digest[:12]} is not complete: {file.name} has {size} of {file.bytes} bytes"
                )
        if not part.is_dir():
            raise self._say(f"model {digest[:12]} has not been downloaded")
        try:
            _check_files(part, digest)
        except InputError as error:
            raise self.reject(digest, str(error)) from None
        try:
            for path in (*part.iterdir(), part):
                _sync(path)
            part.rename(self.place(digest))
            _sync(self.folder)
        except OSError as error:
            raise self._say(f"{self.folder} cannot be written: {error.strerror}") from None

    def _is_intact(self, digest: str) -> bool:
        try:
            _check_files(self.place(digest), digest, others=True)
        except InputError:
            return False
        return True

    def _part(self, digest: str) -> Path:
        return self.folder / f".{digest}{PART}"

    def _read(self) -> State:
        file = self.folder / STATE
        if not file.exists():
            return State()
        try:
            state = read_document(file, State)
            check_version(file, state.schema_version, SCHEMA_VERSION)
            for digest in (state.active, state.previous, *state.rejected):
                if digest and not DIGEST.fullmatch(digest):
                    raise InputError(f"{file} names {shown(digest)}; allowed: a sha256")
        except InputError as error:
            self._say(f"{error}; the phone starts without a model")
            return State()
        return state

    def _save(self, state: State) -> None:
        try:
            write_json(self.folder / STATE, structs.asdict(state))
        except OSError as error:
            raise self._say(f"{self.folder / STATE} cannot be written: {error.strerror}") from None
        self.state = state

    def _tidy(self, waiting: str = "") -> None:
        """Remove what is neither active nor the one before, but for one that waits or is being downloaded.

        Args:
            waiting: its digest; "" for the newest that is not rejected.
        """
        others = {}
        for path in self.folder.iterdir():
            digest = path.name.removeprefix(".").removesuffix(PART)
            if path.is_dir() and DIGEST.fullmatch(digest) and path.name in (digest, f".{digest}{PART}"):
                if path.name not in (self.active, self.previous):
                    others[path] = digest
        if not waiting:
            able = [path for path, digest in others.items() if self.is_wanted(digest)]
            waiting = others[max(able, key=lambda path: path.stat().st_mtime_ns)] if able else ""
        for path, digest in others.items():
            if digest != waiting or (path.name != digest and self.holds(digest)):
                remove_folder(path)

    def _say(self, line: str) -> InputError:
        self.said = line
        return InputError(line)


def recorded_files(folder: Path) -> dict[str, int]:
    """Return the files of a model by name with their bytes, device.json first; InputError if one is wrong."""
    described = read_description(folder)
    recorded = {file_name(name, graph.engine): graph for name, graph in described.graphs.items()}
    recorded |= {GOLDEN: described.golden, **described.files}  # type: ignore[dict-item]
    sizes = {DESCRIPTION: (folder / DESCRIPTION).stat().st_size}
    for name, file in recorded.items():
        sizes[name] = len(read_file(folder / name, file))
    return sizes


def _check_files(folder: Path, digest: str, others: bool = False) -> None:
    """Raise InputError unless a folder holds the model of a digest, whole, and no other file.

    Args:
        folder: the folder.
        digest: sha256 of device.json as told by someone trusted.
        others: whether further files may lie there.
    """
    found = digest_of(folder)
    if found != digest:
        raise InputError(f"{folder} has the digest {found}; expected {digest}")
    recorded = recorded_files(folder)
    for path in folder.iterdir():
        if path.is_symlink() or (path.name not in recorded and not others):
            raise InputError(f"{path} does not belong to the model")


def _sync(path: Path) -> None:
    """Let the disk have a file or a folder before it is renamed."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
