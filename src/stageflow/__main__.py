"""`python -m stageflow` is the command line."""

from _stageflow_command import main

if __name__ == "__main__":
    main()
