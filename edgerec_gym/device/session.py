"""An agent as the phone runs it: one session, one thread; torch is not imported.

The perception takes one step per event, and its codes for the event are kept (:class:`DeviceSession`);
re-ranking reads the kept codes (EdgeRec, CIKM'20, section 3). The files are those of
:mod:`edgerec_gym.device.files`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgerec_gym.device import trial
from edgerec_gym.device.beam_search import Found
from edgerec_gym.device.codes import EventCodes
from edgerec_gym.device.description import (
    CRBAN,
    EVALUATOR,
    GENERATOR,
    SCORER,
    SEQUENCES,
    VALUES,
    digest_of,
    read_description,
)
from edgerec_gym.device.engines.engine import ENGINES, Arrays
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path
from edgerec_gym.policy import NOT_SHOWN, Observation, check_finite
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.tensors import read_tensors

PAGE_AGE = CONTEXT.index("page_age")
READ = ("user", "pool", "screen", "context")  # keys of the observation that re-ranking reads
MOST_EVENTS = 2**31  # in a session
ABSENT = -1e9  # score of a used-up pool row


@dataclass
class KeptCodes:
    """What a phone keeps of one sequence for one network.

    Attributes:
        hidden: (states, 1, H) float32 state of the GRUs.
        keys: (L, A) float32 of the last L events; event number n is at n mod L.
        values: (L, V) float32.
        interests: (L, W) float32 for the match with live interest, if the network has one.
        count: number of events so far.
    """

    hidden: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    interests: np.ndarray
    count: int = 0

    def read(self) -> Arrays:
        """The codes of the last events; if there are none, a row of zeros, which changes nothing."""
        length = len(self.keys)
        kept = max(1, min(self.count, length))
        ages = (self.count - 1 - np.arange(kept)) % length  # number of events since each
        return {
            "keys": self.keys[:kept],
            "values": self.values[:kept],
            "interests": self.interests[:kept],
            "ages": ages.astype(np.float32),
        }


@dataclass
class KeptEvents:
    """The last events of a sequence as they came, for a model that takes over.

    Attributes:
        rows: (L, W) float32; event number n is at n mod L.
        count: number of events so far.
    """

    rows: np.ndarray
    count: int = 0

    def append(self, row: np.ndarray) -> None:
        """Keep one event (W,)."""
        self.rows[self.count % len(self.rows)] = row
        self.count += 1

    def read(self) -> np.ndarray:
        """The last events (at most L, W), the oldest first."""
        length = len(self.rows)
        first = max(0, self.count - length)
        return self.rows[np.arange(first, self.count) % length]


class DeviceSession:
    """One user's session: what the phone keeps, and the re-rankings and decisions that read it.

    Args:
        model: the model to run.

    Attributes:
        kept: codes by (network, sequence), of re-rankers that attend to keys.
        codes: the same of other networks.
        events: the last events by sequence.
        count: number of events by sequence.
    """

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self.events = {name: KeptEvents(np.zeros(model.sizes[name], np.float32)) for name in SEQUENCES}
        self.kept: dict[tuple[str, str], KeptCodes] = {}
        self.codes: dict[tuple[str, str], EventCodes] = {}
        for network, graphs in model.graphs.items():
            for name in SEQUENCES:
                if name in graphs and "codes" in graphs[name].outputs:
                    self.codes[network, name] = EventCodes.of(graphs[name], model.sizes[name][0])
                elif name in graphs:
                    length, graph = model.sizes[name][0], graphs[name]
                    keys, values, interests = (
                        np.zeros((length, graph.fixed(port)[1] if port in graph.outputs else 0), np.float32)
                        for port in ("key", "value", "interest")
                    )
                    hidden = np.zeros(graph.fixed("hidden"), np.float32)
                    self.kept[network, name] = KeptCodes(hidden, keys, values, interests)
        self.count = dict.fromkeys(SEQUENCES, 0)

    def append(self, name: str, row: np.ndarray) -> None:
        """Add one event; the time this takes does not grow with the session.

        Args:
            name: "exposures" or "page_views".
            row: (W,), as in the observation.

        Raises:
            InputError: another name or shape, values that are not finite, or a row of zeros (padding).
        """
        if name not in SEQUENCES:
            raise InputError(f"unknown sequence {name!r}; allowed: {', '.join(SEQUENCES)}")
        row = _checked(name, row, self.model.sizes[name][1:])
        if not row.any():
            raise InputError(f"{name}: a row of zeros is padding, not an event")
        self.count[name] += 1
        self.events[name].append(row)
        for (network, sequence), kept in self.kept.items():
            if sequence == name:
                graph = self.model.graphs[network][name]
                out = graph({"row": row[None], "hidden": kept.hidden})
                at = kept.count % len(kept.keys)
                kept.keys[at], kept.values[at], kept.hidden = out["key"], out["value"], out["new_hidden"]
                kept.interests[at] = out.get("interest", 0.0)
                kept.count += 1
        for (network, sequence), codes in self.codes.items():
            if sequence == name:
                codes.append(self.model.graphs[network][name], row)

    def scores(self, observation: Observation) -> np.ndarray:
        """Score the pool: (N,) float32, :data:`ABSENT` for used-up rows; re-rankers that score only.

        Args:
            observation: user (U,), pool (N, F), screen (lookahead, F + T) and context (C,) of one session's
                observation.
        """
        if self.scorer is None:
            raise InputError(f"{self.model.agent!r} writes lists and gives no scores; use rerank")
        observation, rows = self._read(observation)
        score = np.full(len(observation["pool"]), ABSENT, np.float32)
        if len(rows):
            score[rows] = self._scores(observation, rows)
        return score

    @property
    def scorer(self) -> str | None:
        """The network that scores the pool; None if there is none."""
        return next((name for name in (CRBAN, SCORER, VALUES) if name in self.model.graphs), None)

    def decide(self, network: str, graph: str, observation: Observation, **told: np.ndarray) -> Arrays:
        """Run a graph of a decision.

        Args:
            network: its network.
            graph: its name.
            observation: one session's observation, keys as in the environment; the graph picks.
            **told: further inputs.

        Raises:
            InputError: keys that are missing, have another shape, or are not finite.
        """
        node, inputs = self.model.graphs[network][graph], dict(told)
        for name in node.inputs:
            sequence, _, part = name.partition(".")
            if name in inputs:
                continue
            if part == "rows":
                rows = np.zeros(self.model.sizes[sequence], np.float32)
                events = self.events[sequence].read()
                rows[: len(events)] = events
                inputs[name] = rows
            elif part:
                inputs |= {f"{sequence}.{key}": v for key, v in self.codes[network, sequence].read().items()}
            elif name not in observation:
                raise InputError(f"the observation lacks the key {name!r}")
            else:
                value = _checked(name, observation[name], self.model.sizes[name])
                inputs[name] = value[None] if value.ndim == 1 else value
        return node(inputs)

    def rerank(self, observation: Observation, places: int | None = None) -> np.ndarray:
        """Return the next list: (K,) int64 pool rows in order, padded with -1 where the pool has fewer.

        Args:
            observation: user (U,), pool (N, F), screen (lookahead, F + T), context (C,).
            places: K; default: the model's, which is also the maximum.

        Raises:
            InputError: keys that are missing, have another shape, or are not finite; K out of range.
        """
        places = self.model.places if places is None else places
        if not 1 <= places <= self.model.places:
            raise InputError(f"places = {places} is out of range; this model allows 1 to {self.model.places}")
        observation, rows = self._read(observation)
        found = np.full(places, NOT_SHOWN, np.int64)
        length = min(places, len(rows))
        if length:
            found[:length] = self._list(observation, rows, length)
        return found

    def search(self, observation: Observation, places: int | None = None) -> Found:
        """Search for the next list; its cards are indices into the pool rows that are left.

        The arguments are those of :meth:`rerank`.
        """
        if self.model.search is None:
            raise InputError(f"{self.model.agent!r} does not search; use rerank")
        observation, rows = self._read(observation)
        return self._search(observation, rows, min(places or self.model.places, len(rows)))

    def run(self, observation: Observation) -> Arrays:
        """Return what re-ranking computes before it decides, by the graph's name."""
        observation, rows = self._read(observation)
        outputs = {}
        if self.scorer is not None:
            outputs[f"{self.scorer}.scores"] = self._scores(observation, rows)
        if GENERATOR in self.model.graphs:
            outputs["generator.encode"] = self._ask(GENERATOR, "encode", observation, rows)["codes"]
        if self.model.search is not None:
            encoded = self._ask(EVALUATOR, "encode", observation, rows)
            outputs["evaluator.encode"] = np.concatenate([part.ravel() for part in encoded.values()])
            length = min(self.model.places, len(rows))
            outputs["evaluator.judge"] = np.array(self._search(observation, rows, length).value)
        return outputs

    def _read(self, observation: Observation) -> tuple[Observation, np.ndarray]:
        """Check the observation, and find the pool rows that are left."""
        sizes = self.model.sizes
        read = {}
        for key in READ:
            if key in sizes:
                if key not in observation:
                    raise InputError(f"the observation lacks the key {key!r}")
                read[key] = _checked(key, observation[key], sizes[key])
        return read, np.flatnonzero(read["pool"].any(axis=1))

    def _ask(self, network: str, graph: str, observation: Observation, rows: np.ndarray) -> Arrays:
        inputs = {
            "candidates": observation["pool"][rows],
            "user": observation["user"][None],
            "context": observation["context"][None],
            "rows": rows,
        }
        if "screen" in observation:
            inputs["screen"] = observation["screen"]
        for name in SEQUENCES:
            if (network, name) in self.kept:
                inputs |= {f"{name}.{key}": kept for key, kept in self.kept[network, name].read().items()}
        return self.model.graphs[network][graph](inputs)

    def _scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        assert self.scorer is not None
        if self.scorer == VALUES:
            pool = observation["pool"][rows]
            offered = np.zeros((len(pool), self.model.sizes["cards"][1]), np.float32)
            offered[:, : pool.shape[1]], offered[:, pool.shape[1]] = pool, 1
            return self.decide(VALUES, "values", observation, offered=offered)["values"][:, 0]
        return self._ask(self.scorer, "scores", observation, rows)["scores"][:, 0]

    def _generated(self, observation: Observation, rows: np.ndarray, length: int) -> np.ndarray:
        """Lists (S, length) of candidates."""
        assert self.model.decoder is not None
        return self.model.decoder(self._ask(GENERATOR, "encode", observation, rows), length)

    def _list(self, observation: Observation, rows: np.ndarray, length: int) -> np.ndarray:
        """Pool rows (length,)."""
        if self.scorer is not None:
            order = np.argsort(-self._scores(observation, rows), kind="stable")
            return rows[order[:length]]
        if self.model.search is not None:
            return rows[self._search(observation, rows, length).cards]
        return rows[self._generated(observation, rows, length)[0]]

    def _search(self, observation: Observation, rows: np.ndarray, length: int) -> Found:
        assert self.model.search is not None
        proposed = np.zeros((0, length), np.int64)
        if GENERATOR in self.model.graphs:
            proposed = self._generated(observation, rows, length)
        encoded = self._ask(EVALUATOR, "encode", observation, rows)
        config = self.model.config
        filled = round(float(observation["context"][PAGE_AGE]) * config.page_size)
        return self.model.search(encoded, length, proposed, max(1, config.page_size - filled))

    def swap(self, model: DeviceModel | str | Path, digest: str | None = None) -> None:
        """Go on with another model, into which the last events are replayed.

        The session stays as it is, with its old model, unless everything succeeds.

        Args:
            model: the new model, or its folder, which is loaded and verified first.
            digest: the digest to trust, see :func:`load`.

        Raises:
            InputError: the folder is wrong, or the model reads other rows and observations.
            MissingExtraError: an engine is not installed.
        """
        if not isinstance(model, DeviceModel):
            model = load(model, digest)
        if model.described.features != self.model.described.features:
            raise InputError(
                f"{model.folder} reads other features than {self.model.folder}; allowed: the same digest"
            )
        fresh = DeviceSession(model)
        for name, kept in self.events.items():
            for row in kept.read():
                fresh.append(name, row)
        for (network, name), codes in fresh.kept.items():
            for values in (codes.hidden, codes.keys, codes.values, codes.interests):
                if not np.isfinite(values).all():
                    path = model.graphs[network][name].path
                    raise InputError(f"{path} gives values that are not finite for the session's events")
        for (network, name), part in fresh.codes.items():
            if not (np.isfinite(part.hidden).all() and np.isfinite(part.codes).all()):
                path = model.graphs[network][name].path
                raise InputError(f"{path} gives values that are not finite for the session's events")
        fresh.events, fresh.count = self.events, self.count
        vars(self).update(vars(fresh))

    def save(self, path: str | Path) -> None:
        """Save what the phone keeps when the app is closed, atomically, as safetensors."""
        with atomic_path(path) as temporary:
            save_file(self._tensors(), temporary)

    def restore(self, path: str | Path) -> None:
        """Continue from a file of :meth:`save`; InputError names the file and the wrong tensor."""
        tensors, own = read_tensors(path, finite=False), self._tensors()
        for key in sorted(own.keys() | tensors.keys()):
            if (
                key not in own
                or key not in tensors
                or tensors[key].shape != own[key].shape
                or tensors[key].dtype != own[key].dtype
                or (key == "model" and not np.array_equal(tensors[key], own[key]))
            ):
                raise InputError(f"{path}: tensor {key!r} does not fit; another model saved it")
            if not np.isfinite(tensors[key]).all() or (
                key.endswith("count") and not 0 <= tensors[key] <= MOST_EVENTS
            ):
                raise InputError(f"{path}: {key!r} holds values that are not finite or impossible counts")
        for (network, name), codes in self.kept.items():
            for field in ("hidden", "keys", "values", "interests"):
                setattr(codes, field, tensors[f"{network}.{name}.{field}"])
            codes.count = int(tensors[f"{network}.{name}.count"])
        for (network, name), part in self.codes.items():
            if part.windows == 1:
                for field in ("hidden", "codes"):
                    setattr(part, field, tensors[f"{network}.{name}.{field}"])
                part.count = int(tensors[f"{network}.{name}.count"])
        for name, events in self.events.items():
            events.rows, events.count = tensors[f"events.{name}.rows"], int(tensors[f"events.{name}.count"])
            self.count[name] = int(tensors[f"{name}.count"])
        for (network, name), part in self.codes.items():
            if part.windows > 1:  # they have read the last events only
                graph = self.model.graphs[network][name]
                fresh = EventCodes.of(graph, self.model.sizes[name][0])
                for row in self.events[name].read():
                    fresh.append(graph, row)
                self.codes[network, name] = fresh

    def _tensors(self) -> Arrays:
        """Everything that is kept, and the digest of the model, by name."""
        both: dict[str, KeptCodes | EventCodes | KeptEvents] = {
            **{f"{network}.{name}": codes for (network, name), codes in self.kept.items()},
            **{
                f"{network}.{name}": part for (network, name), part in self.codes.items() if part.windows == 1
            },
            **{f"events.{name}": events for name, events in self.events.items()},
        }
        return {
            "model": np.frombuffer(bytes.fromhex(self.model.digest), np.uint8),
            **{f"{name}.count": np.array(count) for name, count in self.count.items()},
            **{
                f"{key}.{field}": np.array(v) for key, part in both.items() for field, v in vars(part).items()
            },
        }


