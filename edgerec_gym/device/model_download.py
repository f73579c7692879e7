"""Files of an offered model on their way to the phone: in chunks, and on from where they stopped."""

from __future__ import annotations

import re
from pathlib import Path

from edgerec_gym.errors import InputError, shown
from edgerec_gym.protocol.messages import CHUNK, ModelChunk, ModelFile, ModelOffer, ModelWant

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")  # no path, nothing hidden
MOST_BYTES = 2**28  # of a model


class Download:
    """A model that is being downloaded into a folder. The length of a file tells how far it has come.

    Nothing here looks into the files: the caller checks their digests before it uses them.

    Args:
        offer: the model.
        folder: its place; made if it is missing. What lies there from an earlier try is continued.
        most_bytes: largest size of all files together.

    Raises:
        InputError: the offer is empty or too large, or a name in it is not that of a file.
        OSError: the folder cannot be written.
    """

    def __init__(self, offer: ModelOffer, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        _check(offer, most_bytes)
        self.offer, self.folder = offer, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._left = [file for file in offer.files if self._present(file) < file.bytes]

    def want(self) -> ModelWant | None:
        """Return the message that asks for the next part, None if everything has come."""
        if not self._left:
            return None
        file = self._left[0]
        return ModelWant(self.offer.digest, file.name, (self.folder / file.name).stat().st_size)

    def take(self, chunk: ModelChunk) -> bool:
        """Add a part; False if it is not the one that is wanted, as a duplicate is.

        Raises:
            InputError: it is empty or longer than what is missing.
            OSError: it cannot be written.
        """
        wanted = self.want()
        if wanted is None or (chunk.digest, chunk.name, chunk.offset) != (
            wanted.digest,
            wanted.name,
            wanted.offset,
        ):
            return False
        missing = self._left[0].bytes - chunk.offset
        if not 0 < len(chunk.data) <= min(missing, CHUNK):
            raise InputError(
                f"a part of {chunk.name} has {len(chunk.data)} bytes; allowed: 1 to {min(missing, CHUNK)}"
            )
        with (self.folder / chunk.name).open("ab") as file:
            file.write(chunk.data)
        if len(chunk.data) == missing:
            self._left.pop(0)
        return True

    def _present(self, file: ModelFile) -> int:
        """Return how much of a file is there, in bytes; a file that is too long is begun anew."""
        path = self.folder / file.name
        if path.is_symlink() or (path.exists() and path.stat().st_size > file.bytes):
            path.unlink()
        path.touch()
        return path.stat().st_size


def _check(offer: ModelOffer, most_bytes: int) -> None:
    names = [file.name for file in offer.files]
    wrong = next((name for name in names if not NAME.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(f"the offered model has a file {shown(wrong)}; allowed: names of A-Z a-z 0-9 _ - .")
    if not names or len(set(names)) < len(names) or not offer.digest:
        raise InputError("the offered model has no files, a file twice or no digest")
    total = sum(file.bytes for file in offer.files)
    if total > most_bytes:
        raise InputError(f"the offered model has {total:,} bytes; allowed: up to {most_bytes:,}")
