"""Nodes as Ray tells of them, what others use there, and devices that replicas share."""

from __future__ import annotations

from actors.placing import Placing, bundle_resources, own_bundle, where_of
from actors.ray_nodes import RayNode, foreign_use
from cluster.placement_groups import Group
from cluster.scheduling.devices import NodeSpec, bundle_of
from cluster.scheduling.packing import Placement, Request
from cluster.scheduling.reasons import CapacityShort


def nodes(**gpus: int) -> dict[str, RayNode]:
    return {
        name: RayNode(
            NodeSpec(name=name, gpu_memory_gb=(0.0,) * num, num_cpus=4), {"GPU": float(num), "CPU": 4.0}
        )
        for name, num in gpus.items()
    }


def request(name: str, num_gpus: float, num_cpus: float = 0.0) -> Request:
    return Request(name, (bundle_of(num_gpus, num_cpus=num_cpus),), owner="p")


def placed(placing: Placing, name: str, num_gpus: float) -> Placement:
    found = placing.place(request(name, num_gpus), 0.0)
    assert isinstance(found, Placement)
    return found


def test_what_is_neither_free_nor_ours_is_used_by_others() -> None:
    totals = {"a": {"GPU": 4.0, "CPU": 8.0, "node:1": 1.0}, "b": {"GPU": 1.0}}
    free = {"a": {"GPU": 1.0, "CPU": 8.0}}
    ours = [Group("CREATED", ({"GPU": 2.0},), ("a",)), Group("PENDING", ({"GPU": 1.0},), ("",))]
    assert foreign_use(totals, free, ours) == {"a": {"GPU": 1.0}}


def test_use_by_others_is_believed_when_it_is_seen_twice_and_given_back_at_once() -> None:
    placing = Placing()
    placing.set_nodes(nodes(a=2))
    placing.set_foreign({"a": {"GPU": 1.0}}, 0.0)
    assert placing.packer.num_whole == 2
    placing.set_foreign({"a": {"GPU": 2.0, "CPU": 3.0}}, 1.0)
    assert placing.packer.num_whole == 1
    assert isinstance(placing.place(request("r", 2), 1.0), CapacityShort)
    placing.set_foreign({"a": {"CPU": 3.0}}, 2.0)
    assert placing.packer.num_whole == 2
    assert isinstance(placing.place(request("r", 1, num_cpus=2), 2.0), CapacityShort)
    placing.set_foreign({}, 3.0)
    assert isinstance(placing.place(request("r", 1, num_cpus=2), 3.0), Placement)


def test_parts_of_one_device_share_a_group_that_goes_with_the_last() -> None:
    placing = Placing()
    placing.set_nodes(nodes(a=2))
    first = placing.share_device(placed(placing, "1", 0.5))
    second = placing.share_device(placed(placing, "2", 0.5))
    third = placing.share_device(placed(placing, "3", 0.5))
    assert first is not None
    assert third is not None
    assert first == second
    assert third.group != first.group
    assert placing.share_device(placed(placing, "0", 0.0)) is None
    assert placing.release("1") == ""
    assert placing.release("2") == first.group
    assert placing.shared_groups == {third.group}


def test_ledger_entry_restores_the_share_and_its_group() -> None:
    before = Placing()
    before.set_nodes(nodes(a=2))
    placement = placed(before, "1", 0.25)
    device = before.share_device(placement)
    assert device is not None

    after = Placing()
    after.set_nodes(nodes(a=2))
    again = after.restore(request("1", 0.25), where_of(placement), device.group, 0.0)
    assert again is not None
    assert after.sharers(device.group) == {"1"}
    assert after.share_device(placed(after, "2", 0.25)) == device
    assert Placing().restore(request("1", 0.25), where_of(placement), device.group, 0.0) is None


def test_lost_node_names_those_who_lay_there_and_not_what_others_used() -> None:
    placing = Placing()
    placing.set_nodes(nodes(a=1, b=1))
    placed(placing, "1", 1)
    placed(placing, "2", 1)
    placing.set_foreign({"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}, 0.0)
    placing.set_foreign({"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}, 1.0)
    assert placing.set_nodes(nodes(b=1)) in (["1"], ["2"])


def test_bundles_are_said_in_ray_s_words_and_an_empty_one_asks_for_next_to_nothing() -> None:
    bundle = bundle_of(2, num_cpus=0.5, memory_bytes=1024, resources={"camera": 1})
    assert bundle_resources(bundle) == {"GPU": 2.0, "CPU": 0.5, "memory": 1024.0, "camera": 1.0}
    assert own_bundle(bundle_of(0.5)) == {"CPU": 0.001}
