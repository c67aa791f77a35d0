"""The metadata of a refresh comes with one answer, from controllers that can; else file by file."""

import pytest

from device_agents.control.metadata import MetadataSource
from device_agents.control.requests import MetadataAnswer
from edgekit.errors import NotFoundError, UnavailableError

FILES = {"timestamp.json": b"t", "2.root.json": b"r", "5.snapshot.json": b"s", "3.targets.json": b"g"}


class Controllers:
    """Answers like a controller; an old one ignores what the device has."""

    def __init__(self, *, old=False):
        self.old, self.asked = old, []

    async def metadata(self, name):
        return (await self.metadata_with(name, {})).data

    async def metadata_with(self, name, have):
        self.asked.append((name, dict(have)))
        if name not in FILES:
            raise NotFoundError(f"there is no {name}")
        if self.old or not have:
            return MetadataAnswer(FILES[name], {}, set())
        rest = {one: data for one, data in FILES.items() if one != name}
        return MetadataAnswer(FILES[name], rest, {"3.root.json"})


async def refresh(source):
    found = {}
    for name in ("2.root.json", "3.root.json", "timestamp.json", "5.snapshot.json", "3.targets.json"):
        try:
            found[name] = await source.file(name)
        except NotFoundError:
            found[name] = None
    return found


@pytest.mark.parametrize("old", [False, True])
async def test_each_refresh_gets_every_file_from_new_and_old_controllers(old):
    """A new one needs one request for it, and the next refresh asks again: nothing is kept."""
    controllers = Controllers(old=old)
    source = MetadataSource(controllers, lambda: {"targets": 2, "snapshot": -1, "p": 2**40})
    source.need(["publisher-a"])
    for round_ in (1, 2):
        assert await refresh(source) == {**FILES, "3.root.json": None}
        if not old:
            assert len(controllers.asked) == round_
    assert controllers.asked[0] == ("timestamp.json", {"publisher-a": 0, "targets": 2, "snapshot": 0, "root": 1})


async def test_no_answer_is_an_error_and_not_an_absent_root():
    """A refresh must not go on with an old root, because a message was lost."""
    controllers = Controllers()

    async def lost(name, have):
        raise UnavailableError("no controller answered")

    controllers.metadata_with = lost
    with pytest.raises(UnavailableError):
        await MetadataSource(controllers, dict).file("2.root.json")
