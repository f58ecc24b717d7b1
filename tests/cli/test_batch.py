import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from service.cli.batch import Failure, each
from service.cli.files import Picture
from service.errors import BadImage, OutOfDeviceMemory, ServiceError, Unauthorized, Unavailable

PICTURES = [Picture(Path(f"{index}.png"), Path(str(index))) for index in range(7)]


async def test_results_come_in_order_whatever_ends_first() -> None:
    async def work(picture: Picture) -> str:
        for _ in range(20 - 2 * int(picture.path.stem)):
            await asyncio.sleep(0)
        return picture.path.stem

    assert [result async for result in each(PICTURES, work, 3)] == list("0123456")


async def test_no_more_are_under_way_than_asked_for() -> None:
    now, most = 0, 0

    async def work(picture: Picture) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    async for _ in each(PICTURES, work, 3):
        pass
    assert most == 3


@pytest.mark.parametrize(
    "error",
    [
        BadImage("No image."),
        OutOfDeviceMemory("No image."),
        FileNotFoundError(2, "No image"),
        ServiceError("No image."),
    ],
)
async def test_a_bad_picture_does_not_stop_the_rest(error: Exception) -> None:
    async def work(picture: Picture) -> str:
        if picture is PICTURES[1]:
            raise error
        return "good"

    results = [result async for result in each(PICTURES, work, 2)]
    assert results == ["good", Failure(PICTURES[1], "No image."), *["good"] * 5]


@pytest.mark.parametrize("error", [Unauthorized("No key."), Unavailable("Gone.")])
async def test_what_would_fail_them_all_stops_them_all(error: ServiceError) -> None:
    asked = 0

    async def work(picture: Picture) -> None:
        nonlocal asked
        asked += 1
        raise error

    async def look_at_all() -> None:
        async with aclosing(each(PICTURES, work, 2)) as results:
            async for _ in results:
                pass

    with pytest.raises(type(error)):
        await look_at_all()
    assert asked == 2
