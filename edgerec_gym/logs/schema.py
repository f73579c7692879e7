"""The log schema: one row per placed slot, in order of session and slot.

Nullable columns are null where the event did not happen or the data set does not identify it. What a data
set does not identify is never invented; `logs.json` lists it under `unidentified`.

A log folder holds `logs.json` (schema version, feed config, provenance), `catalog.parquet`
and `part-00000.parquet`, `part-00001.parquet`, ... Sessions never span parts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from edgerec_gym.config import SCHEMA_VERSION

VERSION_KEY = b"edgerec_gym.schema_version"

SCHEMA = pa.schema(
    [
        pa.field("session", pa.int64(), nullable=False),  # unique in the folder, increasing
        pa.field("user", pa.int64(), nullable=False),
        pa.field("day", pa.int32(), nullable=False),  # days from 0; splits are by day
        pa.field("hour", pa.int32(), nullable=False),  # 0..23
        pa.field("slot", pa.int32(), nullable=False),  # 0, 1, ... within the session
        pa.field("time", pa.float64()),  # seconds since the session began
        pa.field("item", pa.int64(), nullable=False),  # row of catalog.parquet
        pa.field("card_type", pa.int32(), nullable=False),  # 0 = goods, k = card_types[k - 1]
        pa.field("page", pa.int32(), nullable=False),  # 0, 1, ... within the session
        pa.field("page_age", pa.int32(), nullable=False),  # slots since that page arrived
        pa.field("page_requested", pa.bool_(), nullable=False),  # by the policy, not automatic
        pa.field("candidates", pa.list_(pa.int32())),  # item rows of the pool; on a page's first slot only
        pa.field("cards", pa.list_(pa.int32())),  # item rows of the mix-in cards; likewise
        pa.field("user_features", pa.list_(pa.float32())),  # as the cloud shipped them; on slot 0 only
        # item scalars as shipped with the page
        pa.field("price_level", pa.float32(), nullable=False),
        pa.field("base_ctr", pa.float32(), nullable=False),
        pa.field("base_cvr", pa.float32(), nullable=False),
        pa.field("freshness", pa.float32(), nullable=False),
        # the policy
        pa.field("action", pa.int32()),  # index in the EdgeFeed-v0 action space
        pa.field("propensity", pa.float64()),  # probability of that action
        pa.field("randomised", pa.bool_(), nullable=False),  # drawn at random with known propensity
        pa.field("request", pa.bool_(), nullable=False),  # a page was requested before this slot
        pa.field("request_propensity", pa.float64()),  # probability of a request at this slot
        # the answer; answered = False: shown, never focused before the session ended
        pa.field("answered", pa.bool_(), nullable=False),
        pa.field("exposure_actions", pa.list_(pa.float32())),  # e1..e6 in 0..1 (answers.py)
        pa.field("click", pa.bool_()),
        pa.field("page_view_actions", pa.list_(pa.float32())),  # d1..d11 in 0..1; null without a click
        pa.field("leave", pa.bool_()),  # the user left here
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)

# Columns that a log has only if its feed declares what they hold; null or absent elsewhere.
OPTIONAL = {
    "candidate_ctr": pa.field(
        "candidate_ctr", pa.list_(pa.float32())
    ),  # of `candidates`, as shipped; likewise
    "embedding_known": pa.field("embedding_known", pa.bool_()),  # the embedding was known at that time
    "item_columns": pa.field("item_columns", pa.list_(pa.float32())),  # config.item_columns, as shipped
    # config.responses, each in 0..1; null where not answered
    "responses": pa.field("responses", pa.list_(pa.float32())),
}


def log_schema(names: Iterable[str]) -> pa.Schema:
    """Return :data:`SCHEMA`, with the optional columns that are among the names."""
    schema = SCHEMA
    for name, field in OPTIONAL.items():
        if name in names:
            schema = schema.append(field)
    return schema


def list_column(values: np.ndarray, present: np.ndarray) -> pa.Array:
    """Turn numbers (n, k) into a list column of float32; null where not `present` (n,)."""
    offsets = np.concatenate([[0], np.cumsum(present) * values.shape[1]]).astype(np.int32)
    flat = pa.array(values[present].ravel(), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~present))
