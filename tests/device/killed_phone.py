"""A phone that plays on from where it was, and tells every step on its standard output.

python killed_phone.py URL DATABASE ANSWERS
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link import Link
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.protocol.messages import Answer, PageRequest

SETTINGS = LinkSettings(
    most_seconds=0.001,
    reply_seconds=0.2,
    first_wait=0.005,
    longest_wait=0.02,
    open_seconds=5.0,
    most_answers=3,
)


def answer(number: int) -> Answer:
    return Answer(number % 50, 0, number, number % 7, bytes([number % 85, 84]), b"", False, number % 5 == 0)


async def main(url: str, path: str, answers: int) -> None:
    store = EventStore(path)
    session = PhoneSession(session=-7, user=3, day=2, hour=20, features="f" * 64)
    link = Link(Phone(url, "device", "token"), session, store, np.random.default_rng(), SETTINGS)
    task = asyncio.create_task(link.run())
    last = store.page(-7)
    number = 0 if last is None else last.page + 1
    print("start", link.answers, flush=True)
    while link.answers < answers:
        if link.answers % 4 == 0:
            link.want_page(PageRequest(number, link.answers, link.answers, [], "recovery"))
            await link.wait_page()
            print("page", number, flush=True)
            number += 1
        link.tell(answer(link.answers), now=link.answers % 5 == 0)
        print("told", link.answers, flush=True)
        await asyncio.sleep(0.001)
    link.end([answer(99)])
    await link.wait_done()
    print("done", flush=True)
    await task
    store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
