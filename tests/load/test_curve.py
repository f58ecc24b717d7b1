import itertools

from service.load.answers import Answer, Question, Run
from service.load.curve import Point, curve, knee


def point(load: float, latency: float, count: int) -> Point:
    return Point(load, load * 10, Run([Answer(0, latency, 200, 1)] * count, 10.0))


def test_the_knee_is_where_waiting_buys_most() -> None:
    points = [point(0.2, 0.10, 20), point(0.6, 0.15, 60), point(0.8, 0.3, 80), point(1.2, 2.0, 100)]
    assert [round(it.power(1.0), 3) for it in points] == [20.0, 40.0, 26.667, 0.0]
    assert knee(points, within_s=1.0) is points[1]


def test_a_load_that_nobody_survives_is_no_knee() -> None:
    dead = Point(1.5, 15, Run([Answer(0, 1.0, 503, 1)] * 5, 10.0))
    assert dead.power(1.0) == 0
    assert knee([dead, point(0.2, 0.1, 2)], within_s=1.0).load == 0.2


async def test_a_curve_offers_each_load(stand_in) -> None:
    app = stand_in()
    asked = itertools.repeat(Question("http://test/", b""))
    async with app.client() as client:
        points = [it async for it in curve(client, asked, 100.0, (0.5, 1.5), 0.2)]
    assert [it.offered for it in points] == [50.0, 150.0]
    assert [len(it.run.answers) for it in points] == [10, 30]
    assert app.count == 40
