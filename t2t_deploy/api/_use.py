"""What uses files: sessions, verdicts, accuracy, times, classes.

The examples go on from those of `_make`, in the same folder.
"""

from __future__ import annotations

from typing import Any

from t2t_deploy.commands import examine_machine as _examine_machine


def examine_machine() -> dict[str, Any]:
    """What this machine can build and run, and why not the rest: ``t2t-deploy doctor``.

    Examples
    --------
    >>> from t2t_deploy import examine_machine
    >>> [one["runs"] for one in examine_machine()["backends"] if one["name"] == "ort-cpu"]
    [True]
    """
    return _examine_machine()
