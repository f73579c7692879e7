"""How close do generators and the search come to the best list, found by enumeration? N = 8, K = 4.

    python -m benchmarks.exact_k [--sessions 3000] [--seeds 3] [--quick]

After Exact-K (Gong et al., KDD'19): a feed with pools of 8, the evaluator's value of all 1,680 lists of 4 at
held-out page arrivals, and the share of the best value that each way of choosing a list reaches. The
generator is trained by policy gradient on the evaluator, from its supervised start. Everything is retrained
with every seed; the page requests are the same. Intervals are 95 % bootstraps over sessions of the mean over
seeds; the figures of each seed are shown next to them. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import platform
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import edgerec_gym
from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors
from edgerec_gym.agents.lists.evaluator import ListEvaluator
from edgerec_gym.agents.lists.evaluator_training import load_evaluator
from edgerec_gym.agents.lists.generator import load_network
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.reranker import pool_present
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.evaluation.intervals import ratio_interval
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.logs.collect import SESSIONS_PER_PART, log_batch
from edgerec_gym.logs.logging_policy import RandomisedPolicy
from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.users.synthetic import SyntheticUsers

N, K = 8, 4
REQUESTS = 500  # held-out page arrivals
SAMPLES = 16  # lists drawn from the generator, for the evaluator to choose from
AT_ONCE = 10  # page requests whose lists are all judged together
ALL, CLOUD, ALONE = "any list, on average", "cloud's order", "best cards alone"
SUPERVISED, GRADIENT = "generator, supervised", "generator, policy gradient"
SAMPLED = f"best of {SAMPLES} samples"
SEARCH, SEARCH_ALONE = "sequence search", "sequence search, no generator"
SEARCH_ON = "sequence search, no early stop"


def feed() -> FeedConfig:
    """A small version of the lite feed: pages of 6 slots with 8 candidates."""
    config, _ = preset("lite")
    return config.replace(pool_size=N, page_size=N - 2, request_latency=2, slate_size=K)


def collect_log(folder: Path, sessions: int) -> None:
    """Log sessions of the lite preset's users in that feed; resumes after an interruption."""
    config, (_, synthetic) = feed(), preset("lite")
    users = SyntheticUsers(synthetic, config)
    provenance = {"source": "synthetic", "synthetic": synthetic.to_dict(), "sessions": sessions}
    writer = LogWriter(folder, config, users.world.catalog, provenance)
    size = min(sessions, SESSIONS_PER_PART)
    for first in range(writer.parts * SESSIONS_PER_PART, sessions, SESSIONS_PER_PART):
        batch = FeedBatch(
            size, "joint", config, users.world.catalog, SyntheticUsers(synthetic, config), split="log"
        )
        wanted = min(SESSIONS_PER_PART, sessions - first)
        writer.write(log_batch(batch, first, first, wanted, RandomisedPolicy(), None))
    writer.finish()


def train_all(out: Path, logs: Path, seed: int, epochs: int, updates: int) -> dict[str, Path]:
    """Train the evaluator, the supervised generator, and the generator fine-tuned on the evaluator."""
    runs = {name: out / f"{name}-{seed}" for name in ("evaluator", "pointer", "pointer-evaluator")}
    for agent, folder in runs.items():
        last = agent == "pointer-evaluator"
        train_agent(
            agent,
            folder,
            logs=logs,
            based_on=[runs["evaluator"], runs["pointer"]] if last else (),
            seed=seed,
            resume=True,
            threads=1,
            hyper={"updates": updates} if last else {"horizon": K, "epochs": epochs},
        )
    return runs


def page_arrivals(reader: LogReader, wanted: int) -> tuple[TensorObservation, np.ndarray]:
    """Held-out page requests with all N candidates, and their sessions (R,)."""
    _, _, held_out = split_moments(reader, horizon=K, no_click=K, per_session=1000, seed=0)
    observations, sessions = [], []
    for chunk in held_out.chunks():
        batch = chunk.batch(np.arange(len(chunk)))
        whole = np.flatnonzero((batch.observation["pool"] != 0).any(axis=2).all(axis=1))
        observations.append(to_tensors({key: values[whole] for key, values in batch.observation.items()}))
        sessions.append(batch.session[whole])
    joined = {key: torch.cat([part[key] for part in observations])[:wanted] for key in observations[0]}
    return joined, np.concatenate(sessions)[:wanted]


