"""What became of every request, by the events of the run. Nothing else decides it: step.json says what the gate said, and
the events say what was done about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from expunge.stream.summary import Status


@dataclass(frozen=True)
class Decision:
    """A person's decision about a step: accepted, rolled back or withdrawn by hand.

    Attributes:
        undone: what the run was rolled back to, "" for another decision.
    """

    at: str
    by: str
    reason: str
    undone: str = ""


class Retry(NamedTuple):
    """Another attempt at a step.

    Attributes:
        strength: the method's in this attempt.
        about: the concepts because of which it is made.
    """

    step: int
    strength: float
    about: tuple[str, ...]


@dataclass
class History:
    """
    Attributes:
        status: {step: what became of it}; a request whose step is not here is open.
        records: {step: digest of the record that counts}.
        decisions: {step: the last decision about it}.
        at_work: the step whose directory holds work that goes on from the current model, None where there is none.
        retry: the retry that is at work or next.
        retries: {step: the retry that led to its record}, where there was one.
    """

    status: dict[int, Status] = field(default_factory=dict)
    records: dict[int, str] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    at_work: int | None = None
    retry: Retry | None = None
    retries: dict[int, Retry] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> Self:
        history = cls()
        for event in events:
            history._add(event)
        return history

    @property
    def accepted(self) -> list[int]:
        """The steps that led to the current model, in order."""
        return sorted(step for step, status in self.status.items() if status == "accepted")

    def _add(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self.at_work = event["step"]
            case "retried":
                self.at_work = None
                self.retry = Retry(event["step"], event["strength"], tuple(event["about"]))
            case "accepted" | "rejected" as status:
                if "by" not in event:
                    self.retries.pop(event["step"], None)
                    self.retries |= {self.retry.step: self.retry} if self.retry else {}
                self._stop()
                self.status[event["step"]] = status
                self.records[event["step"]] = event["record"]
                self.decisions.pop(event["step"], None)  # which was about earlier work
                if "by" in event:
                    self._decide(event, event["step"])
            case "rolled back":
                self._stop()
                for step in self._after(event["to"]):
                    self.status[step] = "withdrawn"
                    self._decide(event, step)
            case "withdrawn":
                step = event["step"]
                if step in self.accepted:
                    for later in self._after(step):
                        del self.status[later]
                        self.decisions.pop(later, None)
                    self._stop()
                elif self.at_work == step or (self.retry and self.retry.step == step):
                    self._stop()
                self.status[step] = "withdrawn"
                self._decide(event, step)

    def _stop(self) -> None:
        self.at_work = self.retry = None

    def _after(self, step: int) -> list[int]:
        return [later for later in self.accepted if later > step]

    def _decide(self, event: dict[str, Any], step: int) -> None:
        undone = (f"step {event['to']}" if event["to"] else "the base model") if "to" in event else ""
        self.decisions[step] = Decision(event["at"], event["by"], event["reason"], undone)
