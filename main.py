"""Run cellgan from a checkout: ``python main.py --help``."""

from cellgan.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
