"""Export logs as a Minari data set (Farama's standard for offline RL), with propensities, for any track.

The folder's name is the data set's id, and its parent is what Minari calls `MINARI_DATASETS_PATH`. The format
is HDF5, Minari's default. Episodes are written one by one under a temporary name, reading the log in chunks,
so that a killed export leaves no partial data set.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa

from edgerec_gym import __version__
from edgerec_gym.agents.data.daily_items import DailyItems, DailyLog, has_item_propensities
from edgerec_gym.agents.data.log_stream import log_tables
from edgerec_gym.agents.data.logged_observations import TrackLog, step_rewards, track_actions, with_last
from edgerec_gym.agents.data.logged_pages import with_candidates
from edgerec_gym.answers import LEAVE
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import atomic_folder, check_room, make_folder
from edgerec_gym.logs.schema import OPTIONAL, SCHEMA
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.registration import IDS, SLATE, track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import action_space, observation_space

NAME = re.compile(r"[-_\w]+-v\d+")  # valid id of a Minari data set
SPARE_BYTES = 2**25  # beyond what is being written: HDF5's own caches and indices
BLOCK_SLOTS = 4096  # slots observed at once; about 100 MB with the paper's sizes
Progress = Callable[[int, int], None]


def export_minari(
    logs: str | Path,
    out: str | Path,
    *,
    env_id: str = "EdgeFeed-v0",
    scenario: str | None = None,
    sessions: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write sessions of a log as episodes of an environment.

    Observations equal the environment's, with scores accurate to 2e-6, since logs hold pages and not slots.
    There is one more observation than steps, but logs lack a page that arrives with the last step. In
    imported logs, a page's candidates are what it showed, and with propensities the items of its day. An
    episode terminates if the user leaves; any other end is a truncation. Infos describe the logging policy:
    `propensity` of the action, `request_propensity`, `randomised`. There is one more than steps; the first
    is empty (NaN, False).

    Args:
        logs: log folder.
        out: folder of the data set, named like "edgefeed-request-v0"; must not exist.
        env_id: environment whose actions and masks are written; the log must hold no other actions.
        scenario: shipped name or folder for :meth:`recover_environment`; default: the logged scenario.
        sessions: maximum number of sessions, from the first on; None exports all.
        progress: called with (sessions done, total).

    Returns:
        {"dataset", "episodes", "steps", "env_id"}.

    Raises:
        InputError: if the name is invalid, the folder exists, the id does not fit the log, or sessions < 1.
        MissingExtraError: if Minari is not installed.
    """
    storage_class = _require_minari()
    out, track = Path(out), track_of(env_id)
    if track == SLATE:
        raise InputError("a log holds slots, not plans; ids: " + ", ".join(i for i in IDS if IDS[i] != SLATE))
    if not NAME.fullmatch(out.name):
        raise InputError(f"{out.name!r} cannot name a data set; use letters, digits, - and _, then -v0")
    if out.exists():
        raise InputError(f"{out} exists; choose another folder")
    if sessions is not None and sessions < 1:
        raise InputError(f"sessions must be at least 1, got {sessions}")
    reader = LogReader(logs)
    spec = environment_spec(reader, track, scenario)
    wanted = reader.sessions if sessions is None else min(sessions, reader.sessions)
    make_folder(out.parent)
    # Minari joins paths to get file sizes, which only works for absolute paths.
    with atomic_folder(out.absolute()) as temporary:
        file = temporary / "data" / "main_data.hdf5"
        check_room(temporary, SPARE_BYTES, file)
        storage = storage_class.new(
            temporary / "data",
            observation_space=observation_space(reader.config, track),
            action_space=action_space(reader.config, track),
            env_spec=spec,
            data_format="hdf5",
        )
        storage.update_metadata(_about(out.name, reader))
        storage.update_episodes(_episodes(reader, track, wanted, file, progress))
    raw = storage_class.read_raw_metadata(out / "data")
    return {
        "dataset": out.name,
        "episodes": raw["total_episodes"],
        "steps": raw["total_steps"],
        "env_id": spec.id,
    }


def _require_minari() -> Any:
    try:
        import h5py  # noqa: F401
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise MissingExtraError("Minari data sets", "offline") from None
    return MinariStorage


