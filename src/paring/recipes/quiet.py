"""Without the warnings and bars of transformers and datasets, where paring says itself what there is to say."""

from collections.abc import Iterator
from contextlib import contextmanager

from paring.tasks.extras import require


@contextmanager
def quiet() -> Iterator[None]:
    """As before on leaving."""
    logging = require("transformers.utils.logging", "scoring a delta on data")
    datasets = require("datasets.utils", "reading a data set")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if more_bars:
            datasets.enable_progress_bars()
