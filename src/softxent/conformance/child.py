"""The process in which a subject runs: python -m softxent.conformance.child DESCRIPTOR ARGUMENTS. It writes a line of JSON for each event.

The events are: the subject ("subject"), the beginning of a law ("law"), the script of each call before it is made ("call"), and the finding
of a law ("finding").
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .check import applicable, try_law
from .subjects import Subject

LARGE = 4000  # elements; the scripts of larger calls are not written out


def main(descriptor: int, given: dict[str, Any]) -> None:
    """Try the laws of these names and write the events to the file descriptor."""

    def say(event: str, **more: Any) -> None:
        os.write(descriptor, (json.dumps({"event": event, **more}) + "\n").encode())

    try:
        subject = Subject(given["subject"], given["as_"], given["ranks"])
    except (ValueError, TypeError) as error:
        say("error", text=str(error))
        return
    except ModuleNotFoundError as error:
        say("error", text=f"check: subject must be importable; got {error}")
        return

    told: list[Any] = [None]

    def call() -> None:
        if subject.last is not None and subject.last[1] is not told[0]:
            told[0] = subject.last[1]
            large = subject.last[1].size > LARGE
            say("call", script="" if large else subject.script(*subject.last))

    subject.announce = call
    say("subject", dialect=subject.kind, options=sorted(subject.options), reductions=list(subject.reductions))
    for law in applicable(given["laws"]):
        say("law", law=law.name)
        say("finding", **try_law(law, subject, given["quick"]).as_dict())


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
