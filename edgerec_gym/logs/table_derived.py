"""Item columns and user features of an imported table: what its rows tell, and what earlier rows tell.

Numbers of a table are stored in units of the days that values shared by all rows come from (table_items.py).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from edgerec_gym.logs.looking_back import (
    CATEGORY_COLUMNS,
    HOUR,
    ITEM_COLUMNS,
    PAGE_COLUMNS,
    USER_COLUMNS,
    USER_ITEM_COLUMNS,
    HourlySums,
    category_columns,
    distinct,
    item_columns,
    page_columns,
    user_columns,
    user_item_columns,
)
from edgerec_gym.logs.table_items import DAY
from edgerec_gym.logs.table_mapping import NUMBER, RESPONSE, USER_CATEGORY, USER_NUMBER, response_columns
from edgerec_gym.logs.table_source import SourceTable
from edgerec_gym.logs.table_survey import Survey
from edgerec_gym.logs.text import ItemText

QUERY_MATCH = "query_match"
SPREADS = 3.0  # standard deviations that are stored as 1


class DerivedColumns:
    """What pages and visits of a table ship besides embeddings and scalars.

    Args:
        survey: one pass over the table.
        category: (n,) int32 category of each item, by its place in the sorted ids; None without categories.
        text: what the texts of the items tell, if there are any.
        cut: first day (since 1970) that the units of numbers must not use.
        table: the checked table.

    Attributes:
        item_names: names of the item columns.
        user_names: names of the user features after the embedding.
    """

    def __init__(
        self,
        survey: Survey,
        category: np.ndarray | None,
        text: ItemText | None,
        cut: int,
        table: SourceTable,
    ) -> None:
        self.survey, self.category = survey, category
        # What depends on the rest of the page and on the user holds for logged pages alone.
        self.logged_pages = table.mapping.feed.get("cloud", {}).get("supply", "logged") == "logged"
        self.items = survey.items["item"]
        self.by_category: HourlySums | None = None
        if category is not None:
            hours = survey.sums
            own = category[hours.key].astype(np.int64)
            self.by_category = HourlySums.of(own, hours.hour, hours.sums[:, :2])
        names = table.columns
        self.numbers = [name for name in names if name.startswith(NUMBER)]
        self.user_numbers = [name for name in names if name.startswith(USER_NUMBER)]
        self.responses = response_columns(names)
        self.query_text = text if "query" in names else None
        self.units = survey.numbers.units(cut)
        self.levels = survey.levels
        early = survey.responses.filter(pl.col("day") < cut)
        sums = (early if early.height else survey.responses).sum()
        self.rates = {name: max(sums[name][0] / max(sums["seen"][0], 1), 1e-4) for name in self.responses}
        self.item_names = (
            *ITEM_COLUMNS,
            *(CATEGORY_COLUMNS if category is not None else ()),
            *((*PAGE_COLUMNS, *USER_ITEM_COLUMNS) if self.logged_pages else ()),
            *(name.removeprefix(NUMBER) for name in self.numbers),
            *((QUERY_MATCH,) if self.query_text is not None else ()),
        )
        self.user_names = (
            *USER_COLUMNS,
            *(f"lift of {name.removeprefix(RESPONSE)}" for name in self.responses),
            *(name.removeprefix(USER_NUMBER) for name in self.user_numbers),
            *(
                f"{name.removeprefix(USER_CATEGORY)} = {value}"
                for name, values in self.levels.items()
                for value in values
            ),
        )

    def of_rows(self, rows: pl.DataFrame, item: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """Return the item columns of rows whose pages began in `hour` (n,), (n, C) float32 in -1..1."""
        parts = [*self._looking_back(item, hour)]
        if self.logged_pages:
            user, seconds, click, began, start = (
                rows[name].to_numpy() for name in ("user", "seconds", "click", "page_start", "start")
            )
            page = rows["session"].to_numpy().astype(np.int64) * len(rows) + rows["page"].to_numpy()
            parts.append(page_columns(parts[0], page))
            parts.append(user_item_columns(user.astype(np.int64), item, seconds, click, began, start))
        parts += [self._in_units(rows[name], name)[:, None] for name in self.numbers]
        if self.query_text is not None:
            parts.append(self.query_text.match(item, rows["query"])[:, None])
        return np.concatenate(parts, axis=1)

    def of_catalogue(self, item: np.ndarray, cut: int) -> np.ndarray:
        """Return the item columns of items (n,) when day `cut` began; what rows tell is 0."""
        parts = [*self._looking_back(item, np.full(len(item), cut * DAY // HOUR))]
        unknown = len(self.item_names) - sum(part.shape[1] for part in parts)
        return np.concatenate([*parts, np.zeros((len(item), unknown), np.float32)], axis=1)

    def _looking_back(self, item: np.ndarray, hour: np.ndarray) -> list[np.ndarray]:
        parts = [item_columns(self.survey.sums, item, hour)]
        if self.by_category is not None and self.category is not None:
            parts.append(category_columns(self.by_category, self.category[item].astype(np.int64), hour))
        return parts

    def freshness(self, item: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """Return 1 / (1 + days since items first appeared), (n,) float64."""
        one, at, place = distinct(item, hour)
        age = at - np.minimum(self.survey.sums.first_hour(one), at)
        freshness: np.ndarray = (1 / (1 + age / 24))[place]
        return freshness

    def of_users(self, rows: pl.DataFrame, first: np.ndarray) -> np.ndarray:
        """Return the user features of the visits that begin at rows `first` (n,) bool, (m, U') float32."""
        user, start = rows["user"].to_numpy(), rows["start"].to_numpy()[first]
        seen = rows["seen"].to_numpy()
        counted = [seen, rows["click"].to_numpy() & seen]
        counted += [rows[name].cast(pl.Float64).fill_null(0).to_numpy() * seen for name in self.responses]
        hour = start.astype(np.int64) // HOUR
        rates = [self.survey.sums.rate_before(hour)]
        rates += [np.full(len(hour), self.rates[name]) for name in self.responses]
        parts = [
            user_columns(
                user.astype(np.int64),
                rows["seconds"].to_numpy(),
                np.column_stack(counted).astype(np.float64),
                start,
                user[first].astype(np.int64),
                np.column_stack(rates),
            )
        ]
        at = rows.filter(pl.Series(first))
        parts += [self._in_units(at[name], name)[:, None] for name in self.user_numbers]
        parts += [
            (at[name] == value).fill_null(False).cast(pl.Float32).to_numpy()[:, None]
            for name, values in self.levels.items()
            for value in values
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def history(self, rows: pl.DataFrame, first: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """Return the sums of the embeddings of earlier clicks that the table lists, (m, d) float64."""
        visits = int(first.sum())
        sums = np.zeros((visits, embeddings.shape[1]))
        if "history" not in rows.columns:
            return sums
        listed = rows.filter(pl.Series(first)).select(visit=pl.int_range(pl.len()), item="history")
        listed = listed.explode("item").with_columns(pl.col("item").cast(self.items.dtype, strict=False))
        places = pl.DataFrame({"item": self.items, "place": np.arange(len(self.items))})
        known = listed.join(places, on="item")
        np.add.at(sums, known["visit"].to_numpy(), embeddings[known["place"].to_numpy()])
        return sums

    def _in_units(self, values: pl.Series, name: str) -> np.ndarray:
        """Return numbers in -1..1, in spreads of the first days around their mean; missing ones as 0."""
        mean, spread = self.units[name]
        number = np.arcsinh(values.cast(pl.Float64).to_numpy())
        return np.clip(np.nan_to_num((number - mean) / (SPREADS * spread)), -1, 1).astype(np.float32)
