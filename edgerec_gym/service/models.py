"""The device models that the service offers to phones: folders of `edgerec export`, held in memory.

A folder is read whole and checked against its device.json before it is offered, and phones get parts of what
was read then: they never name a path, and a folder that is being replaced cannot be sent in halves. Models
that were offered before stay for a while, so that a download that has begun can finish.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgerec_gym.config import FeedConfig
from edgerec_gym.device.description import (
    DESCRIPTION,
    GOLDEN,
    digest_of,
    feature_digest,
    file_name,
    read_description,
    read_file,
)
from edgerec_gym.documents import SMALL
from edgerec_gym.errors import InputError
from edgerec_gym.files import read_bytes
from edgerec_gym.protocol.messages import CHUNK, ModelChunk, ModelFile, ModelOffer, ModelWant
from edgerec_gym.service.channels import FILE as CHANNELS
from edgerec_gym.service.channels import ModelChannels, place_of

MOST_KNOWN = 4  # models in memory


class OfferedModel:
    """A device model, checked and read.

    Args:
        folder: the folder of the export.
        config: the feed that is served.

    Attributes:
        digest: sha256 of its device.json.
        offer: what phones are told.

    Raises:
        InputError: a file is missing or not what device.json recorded, or the model reads other rows.
    """

    def __init__(self, folder: Path, config: FeedConfig) -> None:
        self.digest = digest_of(folder)
        described = read_description(folder)
        if described.features != feature_digest(config):
            raise InputError(f"{folder / DESCRIPTION}: the model was made for another feed than this one")
        recorded = {file_name(name, graph.engine): graph for name, graph in described.graphs.items()}
        recorded |= {GOLDEN: described.golden, **described.files}  # type: ignore[dict-item]
        self._files = {DESCRIPTION: read_bytes(folder / DESCRIPTION, SMALL)}
        self._files |= {name: read_file(folder / name, file) for name, file in recorded.items()}
        if digest_of(folder) != self.digest:
            raise InputError(f"{folder / DESCRIPTION} changed while the folder was read; try again")
        self.offer = ModelOffer(
            self.digest, [ModelFile(name, len(data)) for name, data in self._files.items()]
        )

    def chunk(self, wanted: ModelWant) -> ModelChunk | None:
        """Return a part of a file; empty behind its end; None if the model has no such file."""
        data = self._files.get(wanted.name)
        if data is None:
            return None
        part = data[wanted.offset : wanted.offset + CHUNK]
        return ModelChunk(self.digest, wanted.name, wanted.offset, part)


class Models:
    """The models that users are offered: one for all, or what the channels of a registry say.

    Args:
        folder: a device model, or a model's folder in a registry (:mod:`edgerec_gym.service.channels`).
        config: the feed that is served.

    Raises:
        InputError: the folder holds no model that can be offered.
    """

    def __init__(self, folder: str | Path, config: FeedConfig) -> None:
        self._folder, self._config = Path(folder), config
        published = (self._folder / CHANNELS).is_file()
        self._channels = ModelChannels(self._folder.parent, self._folder.name) if published else None
        self._known: dict[str, OfferedModel] = {}  # by digest, those offered last at the end
        self._stamp = self._look()
        self._offered = self._read()

    def for_user(self, user: int) -> OfferedModel | None:
        """Return the model that a user is offered, None for none."""
        stable, canary, share, version = self._offered
        if canary is not None and place_of(self._folder.name, version, user) < share:
            return canary
        return stable

    def renew(self) -> bool:
        """Read the folder again if it has changed; returns whether other models are offered.

        Raises:
            InputError: it has changed, but to nothing that can be offered. The old models stay until it
                changes again.
        """
        stamp = self._look()
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        before, self._offered = self._offered, self._read()
        return before != self._offered

    def chunk(self, wanted: ModelWant) -> ModelChunk | None:
        """Return a part of a file of a model that is or was offered; None if there is no such file."""
        model = self._known.get(wanted.digest)
        return None if model is None else model.chunk(wanted)

    def _read(self) -> tuple[OfferedModel | None, OfferedModel | None, float, int]:
        """Return the stable model, the canary, its share of the users, and its version."""
        if self._channels is None:
            return self._model(self._folder), None, 0.0, 0
        now = self._channels.read()
        stable, canary = (
            None if published is None else self._model(self._channels.place(published.version))
            for published in (now.stable, now.canary)
        )
        return stable, canary, now.share, 0 if now.canary is None else now.canary.version

    def _model(self, folder: Path) -> OfferedModel:
        """Return a model, read if it is another one; models that were offered long ago are dropped."""
        known = self._known.pop(digest_of(folder), None)
        model = OfferedModel(folder, self._config) if known is None else known
        self._known[model.digest] = model
        for digest in list(self._known)[:-MOST_KNOWN]:
            del self._known[digest]
        return model

    def _look(self) -> tuple[int, int, int] | None:
        """Return what tells that something else is offered; None while it is missing."""
        try:
            found = os.stat(self._folder / (DESCRIPTION if self._channels is None else CHANNELS))
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
