"""Every kind of file that the package reads: how a healthy one is made, and what reading it must give.

A reader is the public entry that users call. If it accepts a file, it goes on to use the content: it plays
some steps, reads the log, or writes the page, and raises Harm if anything is not finite, out of range or
illegal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.fuzz.checks import Harm, check_actions, check_observation
from edgerec_gym.agents.export.export import export
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench.learning_curve import FILE as CURVE
from edgerec_gym.bench.mix.prices import at_price
from edgerec_gym.bench.mix.track import PRICES, at_equal_share
from edgerec_gym.bench.request.policies import make_waiting
from edgerec_gym.bench.request.track import WAITING_PLANS, waiting_plans
from edgerec_gym.bench.setting import Setting, make_policy
from edgerec_gym.bench.shipped import shipped_folder
from edgerec_gym.bench.track import find_track
from edgerec_gym.cloud.item_table import ITEM_TABLE
from edgerec_gym.commands.demo import PAGE, QUICK, RECORD, run_demo
from edgerec_gym.device.description import DESCRIPTION, GOLDEN, file_name
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.evaluation.cache import Entry, Place, played, saved_rows
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.files import write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.item_statistics import learn_items
from edgerec_gym.logs.sessions import SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table import import_table
from edgerec_gym.pages.report import write_report_page
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import SHIPPED_FOLDER, SIMULATOR_FILES, Scenario

ROWS, STEPS = 3, 8  # of play, after a file was accepted
WORLD = "lite"
RESULTS = Path(__file__).parents[1] / "results"
MARKUP = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Document:
    """One kind of file.

    Attributes:
        name: its row in the table.
        file: the file to corrupt, in the folder.
        make: writes a healthy folder; documents with the same one share it.
        read: reads the folder through a public entry and uses the content; a second argument is a folder to
            write into.
        seal: writes the hash of a changed file where the folder records it, so that the change is not found
            by its hash alone. None if nothing records it.
    """

    name: str
    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path, Path], None]
    seal: Callable[[Path], None] | None = None

    @property
    def form(self) -> str:
        """Format of the file."""
        return self.file.rpartition(".")[2]


# --- scenarios ------------------------------------------------------------------------------------------


def _make_scenario(folder: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / WORLD, folder, ignore=shutil.ignore_patterns("agents"))


def _seal_scenario(folder: Path) -> None:
    content = json.loads((folder / "scenario.json").read_text())
    content["sha256"] = {name: _sha256(folder / name) for name in SIMULATOR_FILES}
    (folder / "scenario.json").write_text(json.dumps(content))


def _read_scenario(folder: Path, _: Path) -> None:
    scenario = Scenario.load(folder)
    kinds = ("learned",) if scenario.synthetic is None else ("learned", "synthetic")
    for users in kinds:
        play_some("joint", scenario, users)


def play_some(track: str, scenario: Any, users: Any, policy: Any = None) -> None:
    """Play some steps with a policy, or at random; raise Harm if anything is wrong."""
    env = make_feeds(track, ROWS, scenario=scenario, users=users)
    observation, _ = env.reset(seed=1)
    rng = np.random.default_rng(0)
    if policy is not None:
        if hasattr(policy, "bind"):
            policy.bind(env)
        policy.reset(np.ones(ROWS, np.bool_))
    for _ in range(STEPS):
        check_observation(observation, env.single_observation_space)
        mask = observation["action_mask"]
        actions = (
            (rng.random(mask.shape) * mask).argmax(axis=-1) if policy is None else policy.act(observation)
        )
        check_actions(actions, mask)
        observation, reward, _, _, _ = env.step(actions)
        if not np.isfinite(reward).all():
            raise Harm(f"a reward is {reward}")
    env.close()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- logs and tables ------------------------------------------------------------------------------------


def _make_log(folder: Path) -> None:
    collect(folder, preset_name=WORLD, sessions=24, seed=0)


def _make_items(folder: Path) -> None:
    _make_log(folder)
    learn_items(LogReader(folder), folds=2).save(folder / ITEM_TABLE)


def _read_log(folder: Path, _: Path) -> None:
    reader = LogReader(folder)
    slots = sum(table.num_rows for table in reader.batches())
    features, hours = reader.session_starts()
    if (slots, len(hours)) != (reader.slots, reader.sessions):
        raise Harm(f"{slots} slots of {len(hours)} sessions, not {reader.slots} of {reader.sessions}")
    if not np.isfinite(features).all() or np.abs(features).max(initial=0) > 1 + 1e-6:
        raise Harm("user features out of range")
    for sessions in SessionStream(reader, None).chunks():
        for name in ("scalars", "context", "summary", "actions", "user"):
            if not np.isfinite(getattr(sessions, name)).all():
                raise Harm(f"{name} of the sessions are not finite")
        sessions.cards(sessions.answered_rows(np.arange(len(sessions))))


def _make_table(kind: str, folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    day, user, page, rank = (axis.ravel() for axis in np.indices((8, 10, 2, 5)))
    n = len(day)
    table = pl.DataFrame(
        {
            "uid": [f"u{k}" for k in user],
            "sku": rng.integers(0, 40, n) + 1000,
            "ts": 1_700_006_400 + day * 86400 + 43200 + page * 60 + user,
            "page_id": [f"p{d}-{p}" for d, p in zip(day, page, strict=True)],
            "rank": rank,
            "clicked": (rng.random(n) < 0.25).astype(np.int64),
            "price": rng.random(n).round(3),
        }
    )
    table.write_csv(folder / "table.csv") if kind == "csv" else table.write_parquet(folder / "table.parquet")
    write_json(
        folder / "mapping.json",
        {
            "user": "uid",
            "item": "sku",
            "time": "ts",
            "click": "clicked",
            "list": "page_id",
            "position": "rank",
            "price": "price",
            "time_unit": "s",
            "session_gap_minutes": 30,
            "feed": {"max_slots": 20, "cloud": {"scan_limit": 100}},
        },
    )


def _read_table(kind: str, folder: Path, out: Path) -> None:
    import_table(folder / f"table.{kind}", folder / "mapping.json", out / "log")
    _read_log(out / "log", out)


# --- trained runs ---------------------------------------------------------------------------------------


def _run(track: str, name: str) -> Path:
    return shipped_folder(track, WORLD) / "runs" / name


def _read_run(track: str, folder: Path, _: Path) -> None:
    play_some(track, WORLD, "synthetic", find_policy(str(folder), track, WORLD, "synthetic"))


def _read_waiting(folder: Path, _: Path) -> None:
    place = Place("EdgeFeedRequest-v0", WORLD)
    for plan in waiting_plans(folder).values():
        play_some(
            "request", WORLD, "synthetic", make_waiting(place, str(folder), plan["price"], plan["later"])
        )


def _make_prices(folder: Path) -> None:
    shutil.copytree(shipped_folder("mix", WORLD), folder)


def _read_prices(folder: Path, out: Path) -> None:
    track = find_track("mix")
    setting = Setting(track, WORLD, track.quick, 1, (), folder, out, quick=True)
    place = Place(track.env_id, WORLD, sessions=4)
    if not (folder / PRICES).is_file():
        return  # the prices are then searched for, which takes minutes
    for entry in at_equal_share(setting, place, setting.entries(), 1, None):
        if "price" in entry.arguments:
            priced = at_price(entry, entry.arguments["price"])
            play_some("mix", WORLD, "synthetic", priced.make(place, **priced.arguments))


# --- device models --------------------------------------------------------------------------------------


def _make_device(name: str, engine: str, folder: Path) -> None:
    export(_run("rerank", name), folder, scenario=WORLD, engine=engine)
    session = DeviceSession(load(folder))
    for sequence in ("exposures", "page_views"):
        for k in range(3):
            session.append(sequence, np.full(session.model.sizes[sequence][1], 0.1 + 0.2 * k, np.float32))
    session.save(folder / "session.safetensors")


def _seal_device(folder: Path) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    files = {file_name(name, graph["engine"]): graph for name, graph in content["graphs"].items()}
    for name, file in (*files.items(), (GOLDEN, content["golden"])):
        file |= {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / DESCRIPTION).write_text(json.dumps(content))


def _read_device(folder: Path, _: Path) -> None:
    play_some("rerank", WORLD, "synthetic", find_policy(str(folder), "rerank", WORLD, "synthetic"))


def _read_device_session(folder: Path, _: Path) -> None:
    model = load(folder)
    session = DeviceSession(model)
    session.restore(folder / "session.safetensors")
    rng = np.random.default_rng(0)
    for k in range(3):
        session.append("exposures", rng.random(model.sizes["exposures"][1], np.float32))
        sizes = {key: model.sizes[key] for key in ("user", "pool", "screen", "context") if key in model.sizes}
        found = session.rerank({key: rng.random(shape, np.float32) for key, shape in sizes.items()})
        shown = found[found >= 0]
        if len(set(shown.tolist())) != len(shown) or shown.max() >= model.sizes["pool"][0]:
            raise Harm(f"list {found} of call {k}")


# --- results --------------------------------------------------------------------------------------------


def _make_evaluation(folder: Path) -> None:
    policies = [make_policy(Place("EdgeFeed-v0", WORLD), name) for name in ("keep", "random")]
    results = evaluate(
        policies, env_id="EdgeFeed-v0", scenario=WORLD, users=("synthetic",), sessions=8, seed=0
    )
    curve = {"slots": [64.0, 128.0], "reward": [1.0, 1.5]}
    folder.mkdir()
    write_json(folder / "results.json", {"title": "fuzz", "results": results, "training_curve": curve})


def _make_rows(folder: Path) -> None:
    content = json.loads((RESULTS / "rerank.json").read_text())
    folder.mkdir()
    write_json(folder / "rerank.json", {**content, "rows": content["rows"][:60]})


def _make_copy(name: str, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(RESULTS / name, folder / name)


def _make_training(folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(_run("joint", "pointer-ppo-0") / "policy.json", folder / "policy.json")
    figures = {"mean": 2.0, "low": 1.5, "high": 2.5}
    points = [{"slots": s, "learned": figures, "synthetic": figures} for s in (1000, 2000, 3000)]
    training = {"slots": [500.0, 1000.0], "reward": [1.0, 2.0]}
    told = {"sessions": 8, "seed": 0, "scenario": WORLD}
    write_json(folder / CURVE, {**told, "training": training, "checkpoints": points})


def _read_report(folder: Path, out: Path) -> None:
    page, _, _ = write_report_page(folder, out / "report.html")
    text = page.read_text(encoding="utf-8")
    if not text.rstrip().endswith("</html>") or MARKUP in text:
        raise Harm("the page is not whole, or holds markup from a file")


def _read_rows(folder: Path, out: Path) -> None:
    saved_rows(folder / "rerank.json")
    _read_report(folder, out)


def _make_demo(folder: Path) -> None:
    folder.mkdir()
    _make_evaluation(folder / "report")
    write_json(folder / RECORD, {"seed": 0, **asdict(QUICK)})
    (folder / PAGE).write_text("<html></html>")


def _read_demo(folder: Path, _: Path) -> None:
    run_demo(folder, quick=True, seed=0)


_CACHED = Place("EdgeFeed-v0", WORLD, sessions=16)


def _make_cache(folder: Path) -> None:
    played([Entry("keep", make_policy, {"name": "keep"})], _CACHED, folder, workers=1)
    [file] = folder.glob("*.safetensors")
    file.rename(folder / "cached.safetensors")  # the real name depends on the code


def _read_cache(folder: Path, out: Path) -> None:
    entry = Entry("keep", make_policy, {"name": "keep"})
    played([entry], _CACHED, out, workers=1)
    [file] = out.glob("*.safetensors")
    file.unlink()
    if os.path.lexists(folder / "cached.safetensors"):  # what is missing is played again
        os.replace(folder / "cached.safetensors", file)
    [found] = played([entry], _CACHED, out, workers=1).values()
    if not np.isfinite(found["value"]).all() or len(found["value"]) != _CACHED.sessions:
        raise Harm("values that are not finite, or of another number of sessions")


# --- the table ------------------------------------------------------------------------------------------

_RUNS = (
    ("rerank", "crban-0"), ("rerank", "pointer-0"), ("rerank", "sequence-search-0"), ("joint", "edgerec-0"),
    ("mix", "esan-0"), ("request", "uplift-x-0"), ("request", "request-dqn-0"), ("joint", "pointer-ppo-0"),
)  # fmt: skip
_DEVICES = ("crban-0", "pointer-0", "sequence-search-0")
_makers: dict[tuple[Any, ...], Callable[[Path], Any]] = {}


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A partial that is the same object for the same arguments, so that documents share a folder."""
    return _makers.setdefault((function, *arguments), partial(function, *arguments))


