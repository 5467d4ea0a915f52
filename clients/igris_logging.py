"""Send the records of Python's logging as events.

    log = logging.getLogger("audit")
    log.addHandler(IgrisHandler(igris))
    log.setLevel(logging.INFO)  # else logging passes only warnings and errors to handlers

`extra` gives the fields of the event, and everything else in it becomes metadata:

    log.info("report made", extra={"type": "tool_call", "toolName": "generate_report", "action": "allow", "rows": 3})
"""

import logging
from datetime import UTC, datetime

from igris import Igris

_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class IgrisHandler(logging.Handler):
    def __init__(self, igris: Igris, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._igris = igris

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. What goes wrong is logging's to report: it never reaches the program that logs."""
        try:
            extra = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}
            extra.update(extra.pop("extra", {}))  # where loguru has what was bound
            self._igris.send(
                extra.pop("type", "custom"),
                extra.pop("toolName", record.name),
                action=extra.pop("action", "log"),
                timestamp=datetime.fromtimestamp(record.created, UTC),
                metadata={"level": record.levelname, "message": record.getMessage(), **extra},
            )
        except Exception:  # noqa: BLE001
            self.handleError(record)
