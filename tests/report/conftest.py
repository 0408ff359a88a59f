import pytest
from fake_run import make_joint_results, make_odd_results, make_results


@pytest.fixture
def results():
    return make_results()


@pytest.fixture
def odd_results():
    return make_odd_results()


@pytest.fixture
def joint_results():
    return make_joint_results()
