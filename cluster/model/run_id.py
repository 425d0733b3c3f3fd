"""How Runs are named: by ids that clients choose, each within its tenant, and by one name in the store.

Were the names one space for all, a client could find out which ids another tenant uses: a taken one is
refused. So the store's name of a Run of any tenant but the default one begins with the tenant. Clients and
Plans see the short id; Python drivers, who work in every tenant, see the whole one.
"""

from __future__ import annotations

__all__ = ["DEFAULT_TENANT", "client_id", "stored_id"]

DEFAULT_TENANT = "default"
_MARK = "~"
"""Stands in no client's id and in no tenant's name."""


def stored_id(tenant: str, run_id: str) -> str:
    """Return the store's name of a tenant's Run; what is such a name already stays as it is."""
    if tenant == DEFAULT_TENANT:
        return run_id
    prefix = f"{tenant}{_MARK}"
    return run_id if run_id.startswith(prefix) else prefix + run_id


def client_id(run_id: str) -> str:
    """Return the id that clients know, given the store's name."""
    return run_id.rpartition(_MARK)[2]
