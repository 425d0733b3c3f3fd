"""An agent whose module cannot be imported: a library is missing, as on a machine that was set up badly."""

from __future__ import annotations

import a_library_that_nobody_has_installed  # type: ignore[import-not-found] # noqa: F401 - the point of this file

from actors.agent import agent


@agent("unloadable")
def unloadable(inputs: object) -> object:
    return inputs
