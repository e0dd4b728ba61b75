"""What became of every request, by the events of the run. Nothing else decides it: step.json says what the gate said, and
the events say what was done about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

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


@dataclass
class History:
    """
    Attributes:
        status: {step: what became of it}; a request whose step is not here is open.
        records: {step: digest of the record that counts}.
        decisions: {step: the last decision about it}.
        at_work: the step whose directory holds work that goes on from the current model, None where there is none.
        retry: (step, strength) of the retry that is at work or next.
    """

    status: dict[int, Status] = field(default_factory=dict)
    records: dict[int, str] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    at_work: int | None = None
    retry: tuple[int, float] | None = None

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
                self.at_work, self.retry = None, (event["step"], event["strength"])
            case "accepted" | "rejected" as status:
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
                elif self.at_work == step or (self.retry and self.retry[0] == step):
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