def _checked(key: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert to float32; InputError names the key if the shape is wrong or a value is not finite."""
    values = np.ascontiguousarray(values, np.float32)
    if values.shape != shape:
        raise InputError(f"{key} has the shape {values.shape}; this model reads {shape}")
    check_finite(key, values)
    return values


_tried: set[str] = set()  # digests of the models that this process has tried out


def load(folder: str | Path, digest: str | None = None) -> DeviceModel:
    """Load an exported agent and check that every graph gives its golden outputs, which also warms it up.

    A model for an engine that may end the process on a broken file is tried out in another process first,
    once for each digest.

    Args:
        folder: the folder of the export.
        digest: sha256 of device.json as told by someone trusted; None for any.

    Raises:
        InputError: a file is missing, broken, of another version or digest, or a graph answers otherwise;
            names the file.
        MissingExtraError: an engine is not installed.
    """
    folder = Path(folder)
    found = digest_of(folder)
    if digest is not None and found != digest:
        raise InputError(f"{folder} has the digest {found}; expected {digest}")
    engines = [ENGINES[graph.engine] for graph in read_description(folder).graphs.values()]
    for engine in engines:
        engine.check_installed()
    if found not in _tried and any(engine.trusting for engine in engines):
        trial.try_out(folder)
        _tried.add(found)
    model = DeviceModel(folder)
    model.check_golden()
    return model
