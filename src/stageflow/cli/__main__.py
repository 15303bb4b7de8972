"""Makes `python -m stageflow.cli` the same as `stageflow`."""

from . import main

main()
