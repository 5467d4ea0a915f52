"""The types of the commands' arguments and options."""

import re
import unicodedata
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import click

import config


class Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        value = unicodedata.normalize("NFC", value)  # else two names could look the same
        if not (0 < len(value) <= 255 and value.isprintable() and value == value.strip()):
            self.fail("must have 1 to 255 printable characters, and no space at either end", param, ctx)
        return value


class Quota(click.ParamType[tuple[int | None]]):
    """A number, or `unlimited`. The value is a one-tuple, since None means unlimited."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None]:
        try:
            return value if isinstance(value, tuple) else (config.quota(value),)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


class Month(click.ParamType[date]):
    """YYYY-MM, as its first day."""

    name = "YYYY-MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return value if isinstance(value, date) else date.fromisoformat(f"{value}-01")
        except ValueError:
            self.fail(f"{value!r} is not a month; use YYYY-MM, such as 2026-03", param, ctx)


class Moment(click.ParamType[datetime]):
    """A day (its beginning, in UTC), a time with a zone, or a number of days ago."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if days := re.fullmatch(r"(\d{1,5})d", value, re.ASCII):
                return datetime.now(UTC) - timedelta(days=int(days[1]))
            if not re.match(r"\d{4}-\d\d-\d\d(T|$)", value, re.ASCII):
                raise ValueError
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None and len(value) > 10:
                self.fail(f"{value!r} has no time zone; add Z for UTC", param, ctx)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a date; use 2026-03-01, 2026-03-01T12:00Z or 400d (days ago)", param, ctx)


class TimeZone(click.ParamType[ZoneInfo]):
    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ZoneInfo:
        try:
            return value if isinstance(value, ZoneInfo) else ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            self.fail(f"{value!r} is not a time zone; use a name such as UTC or Europe/Berlin", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print lines of JSON, for scripts.")
org_option = click.option("--org", type=Name(), help="Only this organization.")
