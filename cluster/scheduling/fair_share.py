"""Weighted fair share between the tenants of one priority level: start-time fair queueing.

Chosen over deficit round robin because its bound needs no quantum: for any two tenants f and g that both wait
during an interval, |W_f / w_f - W_g / w_g| <= c_f / w_f + c_g / w_g, where W is the cost served in it, w the
weight and c the largest cost of a single step. A tenant that comes back from idleness begins at the level's
present virtual time: it is owed nothing for the time it did not ask.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for Integrated Services Packet
Switching Networks", SIGCOMM 1996, theorem 1.
"""

from __future__ import annotations

__all__ = ["Account", "FairShare"]

_MIN_KEPT = 64


class Account:
    """What a tenant has had in a level.

    Attributes:
        tag: Start tag of its next step, in cost / weight. It never falls.
        weight: > 0.
        num_waiting: Queues of the tenant in this level that ask.
        credit: Cost charged for steps that turned out cheaper, set off against the next ones.
    """

    __slots__ = ("credit", "num_waiting", "tag", "weight")

    def __init__(self, tag: float, weight: float) -> None:
        self.tag = tag
        self.weight = weight
        self.num_waiting = 0
        self.credit = 0.0


class FairShare:
    """The accounts of one level. Who has the smallest tag goes first; ordering is the caller's."""

    __slots__ = ("_accounts", "_num_waiting", "_prune_above", "_virtual")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._virtual = 0.0
        self._num_waiting = 0
        self._prune_above = _MIN_KEPT

    def enter(self, tenant: str, weight: float) -> Account:
        """Note that a queue of a tenant begins to ask; returns the tenant's account."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(self._virtual, weight)
        elif not account.num_waiting:
            account.tag = max(account.tag, self._virtual)
            account.weight = weight
        account.num_waiting += 1
        self._num_waiting += 1
        return account

    def leave(self, account: Account) -> None:
        """Note that a queue has nothing to ask any more."""
        account.num_waiting -= 1
        self._num_waiting -= 1

    def clear(self) -> None:
        """Forget what everybody had: nothing waits any more, parked or not."""
        self._accounts.clear()
        self._virtual = 0.0
        self._prune_above = _MIN_KEPT

    def charge(self, account: Account, cost: float) -> None:
        """Serve a step of the account's tenant.

        Args:
            account: Of a tenant that asks.
            cost: What the step is expected to use, >= 0; the same unit for all tenants.
        """
        self._virtual = max(self._virtual, account.tag)
        refund = min(account.credit, cost)
        account.credit -= refund
        account.tag += (cost - refund) / account.weight
        if len(self._accounts) > max(2 * self._num_waiting + _MIN_KEPT, self._prune_above):
            self._prune()

    def settle(self, tenant: str, more: float) -> None:
        """Correct a charge by what the step really used.

        Args:
            tenant: Whose step it was; one that is forgotten meanwhile is owed and owes nothing.
            more: Real minus charged cost; below 0 it becomes credit.
        """
        account = self._accounts.get(tenant)
        if account is None:
            return
        if more < 0:
            account.credit -= more
            return
        refund = min(account.credit, more)
        account.credit -= refund
        account.tag += (more - refund) / account.weight

    def _prune(self) -> None:
        """Forget idle tenants whose next step would begin at the present virtual time anyway."""
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if account.num_waiting or account.tag > self._virtual
        }
        self._prune_above = 2 * len(self._accounts)
