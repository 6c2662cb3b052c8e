"""The limit of open files, which many ranks reach before anything else: real limits of this process."""

import resource

import pytest

from common.errors import InputError
from ranks.launch import FILES_PER_RANK, OWN_FILES, allow_files


@pytest.fixture
def limits():
    """The soft and the hard limit as they were; what the test changes of the soft one is undone."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_it_is_raised_to_what_the_ranks_need_and_no_further(limits):
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (OWN_FILES, hard))
    allow_files(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (OWN_FILES, hard)
    for ranks in (8, 2):
        allow_files(ranks)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (OWN_FILES + 8 * FILES_PER_RANK, hard)


def test_what_the_system_does_not_allow_is_refused_in_a_line(limits):
    _, hard = limits
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no limit here")
    with pytest.raises(
        InputError, match=rf"^launch: {hard} processes need \d+ open files each, and {hard} are allowed"
    ):
        allow_files(hard)
