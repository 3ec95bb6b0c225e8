"""What tests of the search share."""

from postgresql import postgresql  # noqa: F401
