"""Health checks: separate for live and ready, each failure with a reason."""

from __future__ import annotations

from app.health import FailingCheck, Health


def test_a_worker_without_checks_is_live_and_ready() -> None:
    """No check means nothing is wrong."""
    assert Health().failing_live() == []
    assert Health().failing_ready() == []


def test_a_live_check_makes_the_worker_unready_too() -> None:
    """What calls for a restart also keeps work away."""
    health = Health()
    health.add_check("progress", lambda: "no progress for 40 s", live=True)
    health.add_check("model", lambda: None)
    assert health.failing_live() == [FailingCheck("progress", "no progress for 40 s")]
    assert health.failing_ready() == health.failing_live()


def test_a_ready_check_leaves_liveness_alone() -> None:
    """A worker that still warms its model must not be restarted."""
    health = Health()
    health.add_check("model", lambda: "warming")
    assert health.failing_live() == []
    assert [item.check for item in health.failing_ready()] == ["model"]


def test_a_check_that_raises_is_a_failure_with_its_text() -> None:
    """An exception in a check is reported, it does not take the endpoint down."""
    health = Health()

    def broken() -> str | None:
        msg = "no such partition"
        raise KeyError(msg)

    health.add_check("lag", broken)
    assert health.failing_ready() == [FailingCheck("lag", "the check itself failed: KeyError: 'no such partition'")]


def test_checks_are_asked_anew_each_time() -> None:
    """A worker becomes ready the moment its last check passes, and a check can be replaced."""
    health = Health()
    reasons: list[str | None] = ["warming", None]
    health.add_check("model", lambda: reasons[0])
    assert health.failing_ready()
    reasons.pop(0)
    assert not health.failing_ready()
    health.add_check("model", lambda: "unloaded")
    assert [item.reason for item in health.failing_ready()] == ["unloaded"]
