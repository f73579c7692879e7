"""The device model that the service offers to phones: a folder of `edgerec export`, held in memory.

A folder is read whole and checked against its device.json before it is offered, and phones get parts of what
was read then: they never name a path, and a folder that is being replaced cannot be sent in halves. The model
before stays until the next change, so that a download that has begun can finish.
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
    """The model that is offered now, and the one before.

    Args:
        folder: the folder of the model; None to offer none.
        config: the feed that is served.

    Attributes:
        current: what is offered; None for nothing.

    Raises:
        InputError: the folder holds no model that can be offered.
    """

    def __init__(self, folder: str | Path | None, config: FeedConfig) -> None:
        self._folder = None if folder is None else Path(folder)
        self._config = config
        self._previous: OfferedModel | None = None
        self._stamp = self._look()
        self.current = None if self._folder is None else OfferedModel(self._folder, config)

    def renew(self) -> bool:
        """Read the folder again if its device.json has changed; returns whether another model is offered.

        Raises:
            InputError: it has changed, but to nothing that can be offered. The old model stays until the
                folder changes again.
        """
        stamp = self._look()
        if self._folder is None or stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        found = OfferedModel(self._folder, self._config)
        if self.current is not None and found.digest == self.current.digest:
            return False
        self._previous, self.current = self.current, found
        return True

    def chunk(self, wanted: ModelWant) -> ModelChunk | None:
        """Return a part of a file of the current model or the one before; None if there is no such file."""
        for model in (self.current, self._previous):
            if model is not None and model.digest == wanted.digest:
                return model.chunk(wanted)
        return None

    def _look(self) -> tuple[int, int, int] | None:
        """Return what tells that device.json is another one; None while it is missing."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder / DESCRIPTION)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
