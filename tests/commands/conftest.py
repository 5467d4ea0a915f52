import pytest

from tests.commands.trail import receive, seals
from tests.support import Account


@pytest.fixture
def sealed(account: Account) -> Account:
    """An organization with three sealed days of three events, and the quiet days since."""
    receive(account, *(f"2026-03-0{day}T10:00:00Z" for day in (1, 2, 3)))
    assert len(seals(account)) == 3
    return account
