"""Files that were misread once: one of each kind. All that were found, and many more, are in tests/torture/fuzz."""

import pytest

from tests.torture.fuzz import harness
from tests.torture.fuzz.found import FOUND
from tests.torture.fuzz.targets import TARGETS

ONE_OF_EACH = list({found.target: found for found in FOUND}.values())[:10]


@pytest.mark.parametrize("found", ONE_OF_EACH, ids=lambda found: f"{found.target}: {found.why}")
def test_what_was_found_stays_mended(found, tmp_path):
    harness.write_files(tmp_path, TARGETS[found.target].files() | found.files)
    kind, said = harness.outcome(TARGETS[found.target].read, tmp_path)
    assert (kind, found.says or "") == ("refused" if found.says else "parsed", found.says or ""), said
    assert (found.says or "") in said