def chosen_lists(
    evaluator: ListEvaluator, supervised: PointerNet, trained: PointerNet, observation: TensorObservation
) -> dict[str, Tensor]:
    """Lists among which the evaluator chooses, for each way of choosing, (R, lists, K)."""
    present = pool_present(observation)
    single = evaluator.single_values(evaluator.encode_pool(observation), observation)
    candidates, draws = trained.encode(observation), torch.Generator().manual_seed(0)
    drawn = trained.sample(candidates.repeat(SAMPLES), K, draws).rows.view(-1, SAMPLES, K)
    config = evaluator.config
    searches = {
        SEARCH_ALONE: SequenceSearch(config, evaluator, None, SearchConfig()),
        SEARCH: SequenceSearch(config, evaluator, trained, SearchConfig()),
        SEARCH_ON: SequenceSearch(config, evaluator, trained, SearchConfig(stability=1.0)),
    }
    return {
        CLOUD: torch.arange(K).expand(len(present), 1, -1),
        ALONE: single.topk(K, 1).indices.unsqueeze(1),
        SUPERVISED: supervised.emit(observation, K).unsqueeze(1),
        GRADIENT: trained.emit(observation, K).unsqueeze(1),
        SAMPLED: drawn,
        **{name: search.emit(observation, K).unsqueeze(1) for name, search in searches.items()},
    }


def shares(
    evaluator: ListEvaluator, supervised: PointerNet, trained: PointerNet, observation: TensorObservation
) -> dict[str, np.ndarray]:
    """Share of the best list's value that each way of choosing reaches, (R,)."""
    lists = torch.tensor(list(permutations(range(N), K)))  # (1680, K)
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for at in range(0, len(observation["pool"]), AT_ONCE):
            part = {key: values[at : at + AT_ONCE] for key, values in observation.items()}
            encoded = evaluator.encode_pool(part)
            value = evaluator.values(encoded, lists.expand(len(part["pool"]), -1, -1))
            best = value.amax(1)
            found.setdefault(ALL, []).append(value.mean(1) / best)
            for name, rows in chosen_lists(evaluator, supervised, trained, part).items():
                found.setdefault(name, []).append(evaluator.values(encoded, rows).amax(1) / best)
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def study(out: Path, sessions: int, seeds: int, epochs: int, updates: int, requests: int) -> dict[str, Any]:
    """Collect, train, enumerate."""
    logs = out / "logs"
    collect_log(logs, sessions)
    reader = LogReader(logs)
    observation, session = page_arrivals(reader, requests)
    reached: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        runs = train_all(out, logs, seed, epochs, updates)
        supervised = load_reranker(runs["pointer"], reader.config)
        trained = load_network(runs["pointer-evaluator"], reader.config)
        assert isinstance(supervised, PointerNet) and isinstance(trained, PointerNet)
        evaluator = load_evaluator(runs["evaluator"], reader.config)
        for name, values in shares(evaluator, supervised, trained, observation).items():
            reached.setdefault(name, []).append(values)
        print(f"seed {seed}: done", flush=True)
    _, index = np.unique(session, return_inverse=True)
    rows = {}
    for name, by_seed in reached.items():
        mean = np.mean(by_seed, axis=0)
        rows[name] = {
            "share_of_best": ratio_interval(np.bincount(index, mean), np.bincount(index).astype(float)),
            "seeds": [float(one.mean()) for one in by_seed],
            "best_found": [float((one > 1 - 1e-6).mean()) for one in by_seed],
            "worst_request": float(min(one.min() for one in by_seed)),
        }
    return {"requests": len(session), "sessions": len(np.unique(session)), "rows": rows}


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    title = f"share of the best value, {K} of {N} cards"
    table = Table("list", "mean [95 %]", "seeds", "best list found", "worst request", title=title)
    for name, row in rows.items():
        share = row["share_of_best"]
        table.add_row(
            name,
            f"{share['mean']:.2%} [{share['low']:.2%}, {share['high']:.2%}]",
            " ".join(f"{value:.2%}" for value in row["seeds"]),
            " ".join(f"{value:.0%}" for value in row["best_found"]),
            f"{row['worst_request']:.1%}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Run the study, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=3000, help="sessions of the log")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the runs; default runs/exact-k")
    parser.add_argument("--quick", action="store_true", help="train briefly with one seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    out = make_folder(arguments.out or Path(f"runs/exact-k{'-quick' if quick else ''}"))
    sessions, seeds, epochs, updates = (
        (300, 1, 2, 20) if quick else (arguments.sessions, arguments.seeds, 20, 300)
    )
    results = study(out, sessions, seeds, epochs, updates, 50 if quick else REQUESTS)
    show(results["rows"])
    about = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "feed": feed().to_dict(),
        "log_sessions": sessions,
        "seeds": seeds,
        "epochs": epochs,
        "updates": updates,
    }
    target = out if quick else make_folder(Path(__file__).parent / "results")
    write_json(target / "exact_k.json", {"about": about, **results})


if __name__ == "__main__":
    main()
