"""What Runs are called by clients and by the store."""

from __future__ import annotations

import pytest

from cluster.model.run_id import client_id, stored_id


def test_same_id_of_two_tenants_has_two_names_in_the_store() -> None:
    assert stored_id("shop", "r-1") != stored_id("bank", "r-1")
    assert stored_id("default", "r-1") == "r-1"


@pytest.mark.parametrize("tenant", ["default", "shop", "a.b-c_d"])
def test_client_gets_back_the_id_that_it_gave(tenant: str) -> None:
    assert client_id(stored_id(tenant, "r:1")) == "r:1"


def test_name_in_the_store_stays_what_it_is() -> None:
    assert stored_id("shop", stored_id("shop", "r-1")) == stored_id("shop", "r-1")
