"""Learns users from logs: an ensemble of networks fitted by maximum likelihood, written as a scenario."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.config import FeedConfig, SyntheticUserConfig
from edgerec_gym.documents import MOST_BYTES, read_object
from edgerec_gym.errors import InputError, MissingExtraError, shown
from edgerec_gym.files import make_folder, one_writer, remove_folder, remove_leftovers, write_json
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario

try:
    import torch
except ImportError:
    raise MissingExtraError("fitting users", "train") from None

from edgerec_gym.logs.sessions import LoggedSessions, SessionStream, split_sessions
from edgerec_gym.logs.visits import needs_supply, sample_visits
from edgerec_gym.simulator.export import export
from edgerec_gym.simulator.losses import fitted_heads, held_out_figures
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.simulator.statistics import LogStatistics
from edgerec_gym.simulator.trainer import UserTrainer, batch_slots

CHECKPOINTS = "fit"  # subfolder of the scenario, removed at the end
NO_HAZARD = 1e-9  # probability of leaving, where something else ends sessions
BINS = 8  # of each number that users of an imported log read
STOPPING_SESSIONS = 3000  # maximum number

Report = Callable[[int, int, str], None]
Check = Callable[[Scenario, Path, int], dict[str, Any]]


@one_writer("out_folder")
def fit(
    log_folder: str | Path,
    out_folder: str | Path,
    *,
    seed: int = 0,
    ensemble: int = 5,
    epochs: int = 20,
    hidden: int = 48,
    held_out_from: int | None = None,
    threads: int = 2,
    resume: bool = True,
    check: Check | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Fit users on a log and write a scenario folder.

    Members see all sessions of an imported log, and differ by initial weights and order (Lakshminarayanan et
    al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017). Those of
    a collected log, which may be as long as one likes, see a bootstrap of its sessions each.

    Called again with the same arguments, a killed fit continues after each member's last complete epoch, and
    a finished one returns its figures.

    Args:
        log_folder: log folder, see :class:`~edgerec_gym.logs.store.LogReader`.
        out_folder: folder of the scenario.
        seed: seed of initial weights, bootstraps and the order of batches.
        ensemble: number of members.
        epochs: maximum number of epochs of each member; training stops when the loss on a tenth of the
            sessions, set aside for this, no longer improves.
        hidden: size of the exposure GRU.
        held_out_from: first held-out day. By default, the second period of a log that has one (EB-NeRD's
            validation week), else the last seventh of the days, or of a one-day log every seventh session.
        threads: members trained at a time.
        resume: continue from what is in `out_folder`; False starts over.
        check: judges rollouts where sessions play logged visits, given scenario, log and seed; see
            :func:`edgerec_gym.fidelity.offer.check_offer`. Its figures are kept under "rollouts".
        progress: called with (epochs done, maximum number of epochs, text).

    Returns:
        Figures on held-out sessions (:func:`~edgerec_gym.simulator.losses.held_out_figures`).

    Raises:
        InputError: bad arguments, a bad log, or `out_folder` holds an unfinished fit with other arguments, or
            users fitted on another log.
    """
    for name, value in (("ensemble", ensemble), ("epochs", epochs), ("threads", threads), ("hidden", hidden)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    reader = LogReader(log_folder)
    if held_out_from is None:
        held_out_from = reader.provenance.get("first_validation_day")
    settings = {
        "seed": seed,
        "ensemble": ensemble,
        "epochs": epochs,
        "hidden": hidden,
        "held_out_from": held_out_from,
        "sessions": reader.sessions,
        "slots": reader.slots,
        **({"item_columns": list(reader.config.item_columns)} if reader.config.item_columns else {}),
    }
    out = Path(out_folder)
    if resume:
        _check_log(out, reader)
    finished = _finished(out, reader, settings) if resume else None
    if finished is not None:
        return finished
    train, stop, held_out = split_sessions(reader, held_out_from)
    stopping = stopping_sessions(stop)
    seen = LogStatistics(reader.config, seed)
    for chunk in train.chunks():
        seen.add(chunk)
    if not seen.slots or stopping is None:
        raise InputError(f"{log_folder} has too few answered slots to fit and hold out sessions")
    heads = fitted_heads(frozenset(reader.unidentified), reader.config.n_responses)
    catalog, hazard = reader.catalog, seen.hazard
    if needs_supply(reader.config, reader.unidentified):
        catalog = catalog.with_supply(sample_visits(reader, held_out_from, seed))
        hazard = NO_HAZARD  # a session is as long as the visit that it plays
    imported = "synthetic" not in reader.provenance
    work = work_folder(out, settings | {"log": _log_digest(reader)}, resume)
    trainers = [
        UserTrainer(
            new_network(
                reader.config,
                reader.unidentified,
                seen,
                seed=seed,
                member=k,
                hidden=hidden,
                hazard=hazard,
                bins=BINS if imported else 0,
            ),
            train,
            stopping,
            heads,
            bootstrap=[seed, k, 1] if ensemble > 1 and not imported else None,
            seed=[seed, k, 2],
            path=work / f"member{k}.safetensors",
            averaged=imported,
        )
        for k in range(ensemble)
    ]
    torch_threads = torch.get_num_threads()
    try:
        slots = batch_slots(seen.slots, bootstrap=not imported)
        run_trainers(trainers, epochs, slots, threads, progress)
        torch.set_num_threads(1)
        networks = [trainer.network.eval() for trainer in trainers]
        figures = held_out_figures(networks, held_out, heads, reader.config.responses)
    finally:
        torch.set_num_threads(torch_threads)
    figures["epochs"] = [trainer.progress.epoch for trainer in trainers]
    if "leave" in reader.unidentified:
        figures["leave"] = "not identified: sessions are as long as logged visits"
    export(networks, *seen.starts, folder=out)
    synthetic = reader.provenance.get("synthetic")  # checked, but for its values
    fitted = Scenario(
        name=out.resolve().name,
        config=reader.config,
        catalog=catalog,
        synthetic=None if synthetic is None else SyntheticUserConfig.from_dict(synthetic),
        unidentified=reader.unidentified,
        provenance={"logs": reader.provenance, "fit": settings},
        fidelity=figures,
    )
    fitted.save(out)
    if check is not None and fitted.catalog.supply is not None:
        figures["rollouts"] = _checked(check, out, reader, seed)
        replace(fitted, fidelity=figures).save(out)
    remove_folder(work)
    return figures


def _checked(check: Check, out: Path, reader: LogReader, seed: int) -> dict[str, Any]:
    """Return what a check says of fitted users; a log that is too short gives the reason instead."""
    try:
        return check(Scenario.load(out), reader.folder, seed)
    except InputError as error:
        return {"weak": [], "not_checked": str(error)}


def _log_digest(reader: LogReader) -> str:
    """Return a digest of what a log says about itself, which is never the same for two different logs."""
    told = {key: reader.header[key] for key in ("config", "provenance", "unidentified")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _check_log(out: Path, reader: LogReader) -> None:
    """Raise InputError if `out` holds users that were fitted on another log."""
    file = out / "scenario.json"
    if not file.is_file():
        return
    provenance = read_object(file).get("provenance")
    found = provenance.get("logs") if isinstance(provenance, dict) else None
    if found == reader.provenance:
        return
    told = found if isinstance(found, dict) else {}
    keys = sorted(k for k in {*told, *reader.provenance} if told.get(k) != reader.provenance.get(k))
    raise InputError(
        f"{out} holds users that were fitted on another log, which differs from {reader.folder} in "
        f"{', '.join(keys)}; choose another folder, or remove this one first"
    )


def _finished(out: Path, reader: LogReader, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figures of an earlier fit of the same log with the same settings, if `out` holds one."""
    if not (out / "scenario.json").is_file() or (out / CHECKPOINTS).exists():
        return None
    found = read_object(out / "scenario.json", most_bytes=MOST_BYTES)
    if found.get("provenance") != {"logs": reader.provenance, "fit": settings}:
        return None
    scenario = Scenario.load(out)
    scenario.simulator_files()
    return scenario.fidelity


def work_folder(out: Path, settings: dict[str, Any], resume: bool = True) -> Path:
    """Return the checkpoint folder in `out`; InputError if it belongs to a fit with other settings."""
    work = out / CHECKPOINTS
    record = work / "settings.json"
    if not (resume and record.is_file()):
        remove_folder(work)
    remove_leftovers(work)
    if record.is_file():
        found = read_object(record)
        if "log" in settings and found.get("log") != settings["log"]:
            raise InputError(
                f"{out} holds an unfinished fit of another log; finish it, remove the folder, or choose "
                "another"
            )
        different = [name for name in settings if found.get(name) != settings[name]]
        if different:
            name = different[0]
            raise InputError(
                f"{out} holds an unfinished fit with {name} = {shown(found.get(name))}, "
                f"not {settings[name]!r}; finish it, remove the folder, or choose another"
            )
    else:
        write_json(make_folder(work) / "settings.json", settings)
    return work


def stopping_sessions(stream: SessionStream) -> LoggedSessions | None:
    """Return up to STOPPING_SESSIONS sessions, evenly spread over the first chunk with answers, or None."""
    for chunk in stream.chunks():
        index = np.flatnonzero(chunk.answered > 0)
        if len(index):
            count = min(STOPPING_SESSIONS, len(index))
            return chunk.select(index[np.linspace(0, len(index) - 1, count).astype(np.int64)])
    return None


def new_network(
    config: FeedConfig,
    unidentified: tuple[str, ...],
    seen: LogStatistics,
    *,
    seed: int,
    member: int = 0,
    hidden: int = 48,
    behaviour: bool = True,
    hazard: float | None = None,
    bins: int = 0,
) -> UserNetwork:
    """Make a network to train, in the units of a log; for the arguments see :func:`fit` and UserNetwork."""
    # Initial weights come from torch's global generator, whose state is restored.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1000 + member)
        network = UserNetwork(config, unidentified, hidden, behaviour=behaviour, bins=bins)
    network.inputs.set_scales(*seen.scales())
    if bins:
        network.inputs.set_bins(*seen.bins(bins, page=network.inputs.reads_page))
    if "leave" in unidentified:
        network.set_leave_hazard(seen.hazard if hazard is None else hazard)
    return network


def run_trainers(
    trainers: list[UserTrainer], epochs: int, slots: int, threads: int, progress: Report | None
) -> None:
    """Train networks to their best weights, `threads` at a time, each on one torch thread.

    Args:
        trainers: one per network.
        epochs: maximum number of epochs of each network.
        slots: padded slots in a batch.
        threads: networks trained at a time.
        progress: called with (epochs done, maximum number of epochs, text).
    """
    stop, lock = threading.Event(), threading.Lock()

    def total() -> int:
        return sum(t.progress.epoch if t.done else epochs for t in trainers)

    def report() -> None:
        if progress:
            with lock:
                done = sum(t.progress.epoch for t in trainers)
                best = min(t.progress.best_loss for t in trainers)
                progress(done, total(), f"held-out loss {best:.4f}" if math.isfinite(best) else "")

    def train(trainer: UserTrainer) -> None:
        torch.set_num_threads(1)  # for this worker; small matrices do not benefit from more
        try:
            while not (stop.is_set() or trainer.done or trainer.progress.epoch >= epochs):
                trainer.run_epoch(slots, stop)
                report()
            trainer.network.load_state_dict(trainer.best)
        except BaseException:
            stop.set()
            raise

    report()
    with ThreadPoolExecutor(min(threads, len(trainers))) as pool:
        futures = [pool.submit(train, trainer) for trainer in trainers]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()  # after Ctrl-C, the workers end within a batch
