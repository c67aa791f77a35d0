"""`python -m edgekit`: the same as the `edgekit` command, where that is not on the PATH."""

from edgekit.cli.main import main

if __name__ == "__main__":
    main()
