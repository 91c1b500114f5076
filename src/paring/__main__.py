"""``python -m paring`` is the ``paring`` command."""

from paring.cli.main import main

raise SystemExit(main())
