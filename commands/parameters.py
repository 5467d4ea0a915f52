"""The types of the commands' arguments and options."""

import json
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import product
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
    """A day (its beginning, in UTC), a time with a zone, or a number of days, hours or minutes ago."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if ago := re.fullmatch(r"(\d{1,6})([dhm])", value, re.ASCII):
                unit = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}[ago[2]]
                return datetime.now(UTC) - int(ago[1]) * unit
            if not re.match(r"\d{4}-\d\d-\d\d(T|$)", value, re.ASCII):
                raise ValueError
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None and len(value) > 10:
                self.fail(f"{value!r} has no time zone; add Z for UTC", param, ctx)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a date; use 2026-03-01, 2026-03-01T12:00Z, or 400d, 2h or 30m ago", param, ctx)


class TimeZone(click.ParamType[ZoneInfo]):
    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ZoneInfo:
        try:
            return value if isinstance(value, ZoneInfo) else ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            self.fail(f"{value!r} is not a time zone; use a name such as UTC or Europe/Berlin", param, ctx)


class Contained(click.ParamType[list[str]]):
    """What metadata contain: KEY=VALUE, where the value is a text or a number, or a JSON object."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        if value.startswith("{"):
            try:
                content = json.loads(value)
            except (ValueError, RecursionError):
                self.fail(f"{value[:100]!r} is not a JSON object", param, ctx)
            if not _has_value(content):
                self.fail(f'{value[:100]!r} has no value, such as in {{"userId": "user_42"}}', param, ctx)
            return [value]
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE, nor a JSON object", param, ctx)
        number = [f"{{{json.dumps(key)}: {text}}}"] if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text, re.ASCII) else []
        return [json.dumps({key: text}), *number]


def _has_value(content: Any) -> bool:
    """Return whether JSON has something in it that is not an object or array."""
    if isinstance(content, dict | list):
        return any(map(_has_value, content.values() if isinstance(content, dict) else content))
    return True


def metadata_option(*, required: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option --metadata. Its value is a list of JSON objects: metadata have to contain one of them."""
    return click.option(
        "--metadata",
        type=Contained(),
        multiple=True,
        required=required,
        callback=_combined,
        help='Only events whose metadata contain this: userId=user_42, or JSON: \'{"user": {"id": 42}}\'. If given '
        "twice, they must contain both.",
    )


def _combined(_ctx: click.Context, _param: click.Parameter, values: tuple[list[str], ...]) -> list[str] | None:
    """Return objects with a member of each value. A value stands for one object or two: with a text, with a number."""
    keys = [key for alternatives in values for key in json.loads(alternatives[0])]
    if len(set(keys)) < len(keys):
        raise click.BadParameter("a key is given twice: write its content as one JSON object")
    combined = [", ".join(text.strip()[1:-1] for text in texts) for texts in product(*values)]
    return [f"{{{members}}}" for members in combined] if values else None


json_option = click.option("--json", "as_json", is_flag=True, help="Print lines of JSON, for scripts.")
org_option = click.option("--org", type=Name(), help="Only this organization.")
