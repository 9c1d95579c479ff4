"""Files are seen whole or not at all, and panels show the pixels."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gmsrm_jax import files, panels
from gmsrm_jax.errors import ConfigError, is_of_a_file, one_line


def test_a_failed_write_keeps_the_old_file_and_no_scraps(tmp_path, monkeypatch):
  path = tmp_path / "deep" / "report.md"
  files.write_text(path, "old")
  monkeypatch.setattr(pathlib.Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
  with pytest.raises(OSError, match="full"):
    files.write_text(path, "new")
  assert path.read_text() == "old"
  assert [entry.name for entry in path.parent.iterdir()] == ["report.md"]


def test_the_name_of_a_file_that_is_no_text_is_written_with_escapes(tmp_path):
  files.write_text(tmp_path / "report.md", f"é {os.fsdecode(bytes([0x61, 0xFF]))}")
  assert (tmp_path / "report.md").read_bytes() == "é a\\udcff".encode()


def test_a_name_is_shown_on_one_line():
  assert files.printable("a\nb\tc é\udcff.png") == r"a\nb\tc é\udcff.png"


KILLED = """
import os, pathlib, signal, sys
from gmsrm_jax import files
with files.replacing(pathlib.Path(sys.argv[1]) / "whole.txt") as temporary:
  temporary.write_text("who")
  os.kill(os.getpid(), signal.SIGTERM)
  temporary.write_text("whole")
print("went on")
"""


def test_a_file_that_is_written_is_finished_before_sigterm_ends_the_program(tmp_path):
  done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
  assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"whole.txt": "whole"}


@pytest.mark.parametrize("target", ["n" * 251 + ".png", "folder", "file/below"])
def test_a_name_may_be_as_long_as_a_name_can_be_and_what_cannot_be_replaced_is_named(target, tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").touch()
  if target.startswith("n"):
    files.write_text(tmp_path / target, "new")
    assert (tmp_path / target).read_text() == "new"
  else:
    with pytest.raises(OSError) as error:
      files.write_text(tmp_path / target, "new")
    assert is_of_a_file(error.value) and str(tmp_path / target.partition("/")[0]) in one_line(error.value)
  assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_no_scraps_and_names_the_file(tmp_path):
  """The kernel refuses to write more than 1,000 bytes."""
  program = (
    "import resource, sys; from gmsrm_jax import files, errors\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    "try: files.write_text(sys.argv[1], 'x' * 2000)\n"
    "except OSError as error: print(errors.one_line(error))"
  )
  command = [sys.executable, "-c", program, str(tmp_path / "a.png")]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout.startswith(f"{tmp_path / 'a.png'}: File too large: ") and "ulimit" in done.stdout
  assert not list(tmp_path.iterdir())


def test_what_an_encoder_or_an_open_file_says_gets_the_name_of_the_file(tmp_path):
  with pytest.raises(OSError) as error, files.replacing(tmp_path / "a.png"):
    raise OSError("encoder error -2")
  assert one_line(error.value).startswith(f"{tmp_path / 'a.png'}: encoder error -2: ")
  with pytest.raises(OSError) as error, files.naming("metrics.jsonl"), open("/dev/full", "w", buffering=1) as file:
    file.write("line\n")
  assert one_line(error.value).startswith("metrics.jsonl: No space left on device: make room")


def test_a_path_is_local_and_begins_at_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.local_path("~/a b", "--output") == tmp_path / "a b"
  for text, rule in (("", "names nothing"), ("gs://b/x", "no local path: mount"), ("~nobody-here/x", "no such user")):
    with pytest.raises(ConfigError, match=f"--output={text!r}.* {rule}"):
      files.local_path(text, "--output")


def test_an_output_needs_a_folder_that_can_be_written_to(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  files.check_output(tmp_path / "new" / "deep", "--output")
  with pytest.raises(ConfigError, match="--output=.*deep leads through .*file, which is a file"):
    files.check_output(tmp_path / "file" / "deep", "--output")
  monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
  with pytest.raises(ConfigError, match="--output=.*deep: .* is read-only"):
    files.check_output(tmp_path / "new" / "deep", "--output")


def test_an_input_is_known_by_any_name(tmp_path):
  (tmp_path / "photo").write_text("")
  (tmp_path / "link").symlink_to("photo")
  files.check_inputs_stay([tmp_path / "new"], [tmp_path / "photo", tmp_path / "gone"])
  for output in (tmp_path / "link", tmp_path / "x" / ".." / "photo", tmp_path / "gone"):
    (tmp_path / "x").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="is an input"):
      files.check_inputs_stay([output], [tmp_path / "photo", tmp_path / "gone"])


def test_json_holds_plain_values_and_reads_back(tmp_path):
  path = tmp_path / "report.json"
  files.write_json(path, {"n": np.int64(3), "rows": np.array([[1.5, np.nan]]), 2: (np.float32(0.5), None, True)})
  assert files.read_json(path) == {"n": 3, "rows": [[1.5, None]], "2": [0.5, None, True]}
  path.write_text("{")
  with pytest.raises(ConfigError, match="report.json is no JSON file"):
    files.read_json(path)


HOLDER = """
import os, pathlib, socket, sys, time
from gmsrm_jax import files
folder, host, lease = sys.argv[1:]
socket.gethostname = lambda: host or os.uname().nodename
files._LEASE, files._BEAT = float(lease), float(lease) / 6
with files.claimed(pathlib.Path(folder)):
  print("mine", flush=True)
  time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder, host="", lease=60):
  """A second process that keeps the folder, on a host of that name."""
  words = [sys.executable, "-c", HOLDER, str(folder), host, str(lease)]
  with subprocess.Popen(words, cwd=pathlib.Path(files.__file__).parents[1], stdout=subprocess.PIPE, text=True) as child:
    try:
      assert child.stdout.readline() == "mine\n"
      yield child
    finally:
      child.kill()


