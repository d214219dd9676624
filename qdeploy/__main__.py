"""``python -m qdeploy``: the command line."""

from qdeploy.cli.main import main

if __name__ == "__main__":
    main()
