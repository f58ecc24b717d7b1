import asyncio
import itertools
from collections.abc import Iterator

import httpx
import pytest

from service.load.answers import Question
from service.load.loops import closed_loop, for_seconds, load_client, open_loop, strangers


def questions() -> Iterator[Question]:
    return (Question("http://test/", str(number).encode()) for number in itertools.count())


async def test_a_closed_loop_keeps_so_many_under_way(stand_in) -> None:
    app = stand_in(enough=3)
    async with app.client() as client:
        run = await asyncio.wait_for(closed_loop(client, itertools.islice(questions(), 11), 3), 30)
    assert (app.most, app.count, len(run.answers), run.failed) == (3, 11, 11, 0)
    assert sorted(app.bodies, key=int) == [str(number).encode() for number in range(11)]
    assert run.mean_size == 5


async def test_an_open_loop_never_waits_for_answers(stand_in) -> None:
    """Nothing is answered before the last one is there: a loop that waited would wait for ever."""
    app = stand_in(enough=17)
    async with app.client() as client:
        due = [0.001 * number for number in range(17)]
        run = await asyncio.wait_for(open_loop(client, questions(), due, 2.0), 30)
    assert app.most == 17
    assert sorted(answer.due for answer in run.answers) == due
    assert run.rate == 17 / 2.0


async def test_what_is_refused_has_failed(stand_in) -> None:
    async with stand_in(status=503).client() as client:
        run = await closed_loop(client, itertools.islice(questions(), 5), 2)
    assert [answer.status for answer in run.answers] == [503] * 5
    assert (run.failed, run.rate) == (5, 0)


async def test_a_connection_that_breaks_has_failed() -> None:
    def breaks(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone")

    async with load_client(httpx.MockTransport(breaks)) as client:
        run = await open_loop(client, questions(), [0.0, 0.0], 1.0)
    assert [answer.status for answer in run.answers] == [0, 0]


def test_questions_end_with_the_time() -> None:
    times = iter([10.0, 10.0, 10.5, 11.9, 12.0])
    taken = list(for_seconds(questions(), 2.0, lambda: next(times)))
    assert [question.body for question in taken] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(("rate", "seconds"), [(3.7, 11.0), (50.0, 2.5), (0.1, 1.0)])
def test_strangers_come_as_many_as_said_in_no_order_of_theirs(rate: float, seconds: float) -> None:
    due = strangers(rate, seconds, seed=1)
    assert len(due) == round(rate * seconds)
    assert due == sorted(due)
    assert all(0 <= at <= seconds for at in due)
    assert due == strangers(rate, seconds, seed=1)
    gaps = [round(b - a, 6) for a, b in itertools.pairwise(due)]
    assert len(set(gaps)) == len(gaps)
