"""The device model that phones are offered, and that they can download it and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from small_feed_service import CONFIG, hello, running
from test_server import ask, hear, phone

from edgerec_gym.device.description import digest_of, feature_digest
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import CHUNK, ModelChunk, ModelOffer, ModelWant, Refuse, Welcome
from edgerec_gym.service.channels import Channels, Published
from edgerec_gym.service.models import Models


def write_model(folder: Path, content: bytes, **changes: Any) -> str:
    """Write a folder whose device.json is right, as far as the service looks; returns its digest."""
    folder.mkdir(exist_ok=True, parents=True)
    files = {"crban.scores.onnx": content, "golden.safetensors": b"golden", "rules.toml": b"rules"}
    recorded = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    graph = {"engine": "onnxruntime", "bits": 32, "inputs": {}, "outputs": {}, "tolerance": 1e-5}
    described = {
        "kind": "edgerec_gym device model",
        "schema_version": 2,
        "agent": "crban",
        "scenario": "lite",
        "config": CONFIG.to_dict(),
        "places": 3,
        "beams": None,
        "graphs": {"crban.scores": graph | recorded["crban.scores.onnx"]},
        "golden": recorded["golden.safetensors"],
        "files": {"rules.toml": recorded["rules.toml"]},
        "bytes": sum(map(len, files.values())),
        "features": feature_digest(CONFIG),
        "protocol": [1, 1],
        "origin": {},
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "device.json").write_text(json.dumps(described | changes))
    return digest_of(folder)


def download(connection: Any, offer: ModelOffer) -> dict[str, bytes]:
    files = {}
    for file in offer.files:
        data = b""
        while len(data) < file.bytes:
            chunk = ask(connection, ModelWant(offer.digest, file.name, len(data)))
            assert isinstance(chunk, ModelChunk) and chunk.offset == len(data) and chunk.data
            data += chunk.data
        files[file.name] = data
    return files


def test_a_phone_downloads_the_model_that_it_is_offered(tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK // 256) + b"a second chunk"
    digest = write_model(tmp_path / "model", content)
    with running(tmp_path, models=Models(tmp_path / "model", CONFIG)) as server:
        with phone(server) as connection:
            welcome = ask(connection, hello(1))
            assert isinstance(welcome, Welcome) and welcome.model == digest
            offer = hear(connection)
            assert isinstance(offer, ModelOffer) and offer.digest == digest
            files = download(connection, offer)
            assert files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
            assert hashlib.sha256(files["device.json"]).hexdigest() == digest
            past = ask(connection, ModelWant(digest, "rules.toml", 2**26))
            assert isinstance(past, ModelChunk) and past.data == b""
        with phone(server) as connection:  # it runs the model already
            assert ask(connection, hello(2, model=digest)).model == digest
            assert ask(connection, hello(2, model=digest)).model == digest  # and is offered nothing


@pytest.mark.parametrize("name", ["", "secret", "../model/device.json", "/etc/passwd", "device.json\0", "."])
def test_only_files_of_the_model_are_sent(tmp_path: Path, name: str) -> None:
    digest = write_model(tmp_path / "model", b"graph")
    (tmp_path / "model" / "secret").write_bytes(b"not of the model")
    with running(tmp_path, models=Models(tmp_path / "model", CONFIG)) as server:
        with phone(server) as connection:
            ask(connection, hello(1, model=digest))
            refusal = ask(connection, ModelWant(digest, name, 0))
            assert isinstance(refusal, Refuse) and refusal.code == "unknown"
            assert ask(connection, ModelWant("0" * 64, "device.json", 0)).code == "unknown"
            assert isinstance(ask(connection, ModelWant(digest, "device.json", 0)), ModelChunk)


def test_connected_phones_are_offered_a_new_model(tmp_path: Path) -> None:
    first = write_model(tmp_path / "model", b"first" * 100)
    with running(tmp_path, model_seconds=0.02, models=Models(tmp_path / "model", CONFIG)) as server:
        with phone(server) as connection, phone(server) as silent:
            ask(connection, hello(1, model=first))
            second = write_model(tmp_path / "new", b"second")
            (tmp_path / "model").rename(tmp_path / "old")
            (tmp_path / "new").rename(tmp_path / "model")
            offer = hear(connection)
            assert isinstance(offer, ModelOffer) and offer.digest == second
            assert download(connection, offer)["crban.scores.onnx"] == b"second"
            # A download that has begun can finish.
            chunk = ask(connection, ModelWant(first, "crban.scores.onnx", 5))
            assert chunk.data == b"first" * 99
            assert ask(silent, hello(2)).model == second  # it was not greeted, so it hears of it now


def test_what_cannot_be_offered_leaves_the_old_model(tmp_path: Path) -> None:
    first = write_model(tmp_path / "model", b"first")
    models = Models(tmp_path / "model", CONFIG)
    assert not models.renew()
    file = tmp_path / "model" / "crban.scores.onnx"
    write_model(tmp_path / "model", b"second one")
    file.write_bytes(b"cut")
    with pytest.raises(InputError, match="is corrupted"):
        models.renew()
    assert models.for_user(0) is not None and models.for_user(0).digest == first
    assert not models.renew()  # said once
    (tmp_path / "model" / "device.json").unlink()
    assert not models.renew()
    third = write_model(tmp_path / "model", b"the third one")
    assert models.renew() and models.for_user(0).digest == third
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    shutil.rmtree(tmp_path / "model")
    time.sleep(0.01)
    (tmp_path / "copy").rename(tmp_path / "model")
    assert not models.renew()  # the same model again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "0" * 64}, "was made for another feed than this one"),
        ({"kind": "something"}, "does not describe a device model"),
        ({"files": {"../secret": {"bytes": 1, "sha256": "0" * 64}}}, "names an unknown file"),
        ({"graphs": {}}, "names no graphs"),
    ],
)
def test_a_folder_without_a_model_for_this_feed_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_model(tmp_path / "model", b"graph", **changes)
    with pytest.raises(InputError, match=message):
        Models(tmp_path / "model", CONFIG)
    with pytest.raises(InputError, match="does not exist"):
        Models(tmp_path / "nothing", CONFIG)


def test_a_canary_is_offered_to_its_share_of_the_users(tmp_path: Path) -> None:
    """The channels are written here as edgerec registry does, around models that are not run."""
    place = tmp_path / "registry" / "feed"
    digests = [write_model(place / str(version), b"graph" * version) for version in (1, 2)]

    def offer(share: float, **more: Any) -> None:
        told = [Published(version + 1, digest) for version, digest in enumerate(digests)]
        channels = Channels(stable=told[0], canary=told[1] if share else None, share=share)
        (place / "channels.tmp").write_bytes(msgspec.json.encode(channels))
        (place / "channels.tmp").rename(place / "channels.json")

    offer(0.3)
    models = Models(place, CONFIG)
    offered = [models.for_user(user).digest for user in range(400)]  # type: ignore[union-attr]
    assert set(offered) == set(digests) and 80 < offered.count(digests[1]) < 160
    assert not models.renew()
    offer(1.0)
    assert models.renew() and {models.for_user(user).digest for user in range(50)} == {digests[1]}  # type: ignore[union-attr]
    offer(0.0)
    assert models.renew() and models.for_user(3).digest == digests[0]  # type: ignore[union-attr]
    assert isinstance(models.chunk(ModelWant(digests[1], "device.json", 0)), ModelChunk), (
        "a download may finish"
    )
