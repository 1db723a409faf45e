"""``python -m tsugiki``: the command line."""

from tsugiki.cli.main import main

if __name__ == "__main__":
    main()
