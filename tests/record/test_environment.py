"""What environment.json says of a machine."""

import numpy as np

from record.environment import versions


def test_a_package_that_is_not_installed_has_no_version():
    assert versions(["numpy", "no-such-package"]) == {"numpy": np.__version__, "no-such-package": None}
