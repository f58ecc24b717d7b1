"""What the server does to its process: settings of the interpreter, once it is ready."""

import gc

from service.cli.server import settle


def test_what_stays_for_good_is_not_gone_through_again() -> None:
    try:
        settle()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()
