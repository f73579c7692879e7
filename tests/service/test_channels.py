"""Channels: who gets which version, and what a failure leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from broken_devices import change, flip, spoil
from hypothesis import given, settings
from hypothesis import strategies as st
from small_devices import crban, exported

from edgerec_gym.device.description import digest_of
from edgerec_gym.device.registry import ModelRegistry, recorded_files
from edgerec_gym.device.session import load
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import ModelFile, ModelOffer
from edgerec_gym.service import channels as channels_module
from edgerec_gym.service.channels import Channels, ModelChannels, Published, names, place_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models with digests of their own."""
    folder = tmp_path_factory.mktemp("models")
    exported(crban(), folder)
    made = []
    for k in range(4):
        made.append(folder / str(k))
        shutil.copytree(folder / "device", made[-1])
        change(made[-1], scenario=f"number {k}")
    return made


def offered(channels: ModelChannels) -> tuple[int, int, int, float]:
    """Versions of stable, canary and previous, 0 for none, and the share."""
    found = ModelChannels(channels.folder.parent, channels.name).read()
    assert found == channels.read(), "what is remembered is what lies there"
    versions = [getattr(found, name) for name in ("stable", "canary", "previous")]
    return *(0 if part is None else part.version for part in versions), found.share  # type: ignore[return-value]


def test_a_version_goes_from_canary_to_everyone_and_back(models: list[Path], tmp_path: Path) -> None:
    feed = ModelChannels(tmp_path / "registry", "feed")
    assert feed.model_for(3) is None and offered(feed) == (0, 0, 0, 0.0)
    for wrong in (feed.promote, feed.rollback):
        with pytest.raises(InputError, match="feed has (no canary|neither a canary nor a version before)"):
            wrong()
    assert not feed.folder.exists()
    first = feed.publish(models[0])
    assert first.version == 1 and first.digest == digest_of(models[0]) and offered(feed) == (1, 0, 0, 0.0)
    with pytest.raises(InputError, match="is version 1 of feed, stable already"):
        feed.publish(models[0])
    with pytest.raises(InputError, match="no canary"):
        feed.promote()
    assert feed.publish(models[1], share=0.25).version == 2 and offered(feed) == (1, 2, 0, 0.25)
    feed.promote(0.5)
    assert offered(feed) == (1, 2, 0, 0.5)
    feed.promote()
    assert offered(feed) == (2, 0, 1, 0.0)
    feed.publish(models[2])
    assert offered(feed) == (2, 3, 1, 0.1)
    feed.publish(models[3])
    assert offered(feed) == (2, 4, 1, 0.1), "in place of the canary"
    feed.rollback()
    assert offered(feed) == (2, 0, 1, 0.0), "first the canary"
    feed.rollback()
    assert offered(feed) == (1, 0, 0, 0.0)
    with pytest.raises(InputError, match="neither"):
        feed.rollback()
    assert feed.publish(models[2], share=1.0).version == 3, "it keeps its version"
    assert [known.version for known in feed.versions()] == [1, 2, 3, 4]
    for known, folder in zip(feed.versions(), models, strict=True):
        assert recorded_files(feed.place(known.version)) == recorded_files(folder)
        assert load(feed.place(known.version), known.digest).digest == digest_of(folder)
    assert names(tmp_path / "registry") == ["feed"]


def test_users_are_drawn_by_an_explicit_hash(models: list[Path], tmp_path: Path) -> None:
    feed = ModelChannels(tmp_path, "feed")
    stable, canary = feed.publish(models[0]), feed.publish(models[1], share=0.2)
    told = hashlib.sha256(b"feed/2/17").digest()
    assert place_of("feed", 2, 17) == int.from_bytes(told[:8], "big") / 2**64
    users = range(5000)
    drawn = {user for user in users if feed.model_for(user) == canary}
    assert drawn == {user for user in users if place_of("feed", 2, user) < 0.2}
    assert 0.17 < len(drawn) / 5000 < 0.23, "five standard deviations"
    assert all(feed.model_for(user) == stable for user in users if user not in drawn)
    feed.promote(0.5)
    more = {user for user in users if feed.model_for(user) == canary}
    assert drawn < more, "who has it keeps it"
    feed.publish(models[2], share=0.2)
    others = {user for user in users if feed.model_for(user) != stable}
    assert len(drawn & others) / len(drawn) < 0.3, "another canary draws other users"
    for share, everyone in ((0.0, stable.version), (1.0, 3)):
        feed.promote(share)
        found = [feed.model_for(user) for user in users]
        assert {part.version for part in found if part is not None} == {everyone}


