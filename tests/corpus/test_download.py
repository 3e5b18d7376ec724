import functools
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest

from omniaudio.corpus.download import download, fetch_archive, need_root, unpack
from omniaudio.errors import UserError
from omniaudio.files import partial_path


class Ranged(http.server.SimpleHTTPRequestHandler):
    """Serves files, parts of them too; notes what was asked for. ``broken`` ends after so many bytes."""

    asked: list = []
    broken = None

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.broken])

    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "web").mkdir()
    Ranged.asked, Ranged.broken = [], None
    handler = functools.partial(Ranged, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield tmp_path / "web", f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def make_tar(path, **members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_fetched_and_unpacked_once(server, tmp_path):
    web, url = server
    make_tar(web / "a.tar.gz", top__file=b"content")
    for _ in range(2):
        fetch_archive(f"{url}/a.tar.gz", tmp_path / "raw")
    assert (tmp_path / "raw" / "top" / "file").read_bytes() == b"content"
    assert len(Ranged.asked) == 1 and not (tmp_path / "raw" / "a.tar.gz").exists()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    web, url = server
    content = bytes(range(256)) * 40
    (web / "f").write_bytes(content)
    Ranged.broken = 3000
    with pytest.raises(UserError, match="3000 of 10240 bytes came; the same command goes on"):
        download(f"{url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists() and partial_path(tmp_path / "f").stat().st_size == 3000
    Ranged.broken = None
    download(f"{url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == content and Ranged.asked[-1][1] == "bytes=3000-"


def test_a_whole_part_file_is_taken(server, tmp_path):
    web, url = server
    (web / "f").write_bytes(b"whole")
    partial_path(tmp_path / "f").write_bytes(b"whole")
    download(f"{url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"whole"


def test_what_cannot_be_fetched_is_one_line(server, tmp_path):
    _, url = server
    with pytest.raises(UserError, match="none: 404"):
        download(f"{url}/none", tmp_path / "f")
    with pytest.raises(UserError, match=r"refused.*corpus\.root=DIR"):
        download("http://127.0.0.1:9/f", tmp_path / "f")


def test_archives_that_lead_out_or_are_cut_are_refused(tmp_path):
    escaping = make_tar(tmp_path / "a.tar.gz", **{"..__evil": b"x"})
    with pytest.raises(UserError, match="refused"):
        unpack(escaping, tmp_path / "raw")
    assert not (tmp_path / "evil").exists()
    cut = tmp_path / "b.tar.gz"
    cut.write_bytes(make_tar(tmp_path / "c.tar.gz", a=bytes(range(256)) * 99).read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(cut, tmp_path / "raw")


def test_a_root_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"is given out to those who ask .* corpus\.root=DIR"):
        need_root(None, "Speech", "https://speech")
    with pytest.raises(UserError, match="no such folder"):
        need_root(tmp_path / "none", "Speech", "https://speech")
    assert need_root(tmp_path, "Speech", "https://speech") == tmp_path
