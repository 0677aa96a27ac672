"""The service keeps what /openapi.json promises, for whatever Schemathesis makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.conftest import PATIENCE_S, Live, create_app

schemathesis = pytest.importorskip(
    "schemathesis", reason="without its requests: pip install schemathesis"
)

pytestmark = pytest.mark.slow

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.pco"))
BODIES = [path.read_bytes() for path in CORPUS[::4]]


@schemathesis.serializer("image/*", "application/octet-stream")
def bytes_as_they_are(context: Any, value: Any) -> Any:
    return value


schemathesis.openapi.format("binary", st.binary(max_size=200) | st.sampled_from(BODIES))

OPERATIONS = {
    operation.label: operation
    for operation in (
        result.ok()
        for result in schemathesis.openapi.from_dict(create_app().openapi()).get_all_operations()
    )
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_those_that_are_promised(live: Live, label: str) -> None:
    @given(case=OPERATIONS[label].as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def hold(case: Any) -> None:
        case.call_and_validate(
            base_url=f"http://127.0.0.1:{live.port}",
            timeout=PATIENCE_S,
            # no schema says which bytes are a stream or an image
            excluded_checks=[schemathesis.checks.positive_data_acceptance],
        )

    hold()
