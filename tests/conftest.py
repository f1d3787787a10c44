"""What several test files share. Kept tiny: helpers live in modules of their own."""

import pytest
from serving import serving


@pytest.fixture(scope="session")
def server():
    """The real server on the pocket model, started as a user would; shared by read-only tests."""
    with serving() as served:
        yield served
