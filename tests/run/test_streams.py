"""What other libraries do to the process that the tests share."""

import logging
import sys

from absl.logging import get_absl_handler

from tests.run.conftest import Program


def test_hydra_closes_no_stream_of_the_tests(call: Program, overrides: list[str], capsys) -> None:
    handler = get_absl_handler().python_handler
    logging._addHandlerRef(handler)  # as when it was made
    assert call(*overrides, "workers=0") == 2
    assert handler.stream is sys.__stderr__
    assert not handler.stream.closed
