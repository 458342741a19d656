"""``sluice score`` through a real broker and a real worker: an answer with its timings, or where to look for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from agents import topics
from app import score_command
from tests.integration.delays_service import EVENT_US, MODEL, Deployment, features, put_weather
from tests.integration.kafka_client import KafkaClient, header
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration
CLI = typer.Typer()
score_command.register(CLI)
GOOD = json.dumps(features())


class Caller:
    """Somebody at a terminal, with the settings of a deployment, and its worker."""

    def __init__(self, deployment: Deployment, worker: WorkerProcess) -> None:
        self.deployment, self.worker = deployment, worker

    def score(self, *arguments: str, typed: str | None = None, model: str = MODEL) -> Result:
        """Run ``sluice score``."""
        return CliRunner(env=self.deployment.variables).invoke(CLI, [model, *arguments], input=typed)

    def answer(self, *arguments: str) -> dict[str, Any]:
        """What it prints with ``--json``; it must succeed."""
        done = self.score(*arguments, "--json")
        assert done.exit_code == 0, done.output + repr(done.exception)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def request(self, answer: dict[str, Any]) -> Any:  # noqa: ANN401 - aiokafka's own type
        """The request's record of an answer."""
        place = answer["request"]
        wanted = (place["partition"], place["offset"])
        return next(r for r in self.deployment.kafka.read(topics.REQUESTS) if (r.partition, r.offset) == wanted)


@pytest.fixture(scope="module", params=["at_least_once", pytest.param("exactly_once", marks=pytest.mark.slow)])
def caller(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str
) -> Iterator[Caller]:
    """One worker for each delivery mode."""
    with KafkaClient(bootstrap_servers) as kafka:
        name = f"score-{request.param}"
        deployment = Deployment(
            name, tmp_path_factory.mktemp(name), kafka, bootstrap_servers, redis_url,
            environment={"SLUICE_DELIVERY__MODE": request.param},
        )  # fmt: skip
        kafka.fresh_topics(deployment.settings)
        put_weather(redis_url, {"JFK": (EVENT_US, -3.25)})
        with deployment.worker() as worker:
            yield Caller(deployment, worker.start().wait_ready())


def test_a_request_is_answered_with_its_timings(caller: Caller) -> None:
    """The answer on the topic is the one that is printed: score, outputs by name, version, every stage."""
    answer = caller.answer(GOOD, "--event-time", str(EVENT_US), "--entity", "N14228")
    record = caller.request(answer)
    assert (answer["status"], answer["model_name"], answer["model_version"]) == ("OK", MODEL, 1)
    assert answer["outputs"] == {"score": answer["score"]}
    assert record.key == b"N14228"
    assert caller.deployment.decode(record.value)["model"] == MODEL
    assert caller.deployment.decode(record.value)["request_id"] == answer["request_id"]
    assert 0 < answer["timings"]["total_us"] <= answer["round_trip_us"]


def test_it_goes_where_the_default_partitioner_puts_it(caller: Caller) -> None:
    """A request of the same entity by aiokafka's own producer lands in the same partition."""
    for entity in ("N14228", "é", "e07"):
        mine = caller.answer(GOOD, "--entity", entity)["request"]["partition"]
        kafka = caller.deployment.kafka
        assert kafka.produce([message(caller, entity)])[0][0] == mine, entity


def message(caller: Caller, entity: str) -> Any:  # noqa: ANN401
    """An ordinary request about an entity, from a stranger."""
    from tests.integration.kafka_client import Message

    return Message(entity.encode(), caller.deployment.request("r", entity))


def test_the_text_is_a_table(caller: Caller) -> None:
    """Without ``--json`` the same is printed for a person; features may come from standard input."""
    done = caller.score("-", "--event-time", str(EVENT_US), typed=GOOD)
    assert done.exit_code == 0, done.output + repr(done.exception)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    assert lines["status"] == "OK"
    assert lines["model"] == f"{MODEL} version 1"
    assert "(threshold 0.5)" in lines["decision"]
    for stage in ("ingest", "queue", "features", "preprocess", "inference", "postprocess", "emit", "total"):
        assert float(lines[stage]) >= 0, stage
    assert lines["round"].startswith("trip")


def test_pins_and_deadlines_are_headers(caller: Caller) -> None:
    """What the options say is on the record; the version is answered by."""
    answer = caller.answer(GOOD, "--version", "1", "--deadline-ms", "60000")
    record = caller.request(answer)
    assert header(record, "x-model-version") == b"1"
    assert int(header(record, "x-deadline-unix-ms") or b"0") > record.timestamp
    assert answer["model_version"] == 1
    assert header(caller.request(caller.answer(GOOD, "--label", "champion")), "x-model-label") == b"champion"


def test_an_answer_without_a_score_has_its_own_exit_code(caller: Caller) -> None:
    """Past its deadline, and with a label that nobody set: the status and the reason are printed, exit code 5."""
    for arguments, status in ((("--deadline-ms", "0"), "EXPIRED"), (("--label", "nobody"), "INVALID")):
        done = caller.score(GOOD, *arguments)
        assert done.exit_code == score_command.EXIT_NOT_SCORED, done.output + repr(done.exception)
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        assert lines[0] == ["status", status]
        assert lines[1][0] == "reason"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"distnce_mi": 3}', "distnce_mi: there is no such request feature; did you mean distance_mi?"),
        ('{"origin": "JFK"}', "distance_mi: required, but missing"),
        ('{"distance_mi": "far"}', "distance_mi: a number is expected"),
        ("[1]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_features_that_do_not_fit_are_not_sent(caller: Caller, text: str, says: str) -> None:
    """Exit code 2 and the field; nothing reaches the topic."""
    before = caller.deployment.kafka.ends(topics.REQUESTS)
    done = caller.score(text)
    assert done.exit_code == score_command.EXIT_DOES_NOT_FIT
    assert says in done.stderr
    assert caller.deployment.kafka.ends(topics.REQUESTS) == before


def test_a_model_that_is_not_there_is_named(caller: Caller) -> None:
    """The repository's own message."""
    assert "no model other" in str(caller.score(GOOD, model="other").exception)


def test_a_request_that_nobody_can_read_is_a_dead_letter(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead letter's reason is printed, with the command that shows it whole."""
    monkeypatch.setattr(score_command, "frame_header", lambda _id: b"\x00\x7f\xff\xff\xff")
    done = caller.score(GOOD, "--timeout", "5")
    assert done.exit_code == score_command.EXIT_NO_ANSWER
    assert "UnknownSchema" in done.stderr
    assert "sluice dlq show" in done.stderr
    until(lambda: caller.deployment.kafka.count(topics.REQUESTS_DLQ) > 0, "the dead letter")


def test_without_an_answer_it_says_where_to_look(caller: Caller) -> None:
    """Of a worker that was killed, the last of its mode: how many requests wait, and that it was alive just now."""
    caller.worker.kill()
    done = caller.score(GOOD, "--timeout", "1", "--entity", "e1")
    assert done.exit_code == score_command.EXIT_NO_ANSWER
    assert "no answer within 1 s" in done.stderr
    assert "requests are before it" in done.stderr
    assert "was alive within the last 10 s" in done.stderr
