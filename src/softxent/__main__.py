"""`python -m softxent` runs the command `softxent`."""

from .cli import main

if __name__ == "__main__":
    main()
