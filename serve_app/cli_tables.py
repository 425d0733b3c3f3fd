"""How the command line shows pools, limits, capacity and reasons to wait. It decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["duration_text", "show_capacity", "show_limits", "show_pools", "show_waits"]

_COLOUR_BY_STATE = {"ready": "green", "starting": "cyan", "retiring": "yellow"}


def show_pools(console: Console, page: dict[str, Any]) -> None:
    """Show pools as a table, and below it why some of them cannot grow."""
    table = _table("POOL", "CAPABILITIES", "REPLICAS", "RUNNING", "WAITING", "OLDEST", "EACH", "FROM")
    for pool in page["pools"]:
        spec = pool["spec"]
        table.add_row(
            escape(pool["name"]),
            escape(", ".join(pool["capabilities"])),
            f"{_replicas(pool)} of {spec['min_replicas']}-{spec['max_replicas']}",
            str(pool["running"]),
            str(pool["waiting"]),
            duration_text(pool["oldest_s"]) if pool["waiting"] else "",
            escape(_resources(spec)),
            pool["source"],
        )
    console.print(table)
    for pool in page["pools"]:
        if pool["trouble"]:
            console.print(f"[red]{escape(pool['name'])}[/]: {escape(pool['trouble'])}")
        if pool["reason"]:
            console.print(f"[yellow]{escape(pool['name'])}[/]: {escape(_sentence(pool['reason']))}")
    if page["at"] is None:
        console.print("[yellow]The scheduler is silent at the moment: only declarations are shown.[/]")


def show_limits(console: Console, limits: Sequence[dict[str, Any]]) -> None:
    """Show limited keys as a table."""
    table = _table("KEY", "IN USE", "AT A TIME", "RATE", "BURST", "FROM")
    for limit in limits:
        bound = limit["max_concurrent"]
        is_reached = bound is not None and limit["num_used"] >= bound
        used = f"[yellow]{limit['num_used']}[/]" if is_reached else str(limit["num_used"])
        table.add_row(
            escape(limit["key"]),
            used,
            "" if bound is None else str(bound),
            limit["rate"],
            f"{limit['burst']:g}" if limit["rate"] else "",
            limit["source"],
        )
    console.print(table)


def show_capacity(console: Console, found: dict[str, Any]) -> None:
    """Show nodes and devices with their holders, then how long is waited."""
    now = datetime.fromisoformat(found["at"])
    table = _table("NODE", "CPUS FREE", "DEVICE", "FREE", "MEMORY FREE", "HELD BY")
    for node in found["nodes"]:
        cpus = f"{node['free_cpus']:g} of {node['num_cpus']:g}"
        name = escape(" ".join([node["name"], *(f"{key}={text}" for key, text in node["labels"].items())]))
        if not node["devices"]:
            table.add_row(name, cpus)
        for number, device in enumerate(node["devices"]):
            table.add_row(
                *(("", "") if number else (name, cpus)),
                str(device["index"]),
                f"{100 * device['free']:.0f}%",
                f"{device['free_gb']:g} of {device['total_gb']:g} GB",
                escape(", ".join(_holder(each, now) for each in device["holders"])),
            )
    console.print(table)
    events = found["scale_events"]
    console.print(
        f"utilisation {100 * found['utilisation']:.0f}%  fragmentation {100 * found['fragmentation']:.0f}%  "
        + "  ".join(f"{name} {count}" for name, count in events.items()),
        highlight=False,
    )
    if found["waits"]:
        waits = _table("CAPABILITY", "WAITS (MEDIAN)", "95 %")
        for each in found["waits"]:
            waits.add_row(
                escape(each["capability"]), duration_text(each["p50_s"]), duration_text(each["p95_s"])
            )
        console.print(waits)


def show_waits(console: Console, told: dict[str, Any]) -> None:
    """Say in sentences why Steps wait."""
    if not told["waits"]:
        console.print(f"Nothing of {told['run_id']} waits: it is {told['status']}.", markup=False)
    for wait in told["waits"]:
        step = wait["step"] if wait["item"] < 0 else f"{wait['step']}[{wait['item']}]"
        many = f" ({wait['num']} items)" if wait["num"] > 1 else ""
        subject = f"{step}{many}: " if step else ""
        console.print(f"[bold]{escape(subject)}[/]{escape(_sentence(wait['reason']))}", highlight=False)


def duration_text(seconds: float) -> str:
    """Say a duration as people do: 0.4s, 12s, 3m, 2h, 4d."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s)}{unit}"
    return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.2g}s"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _replicas(pool: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for replica in pool["replicas"]:
        counts[replica["state"]] = counts.get(replica["state"], 0) + 1
    parts = [f"[{_COLOUR_BY_STATE.get(state, 'white')}]{num} {state}[/]" for state, num in counts.items()]
    return ", ".join(parts) or "0"


def _resources(spec: dict[str, Any]) -> str:
    parts = [f"{spec['num_cpus']:g} CPU"] if spec["num_cpus"] else []
    if spec["num_gpus"]:
        parts.append(f"{spec['num_gpus']:g} GPU")
    if spec["gpu_memory_gb"]:
        parts.append(f"{spec['gpu_memory_gb']:g} GB")
    if spec["gang_size"] > 1:
        parts.append(f"x {spec['gang_size']} {spec['strategy']}")
    return " ".join([*parts, f"/ {spec['concurrency']} slots"])


def _holder(holder: dict[str, Any], now: datetime) -> str:
    held_s = max((now - datetime.fromisoformat(holder["since"])).total_seconds(), 0.0)
    return f"{holder['replica']} {100 * holder['share']:.0f}% for {duration_text(held_s)}"


def _sentence(reason: dict[str, Any]) -> str:
    """Add an estimate where the sentence has none."""
    sentence = str(reason["sentence"])
    if reason["until_at"] is None or "more." in sentence:
        return sentence
    left_s = (datetime.fromisoformat(reason["until_at"]) - datetime.now(UTC)).total_seconds()
    return f"{sentence} About {duration_text(max(left_s, 0.0))} more."
