"""Arms of a suite, compared over seeds, rates and stresses."""