def _copy_run(track: str, name: str, folder: Path) -> None:
    shutil.copytree(_run(track, name), folder)


def _documents() -> list[Document]:
    found = [
        Document("scenario.json", "scenario.json", _make_scenario, _read_scenario),
        Document("scenario: catalog.parquet", "catalog.parquet", _make_scenario, _read_scenario),
    ]
    for file in SIMULATOR_FILES:
        found.append(Document(file, file, _make_scenario, _read_scenario, _seal_scenario))
    for name, file in (
        ("logs.json", "logs.json"),
        ("log part", "part-00000.parquet"),
        ("log: catalog.parquet", "catalog.parquet"),
    ):
        found.append(Document(name, file, _make_log, _read_log))
    found.append(Document("log: item_table.parquet", ITEM_TABLE, _make_items, _read_log))
    for kind in ("csv", "parquet"):
        made, read = _bound(_make_table, kind), _bound(_read_table, kind)
        found.append(Document(f"table.{kind}", f"table.{kind}", made, read))
        found.append(Document(f"mapping.json ({kind})", "mapping.json", made, read))
    for track, run in _RUNS:
        made, read = _bound(_copy_run, track, run), _bound(_read_run, track)
        for file in ("policy.json", "policy.safetensors"):
            found.append(Document(f"{file} ({run[:-2]})", file, made, read))
        if run == "edgerec-0":
            found.append(Document("rules.toml", "rules.toml", made, read))
    made = _bound(_copy_run, "request", "uplift-x-0")
    found.append(Document("waiting.json", WAITING_PLANS, made, _read_waiting))
    found.append(Document("prices.json", PRICES, _make_prices, _read_prices))
    for device, graphs in zip(
        _DEVICES,
        (
            ("crban.scores", "crban.exposures"),
            ("generator.encode", "generator.step"),
            ("evaluator.encode", "evaluator.extend", "evaluator.judge"),
        ),
        strict=True,
    ):
        made = _bound(_make_device, device, "onnxruntime")
        found.append(Document(f"device.json ({device[:-2]})", DESCRIPTION, made, _read_device))
        for graph in graphs:
            found.append(Document(f"{graph}.onnx", f"{graph}.onnx", made, _read_device, _seal_device))
        if device == _DEVICES[0]:
            found.append(Document("device session", "session.safetensors", made, _read_device_session))
            found.append(Document("device: golden", GOLDEN, made, _read_device, _seal_device))
            made = _bound(_make_device, device, "mnn")
            file = "crban.scores.mnn"
            found.append(Document("device.json (mnn)", DESCRIPTION, made, _read_device))
            found.append(Document(file, file, made, _read_device, _seal_device))
    found += [
        Document("report: results.json", "results.json", _make_evaluation, _read_report),
        Document("report: rows", "rerank.json", _make_rows, _read_rows),
        Document("report: policy.json", "policy.json", _make_training, _read_report),
        Document("report: learning_curve.json", CURVE, _make_training, _read_report),
        Document("demo.json", RECORD, _make_demo, _read_demo),
        Document("demo: results.json", "report/results.json", _make_demo, _read_demo),
        Document("cached sessions", "cached.safetensors", _make_cache, _read_cache),
    ]
    for name in ("fidelity.json", "exploitation_default.json"):
        made = _bound(_make_copy, name)
        found.append(Document(f"report: {name}", name, made, _read_report))
    return found


DOCUMENTS = {document.name: document for document in _documents()}
