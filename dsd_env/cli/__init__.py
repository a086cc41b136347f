"""The command line: ``dsd-env``, or ``python -m dsd_env``. A module for each command.

Nothing imports this package but the command line itself and the scripts of a checkout.
"""
