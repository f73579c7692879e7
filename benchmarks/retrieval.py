"""Does a nearest-neighbour index pay off? Our page against a faiss search, over growing catalogues.

    python benchmarks/retrieval.py

faiss-cpu is installed into its own virtual environment under benchmarks/.peers. It searches the same
embeddings for the 768 items that a page considers (inverted file with 8 probed lists, one query per call, one
thread, as pages come one by one); our time is that of a whole page: retrieval, ranking, quota, writing.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import interpreter  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.users import ground_truth
from edgerec_gym.users.synthetic import SyntheticUsers

SIZES = (10_000, 100_000, 1_000_000)
SEARCH = """
import sys, time, numpy as np, faiss
faiss.omp_set_num_threads(1)
items = np.load(sys.argv[1])
d, lists = items.shape[1], int(4 * len(items) ** 0.5)
index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
index.train(items[:: max(1, len(items) // (40 * lists))])
index.add(items)
index.nprobe = 8
queries = np.random.default_rng(0).standard_normal((300, 1, d)).astype(np.float32)
for query in queries[:50]:
    index.search(query, 768)
times = []
for query in queries:
    start = time.perf_counter()
    index.search(query, 768)
    times.append(time.perf_counter() - start)
print(np.median(times) * 1e6)
"""


def main() -> None:
    """Measure, print, write."""
    python = interpreter("faiss-cpu==1.13.2")
    base = ground_truth("default")
    assert base.synthetic is not None
    rows = []
    for n_items in SIZES:
        users = SyntheticUsers(base.synthetic.replace(n_items=n_items), base.config)
        catalog, sessions = users.world.catalog, 256
        batch = FeedBatch(sessions, "joint", base.config, catalog, users)
        everyone, times = np.arange(sessions), []
        for seed in range(12):
            start = time.perf_counter()
            batch.reset(everyone, seed * sessions + everyone)
            times.append((time.perf_counter() - start) / sessions * 1e6)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "items.npy"
            np.save(path, catalog.embeddings)
            found = subprocess.run(
                [python, "-c", SEARCH, str(path)], capture_output=True, text=True, check=True
            )
        rows.append(
            {"n_items": n_items, "page_us": float(np.median(times[2:])), "faiss_us": float(found.stdout)}
        )
    table = Table("items", "our page with a new session (us)", "faiss, the search alone (us)")
    for row in rows:
        table.add_row(f"{row['n_items']:,}", f"{row['page_us']:.1f}", f"{row['faiss_us']:.1f}")
    Console().print(table)
    write_json(make_folder(Path(__file__).parent / "results") / "retrieval.json", {"rows": rows})


if __name__ == "__main__":
    main()