def test_a_folder_belongs_to_one_process_and_is_free_when_that_is_killed(tmp_path):
  folder = tmp_path / "new" / "run"
  with holder(folder) as child:
    with pytest.raises(ConfigError) as caught, files.claimed(folder):
      raise AssertionError("two of them")
    for part in (str(folder), f"process {child.pid} on {os.uname().nodename}", "another folder"):
      assert part in str(caught.value)
    child.kill()  # as `kill -9`
    child.wait()
    with files.claimed(folder):
      assert f"pid={os.getpid()}\n" in (folder / files.LOCK).read_text()
  assert not list(folder.iterdir())


def test_a_process_of_another_host_keeps_its_folder_while_it_gives_signs_of_life(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(files, "_LEASE", 6.0)
  monkeypatch.setattr(files, "_BEAT", 1.0)
  with holder(tmp_path, "elsewhere", 6) as child:
    with pytest.raises(ConfigError, match=f"process {child.pid} on elsewhere"), files.claimed(tmp_path):
      raise AssertionError("two of them")
    child.kill()
    child.wait()
    begin = time.monotonic()
    with files.claimed(tmp_path):
      assert time.monotonic() - begin > 5.0
  assert f"{tmp_path} is in use by process {child.pid} on elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(("side", "factor"), [(64, 2), (50, 3), (200, 1)])
def test_a_panel_shows_every_pixel_of_every_cell(tmp_path, side, factor):
  rng = np.random.default_rng(0)
  columns = {name: rng.integers(0, 256, (2, side, side, 3), np.uint8) for name in ("image", "a caption " * 20)}
  panels.save_panel(tmp_path / "samples" / "panel.png", columns)
  panel = np.asarray(Image.open(tmp_path / "samples" / "panel.png"))
  cell, gap, header = side * factor, 4, 22
  assert panel.shape == (header + 2 * cell + gap, 2 * cell + gap, 3)
  for column, pixels in enumerate(columns.values()):
    for row in range(2):
      top, left = header + row * (cell + gap), column * (cell + gap)
      shown = panel[top : top + cell, left : left + cell]
      np.testing.assert_array_equal(shown[::factor, ::factor], pixels[row])
      np.testing.assert_array_equal(shown[factor - 1 :: factor, factor - 1 :: factor], pixels[row])
    assert panel[:header, column * (cell + gap) :][:, :cell].min() < 128  # the caption
  assert (panel[:, cell : cell + gap] == 255).all()  # no caption runs into the next column


def test_a_panel_of_unequal_columns_is_refused(tmp_path):
  columns = {"a": np.zeros((2, 8, 8, 3), np.uint8), "b": np.zeros((1, 8, 8, 3), np.uint8)}
  with pytest.raises(ValueError, match="one shape"):
    panels.save_panel(tmp_path / "panel.png", columns)
  assert not (tmp_path / "panel.png").exists()
