"""What others have put in place of a run's own objects takes no more memory than a run's own would."""

import pytest

from launcher.errors import ConfigError
from launcher.remote_run import object_store
from launcher.remote_run.object_store import ObjectStore


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_an_object_that_is_too_large_to_be_of_a_run_is_refused(kind, tmp_path, request, monkeypatch):
    url = f"file://{tmp_path}"
    if kind == "s3":
        url = request.getfixturevalue("bucket")
    monkeypatch.setattr(object_store, "MAX_SMALL_BYTES", 1000)
    store = ObjectStore(f"{url}/run")
    store.write("whole.json", b" " * 1000)
    store.write("huge.json", b" " * 5000)
    assert store.read("whole.json") == b" " * 1000
    assert store.read("missing.json") is None
    with pytest.raises(ConfigError, match=r"run/huge\.json has more than .* choose another --run-dir"):
        store.read("huge.json")
