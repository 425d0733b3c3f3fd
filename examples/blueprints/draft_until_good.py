"""A blueprint that goes in circles: draft, judge, and draft again until it is good, or a person has to say.

TUTTI_BLUEPRINTS_DIR=examples/blueprints CLIENT_TOKEN=secret tutti up
curl -s localhost:8000/api/v1/jobs/draft_until_good -H 'X-Client-Token: secret' -d '{"topic": "rain"}'
"""

from __future__ import annotations

from typing import Any

from actors.blueprint import Blueprint, Outcome, outcome, parameter, when

flow = Blueprint(
    "draft_until_good",
    description="Drafts until the draft is long enough; after three drafts a person decides.",
    parameters={"topic": parameter(str, required=True), "wanted": parameter(int, default=40)},
)


@flow.handler("draft", start=True, to={"success": "judge"})
def draft(topic: str, drafts: list[str] = []) -> dict[str, Any]:  # noqa: B006 - it is only read
    """Write another draft: each builds on all that were gathered so far."""
    return {"drafts": [*drafts, f"On {topic}: " + "it falls and it falls. " * (len(drafts) + 1)]}


@flow.handler(
    "judge",
    to={"success": "good", "short": [when("data.tries", "ge", 3, to="ask"), "draft"]},
)
def judge(drafts: list[str], wanted: int) -> dict[str, Any] | Outcome:
    """Say whether the last draft will do."""
    told = {"tries": len(drafts), "length": len(drafts[-1])}
    return told if told["length"] >= wanted else outcome("short", told)


flow.approval(
    "ask",
    message={"question": "It stays short. Take it as it is?", "length": {"$ref": "data.length"}},
    timeout_s=86_400,
    to={"approved": "good", "rejected": "given_up", "timeout": "given_up"},
)
flow.end("good")
flow.end("given_up", failure=True, message="no draft was good enough")