def environment_spec(reader: LogReader, track: str, scenario: str | None = None) -> Any:
    """Return the Gymnasium spec of the logged environment; raise InputError if its scenario is unknown."""
    known = reader.provenance.get("preset") or reader.provenance.get("scenario")
    name = scenario or known
    if name is None:
        raise InputError(
            f"{reader.folder} does not record its scenario; name the one to recover with --scenario (of an "
            "imported log, what `edgerec fit` made of it)"
        )
    loaded = Scenario.load(name)
    logged, plain = reader.config.to_dict(), loaded.config.to_dict()
    spec = copy.deepcopy(gym.spec(next(i for i in IDS if IDS[i] == track)))
    spec.kwargs |= {
        "scenario": str(name),
        "users": "synthetic" if loaded.synthetic is not None else "learned",
    }
    if reader.provenance.get("source") == "learned":
        spec.kwargs["users"] = "learned"
    for key in {**logged, **plain}:
        if logged.get(key) != plain.get(key):  # fields at their default may be left out
            spec.kwargs[key] = logged.get(key, getattr(reader.config, key))
    return spec


def _about(name: str, reader: LogReader) -> dict[str, Any]:
    from minari import __version__ as minari_version

    policy = reader.provenance.get("policy", "unknown")
    return {
        "dataset_id": name,
        "minari_version": minari_version,
        "algorithm_name": str(policy),
        "description": f"Feed sessions logged under the policy {policy}; infos hold its propensities.",
        "requirements": [f"edgerec_gym>={__version__}"],
        "provenance": reader.provenance,
    }


def _episodes(
    reader: LogReader, track: str, wanted: int, file: Path, progress: Progress | None
) -> Iterator[Any]:
    items = DailyItems.of(reader) if has_item_propensities(reader) else None
    done = 0
    for table in log_tables(
        reader, None, lambda ids: np.ones(len(ids), np.bool_), [*SCHEMA.names, *OPTIONAL]
    ):
        for episode in _chunk(reader, table, track, file, items):
            yield episode
            done += 1
            if progress and (done % 50 == 0 or done == wanted):
                progress(done, wanted)
            if done == wanted:
                return


def _chunk(
    reader: LogReader, plain: pa.Table, track: str, file: Path, items: DailyItems | None
) -> Iterator[Any]:
    """Yield the episodes of some sessions in log order."""
    config, imported = reader.config, reader.provenance.get("source") == "table"
    if imported:
        if "order_within_page" in reader.unidentified and (plain["page_age"].to_numpy() > 0).any():
            raise InputError(
                f"{reader.folder} does not tell in which order the cards of a page were placed, so not what "
                'was decided at which slot; import it with \'position\', or as a stream ("list": "row '
                'number")'
            )
        plain = with_candidates(plain, LoggedSessions.from_table(plain, config, reader.catalog), config)
    table = with_last(plain)
    sessions = LoggedSessions.from_table(table, config, reader.catalog)
    log: TrackLog
    if items is None:
        log = TrackLog(table, sessions, config, track)
    else:
        log = DailyLog(table, sessions, config, track, items)
    if imported:
        table = log.with_actions(table)
    reward = step_rewards(table, sessions, config)
    length = np.diff(sessions.starts)  # includes the row after the last slot
    infos = {
        "propensity": table["propensity"].fill_null(np.nan).to_numpy(),
        "request_propensity": table["request_propensity"].fill_null(np.nan).to_numpy(),
        "randomised": table["randomised"].to_numpy(zero_copy_only=False),
    }
    first = 0
    while first < len(length):
        count = max(1, int(np.searchsorted(np.cumsum(length[first:]), BLOCK_SLOTS, side="right")))
        some = np.arange(first, min(first + count, len(length)))
        session = np.repeat(some, length[some])
        slot = np.arange(sessions.starts[first], sessions.starts[some[-1] + 1]) - sessions.starts[session]
        seen = log.observations(session, slot)
        check_room(file.parent, 2 * sum(values.nbytes for values in seen.values()) + SPARE_BYTES, file)
        for at in some:
            rows = np.arange(sessions.starts[at], sessions.starts[at + 1])
            here = slice(rows[0] - sessions.starts[first], rows[-1] + 1 - sessions.starts[first])
            own = {key: values[here] for key, values in seen.items()}
            yield _episode(log, table, own, rows, reward, infos)
        first = some[-1] + 1


def _episode(
    log: TrackLog,
    table: pa.Table,
    seen: dict[str, np.ndarray],
    rows: np.ndarray,
    reward: np.ndarray,
    infos: dict[str, np.ndarray],
) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    steps = rows[:-1]
    last = np.arange(len(steps)) == len(steps) - 1
    left = bool((log.sessions.actions[steps, LEAVE] > 0).any())
    acted = track_actions(log, table, {key: values[:-1] for key, values in seen.items()}, steps)
    return EpisodeBuffer(
        observations=seen,
        actions=acted,
        rewards=reward[steps],
        terminations=last & left,
        truncations=last & (not left),
        infos={name: np.concatenate([_nothing(v), v[steps]]) for name, v in infos.items()},
    )


def _nothing(values: np.ndarray) -> np.ndarray:
    """Return the empty entry before the first step, when no action has been taken."""
    return np.array([False]) if values.dtype == np.bool_ else np.array([np.nan])
