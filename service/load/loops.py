"""Two ways to ask. A closed loop keeps so many requests under way: it finds the capacity, but a slow server
slows it down, which hides queues. An open loop sends on a schedule, whatever comes back, as strangers do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Sequence

import httpx

from service.load.answers import Answer, Question, Run
from service.types import Clock

TIMEOUT_S = 60.0


def load_client(transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client with as many connections as there are requests; nothing is tried again."""
    return httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        headers={"Accept-Encoding": "identity"},
    )


async def closed_loop(client: httpx.AsyncClient, questions: Iterable[Question], concurrency: int) -> Run:
    """Keeps `concurrency` requests under way until the questions are used up and answered."""
    left = iter(questions)
    answers: list[Answer] = []
    began = time.perf_counter()

    async def user() -> None:
        for question in left:
            answers.append(await ask(client, question, time.perf_counter() - began, began))

    async with asyncio.TaskGroup() as users:
        for _ in range(concurrency):
            users.create_task(user())
    return Run(answers, time.perf_counter() - began)


async def open_loop(
    client: httpx.AsyncClient, questions: Iterable[Question], due: Sequence[float], seconds: float
) -> Run:
    """Sends a question at each due time, whatever is still unanswered, and waits for all at the end.

    due: seconds after the beginning, ascending.
    seconds: the schedule's length, which rates are counted over.
    """
    answers: list[Answer] = []
    began = time.perf_counter()

    async def request(question: Question, at: float) -> None:
        answers.append(await ask(client, question, at, began))

    async with asyncio.TaskGroup() as requests:
        for at, question in zip(due, questions, strict=False):
            await asyncio.sleep(began + at - time.perf_counter())
            requests.create_task(request(question, at))
    return Run(answers, seconds)


async def ask(client: httpx.AsyncClient, question: Question, due: float, began: float) -> Answer:
    """Sends one request and reads all of the answer."""
    try:
        response = await client.post(question.url, content=question.body, headers=dict(question.headers))
        status, size = response.status_code, len(response.content)
    except httpx.HTTPError:
        status, size = 0, 0
    return Answer(due, time.perf_counter() - began, status, size)


def for_seconds(
    questions: Iterable[Question], seconds: float, clock: Clock = time.perf_counter
) -> Iterator[Question]:
    """The questions that are taken within so many seconds from the first."""
    give_up = clock() + seconds
    for question in questions:
        if clock() >= give_up:
            return
        yield question


def strangers(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests of people who know nothing of each other are due: `rate` a second, for so many seconds.

    A Poisson process of which the number of requests is known: their times are uniform.
    """
    when = random.Random(seed)
    return sorted(when.uniform(0, seconds) for _ in range(round(rate * seconds)))
