"""What columns and values of other people's tables are called, for `edgerec import --guess`.

Patterns match a whole name in small letters whose words are joined by _.
"""

from __future__ import annotations

# Names of columns by meaning, the surest first; matched against the name in small letters, words joined by _.
NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        r"user(_?id)?",
        r"(user|u)_?(id|key|hash|idx|no|code)|uid",
        r"(visitor|customer|client|member|account|reader|viewer|shopper|profile|person|subscriber|reviewer|player|listener|guest|consumer|cookie|buyer)s?(_?(id|key|hash|idx))?",
        r"(device|distinct|anonymous|browser|machine)_?id|uuid|device_ip|.*user_?id",
    ),
    "item": (
        r"item(_?id)?",
        r"(item|i)_?(id|key|hash|idx|no|code)|iid|sku",
        r"(product|article|news|video|photo|movie|film|document|doc|content|song|track|music|listing|hotel|prop|property|offer|post|note|book|asin|goods|good|ad|creative|banner|story|recipe|game|app|course|job|card|episode|clip|show|media|merchandise|stream(er)?)s?(_?(id|key|hash|idx|code|uuid|guid))?|pid|vid|nid|aid|adgroup_id",
        r"(.*_)?(item|product|video|article|ad|content)_?id|url|feed_?id",
    ),
    "time": (
        r"time_?stamp(_?(ms|s|us|utc))?|time_?ms|ts(_?ms)?",
        r"(event|impression|request|log|view|click|action|server|show|exposure|served|shown|created|date|search|visit|logged|rating)_?(time|at|ts|timestamp|datetime)(_?(ms|utc))?|date_?time|time",
        r"(.*_)?(time|timestamp|datetime|at|ts)",
        r"hour|date|day|dt|event_?date",
    ),
    "click": (
        r"(is_?)?click(ed)?(_?(bool|flag|label))?|clk",
        r"label|target|y|is_?open(ed)?|opened|(is_)?tap(ped)?|click_?through|ctr_label|(has_|did_|was_)?click(ed|s)?(_.*)?",
        r"(is_)?(view(ed)?|watched|valid_play|read|play(ed)?|engaged|interacted|positive|feedback|response|reward)|is_?valid",
    ),
    "list": (
        r"(list|page|slate|request|req|impression|impr|imp|search|srch|serp|display|feed|query|q|bundle|recommendation|rec|batch|screen|auction)_?(id|uuid|key)|qid|reqid",
        r"impression|slate|request|page(_?(no|number|view_?id))?",
    ),
    "session": (r"(session|visit|sess)(_?(id|key|uuid|no))?",),
    "position": (
        r"pos(ition)?|rank|slot|place",
        r"(.*_)?(position|rank|pos|slot)(_?(id|no|idx|index|in_list|in_page|on_page))?|(item_)?(index|order|idx)",
    ),
    "purchase": (
        r"(is_?|has_?)?(purchase[ds]?|bought|buy|order(ed)?|convert(ed)?|conversion|booking|booked|paid|transaction)(_?(bool|flag|label))?",
    ),
    "dwell_seconds": (
        r"(dwell|exposure|visible|view(able)?|screen|on_screen)_?(time|seconds|sec|secs|s|ms|duration)(_?(ms|s|sec|seconds))?|dwell",
    ),
    "page_view_seconds": (
        r"(play(ing)?|watch(ed|ing)?|read(ing)?|listen(ing)?|stay|active|page(_?view)?|view(ing)?)_?(time|seconds|sec|secs|ms|duration)(_?(ms|s|sec|seconds))?|watch_?s(ec)?",
    ),
    "card_type": (),
    "category": (
        r"(.*_)?(category|cat|genre|topic|class|section|department|vertical)(_?(id|name|code|1|l1))?",
        r"(sub_?category|tag|type|brand|genres)(_?id)?",
    ),
    "price": (
        r"(item_|product_|sale_|unit_)?price(_?(usd|eur|gbp|cny|amount))?",
        r"(?!.*(log|hist)).*_price|cost|amount",
    ),
    "base_ctr": (r"(base_?|p|pred(icted)?_?|model_?)ctr(_?score)?|ctr",),
    "propensity": (
        r"propensity(_?score)?|p_?score|(action|logging|behaviour|behavior)_?prob(ability)?|prob(ability)?",
    ),
    "query": (r"(search_?)?(query|keywords?|search_?term|phrase)(_?text)?",),
    "history": (r"(.*_)?(history|hist|clicked_(news|items|articles|before))(_?(ids|list))?",),
    "rating": (r"rating|overall|stars|score|review_?(score|rating)|user_?rating",),
    "event": (
        r"(event|action|behaviour|behavior|interaction|activity|feedback)(_?(type|name|kind|code))?|type",
    ),
}
RESPONSES: dict[str, str] = {
    "like": r"(is_?)?(like[ds]?|thumbs?_?up|upvote[ds]?|heart)",
    "follow": r"(is_?)?(follow(ed|s)?|subscribe[ds]?)",
    "share": r"(is_?)?(share[ds]?|forward(ed|s)?|repost(ed)?|retweet(ed)?)",
    "comment": r"(is_?)?(comment(ed|s)?|reply|replied)",
    "long_view": r"(is_?)?(long_?view|complete[d]?|finish(ed)?|valid_?play|full_?play|watched_?through)",
    "hate": r"(is_?)?(hate[ds]?|dislike[ds]?|thumbs?_?down|downvote[ds]?|not_?interested"
    "|negative(_feedback)?|report(ed)?|block(ed)?|hide|hidden)",
    "save": r"(is_?)?(save[ds]?|collect(ed)?|fav|favou?rite[ds]?|bookmark(ed)?|wish_?list(ed)?|add_?to_?(cart"
    "|fav|wishlist|basket)|cart|download(ed)?)",
    "profile": r"(is_?)?(profile(_?enter|_?visit)?|is_profile_enter)",
}
CLICKS = r"click(ed|s)?|clk|open(ed)?|tap(ped)?|view_?item|detail(_?view)?|play|watch|read|1|true"
SHOWN = (
    r"view(ed)?|impression|imp(ressed)?|show(n)?|exposed?|exposure|display(ed)?|serve[d]?|seen|pv|0|false"
    r"|skip(ped)?"
)
OUTCOME = (
    r"play|watch|stay|dwell|active|read_?time|scroll|next_|gross|revenue|reward|label|click|view|session|spent"
    r"|_id$|(transaction|order|session|event)id$|vote|^id_?|index|^unnamed|zip|post_?code|phone|hour|date|minute|lat(itude)?$|lon(gitude)?$"
)
TEXT = r"(.*_)?(title|headline|text|name|caption|description|subtitle)"
USER_CATEGORY = (
    r"(user_)?(gender|sex|country|city|region|occupation|job|device(_type)?|os|platform|language|locale|browser"
    r"|state|membership|segment|plan)(_.*)?|user_(feature|cat|type|level).*|is_(sso_user|subscriber)"
)
USER_NUMBER = r"(user_)?(age|income|tenure|days_since_.*|register_days)(_.*)?"
