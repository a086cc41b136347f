"""``python -m dsd_env``: the command line."""

from dsd_env.cli.main import run

if __name__ == "__main__":
    run()
