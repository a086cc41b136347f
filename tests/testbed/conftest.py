"""What tests of the testbed share."""

import pytest


@pytest.fixture(scope="session")
def twin(tmp_path_factory):
    """A tiny testbed's twin: folder, path of the scenario, the target's answers, what was measured."""
    from .twins import make_twin

    return make_twin(tmp_path_factory.mktemp("twin"))