@settings(max_examples=200)
@given(st.integers(0, 2**31 - 1), st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_nobody_out(user: int, version: int, one: float, other: float) -> None:
    place = place_of("feed", version, user)
    assert 0 <= place < 1
    assert not place < min(one, other) or place < max(one, other)


def test_a_wrong_model_is_not_published(models: list[Path], tmp_path: Path) -> None:
    feed, broken = ModelChannels(tmp_path / "registry", "feed"), tmp_path / "broken"
    feed.publish(models[0])
    for spoil_it, message in (
        (lambda: flip(broken / "crban.scores.onnx"), "is corrupted"),
        (lambda: spoil(broken, "crban.scores.onnx"), "not finite"),
        (lambda: (broken / "golden.safetensors").unlink(), "does not exist"),
        (lambda: change(broken, protocol=[7, 9]), "protocol is 7 to 9"),
    ):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(models[1], broken)
        spoil_it()
        with pytest.raises(InputError, match=message):
            feed.publish(broken)
        assert offered(feed) == (1, 0, 0, 0.0) and len(feed.versions()) == 1
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="out of range; allowed: 0 to 1"):
            feed.publish(models[1], share)
    for name in ("", "../x", ".hidden", "a" * 65, "a/b"):
        with pytest.raises(InputError, match="is not a name"):
            ModelChannels(tmp_path, name)


def test_a_full_disk_leaves_the_channels(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = ModelChannels(tmp_path, "feed")
    feed.publish(models[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((shutil, "copyfile"), (channels_module, "write_json")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                feed.publish(models[1])
        assert offered(feed) == (1, 0, 0, 0.0)
    assert feed.publish(models[1]).version == 2, "what was copied is not copied again"
    assert {path.name for path in feed.folder.iterdir()} == {"1", "2", "channels.json"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not valid JSON"),
        ('{"schema_version": 2}', "has schema version 2"),
        ('{"share": 2}', "share"),
        ('{"stable": {"version": 0, "digest": ""}}', "stable"),
        ('{"beta": null}', "beta"),
    ],
)
def test_broken_channels_are_told(content: str, told: str, tmp_path: Path) -> None:
    feed = ModelChannels(tmp_path, "feed")
    feed.folder.mkdir()
    (feed.folder / "channels.json").write_text(content)
    with pytest.raises(InputError, match=told) as error:
        feed.model_for(1)
    assert "channels.json" in str(error.value) and "\n" not in str(error.value)


def test_readers_see_the_old_channels_or_the_new_ones(tmp_path: Path) -> None:
    """While another thread replaces them all the time."""
    writer, reader = (ModelChannels(tmp_path, "feed") for _ in range(2))
    writer.folder.mkdir()
    both = [
        Channels(stable=Published(version=k + 1, digest=f"{k:064x}"), share=k / 2) for k in range(2)
    ]  # fmt: skip
    writer._write(both[0])
    over = threading.Event()

    def write() -> None:
        for k in range(300):
            writer._write(both[k % 2])
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not over.is_set():
        assert reader.read() in both
        seen += 1
    thread.join()
    assert seen and reader.read() == both[1]
    assert json.loads((writer.folder / "channels.json").read_text())["stable"]["version"] == 2


def test_a_phone_follows_its_channel(models: list[Path], tmp_path: Path) -> None:
    """A canary that is withdrawn gives way to the stable version, which the phone still has."""
    feed, phone = ModelChannels(tmp_path / "registry", "feed"), ModelRegistry(tmp_path / "phone")

    def follow() -> int:
        told = feed.model_for(7)
        assert told is not None
        files = [ModelFile(*file) for file in recorded_files(feed.place(told.version)).items()]
        if phone.is_wanted(told.digest):
            room = phone.room(ModelOffer(told.digest, files))
            if room is not None:
                room.mkdir()
                for file in files:
                    shutil.copyfile(feed.place(told.version) / file.name, room / file.name)
            phone.receive(told.digest, files)
            phone.activate(told.digest)
        assert phone.active == told.digest
        return told.version

    feed.publish(models[0])
    assert follow() == 1
    feed.publish(models[1], share=1.0)
    assert follow() == 2
    shutil.rmtree(feed.place(2))  # nothing of it is needed to go back
    feed.rollback()
    assert follow() == 1 and phone.previous == digest_of(models[1])
