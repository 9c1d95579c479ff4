"""`Inpainter` on pictures and arrays, and uploads to a real server."""

from __future__ import annotations

import base64
import contextlib
import io
import pathlib
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np
from PIL import Image, ImageOps

from benchmarks.reliability.fuzz.by_hand import Random, choice, maybe
from benchmarks.reliability.fuzz.pairs import BATCH, Fault, captured, judge, kind_of, last_line, margin, noise, pair
from benchmarks.reliability.fuzz.shell import STEMS
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.inpainter import Inpainter


def python(rng: Random, number: int, inpainter: Inpainter, root: pathlib.Path) -> tuple[list[Fault], int, int]:
  """`Inpainter` on pictures and arrays."""
  faults, filled = [], 0
  for _ in range(BATCH):
    one = pair(rng)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, mask = Image.open(io.BytesIO(one.picture.data)), Image.open(io.BytesIO(one.mask.data))
        image.load()
        mask.load()
        upright = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the caller's own
      continue
    rgb = np.asarray(upright.convert("RGB"))
    given = choice(
      rng, image, image, image, [image, image], rgb, rgb[..., 0], np.stack([rgb, rgb]), jax.numpy.asarray(rgb)
    )
    types = (np.uint8, np.float32, np.int64, bool)
    hole = choice(rng, mask, mask, one.hole[..., None], one.hole * np.uint8(255), *map(one.hole.astype, types))
    options = {"num_samples": choice(rng, 1, 1, 2), "seed": choice(rng, *range(12), 2**32, 2**70, -1)}
    options["strategy"] = choice(rng, "auto", "crop", "resize")
    kind = f"{type(given).__name__} {image.mode} ({one.picture.kind}), {type(hole).__name__} {one.mask.kind}, {options}"

    def add(what: str, detail: str = "", kind: str = kind) -> None:
      faults.append(Fault(number, "python", what, f"{kind}\n{detail}"))

    try:
      with captured(root.parent) as texts:
        results = inpainter(given, hole, **options)
    except ConfigError as error:
      if len(str(error).splitlines()) != 1:
        add("a refusal that is not one line", str(error))
      continue
    except Exception:  # noqa: BLE001 - what the user would see
      add(last_line(traceback.format_exc()), traceback.format_exc())
      continue
    if heard := noise(texts["err"], warnings=False):
      add(heard, texts["err"])
    filled += 1
    known = np.zeros((0, 0), bool) if hole is mask and not one.exact else margin(one.mask, one.hole)
    for result in results if options["num_samples"] > 1 else [results]:
      if wrong := _difference(upright if given is image else given, result, known):
        add(kind_of(wrong))
  return faults, BATCH, filled


def _difference(before: Any, after: Any, known: np.ndarray) -> str:
  """The fault of a result, in words; its mode may be another one, in which no pixel changes where it can say so."""
  if isinstance(before, list):
    if not isinstance(after, list) or len(before) != len(after):
      return f"a list came back as {type(after).__name__}"
    return max(_difference(*pair, known) for pair in zip(map(ImageOps.exif_transpose, before), after, strict=True))
  if isinstance(before, Image.Image):
    if not isinstance(after, Image.Image):
      return f"an image came back as {type(after).__name__}"
    if before.mode not in (after.mode, "1", "L", "P", "RGB", "CMYK", "YCbCr") or before.has_transparency_data:
      known = np.zeros((0, 0), bool)  # RGB cannot say it
    before = before if before.mode == after.mode else before.convert(after.mode)
  elif type(before) is not type(after):
    return f"{type(before).__name__} came back as {type(after).__name__}"
  a, b = np.asarray(before), np.asarray(after)
  if a.shape != b.shape or a.dtype != b.dtype:
    return f"{a.dtype} {a.shape} came back as {b.dtype} {b.shape}"
  if known.size == 0:
    return ""
  different = a != b if a.shape == known.shape else (a != b).any(-1)
  return "known pixels changed" if different[..., known].any() else ""


@contextlib.contextmanager
def serving(inpainter: Inpainter) -> Iterator[httpx.Client]:
  """A client of a real server in a thread."""
  from gmsrm_jax.commands.serve import listen
  from gmsrm_jax.serving.server import Limits, Service

  service = Service(inpainter, Limits())
  with contextlib.closing(listen("127.0.0.1", 0)) as address:
    thread = threading.Thread(target=service.run, args=[address])
    thread.start()
    try:
      with httpx.Client(
        base_url=f"http://127.0.0.1:{address.getsockname()[1]}", timeout=120, trust_env=False
      ) as client:
        yield client
    finally:
      service.server.should_exit = True
      thread.join()


def over_http(rng: Random, number: int, client: httpx.Client, root: pathlib.Path) -> tuple[list[Fault], int, int]:
  """Uploads, in both forms of a request."""
  faults, filled = [], 0
  for _ in range(BATCH):
    one, own = pair(rng), maybe(rng, 0.1)
    fields: dict[str, Any] = {"image": one.picture.data} if own else {"image": one.picture.data, "mask": one.mask.data}
    fields |= {
      "num_samples": choice(rng, 1, 1, 1, 2),
      "strategy": choice(rng, *("auto", "crop", "resize") * 4, "x"),
    }
    fields |= {"seed": choice(rng, 0, 7, 2**32 - 1, 2**32, -1)} if maybe(rng) else {}
    accept = choice(rng, "*/*", "application/json")
    name = choice(rng, *STEMS).encode("utf-8", "replace").decode()
    with captured(root.parent) as texts:
      if maybe(rng):
        pack = choice(
          rng, base64.b64encode, base64.encodebytes, lambda data: b"data:image/png;base64," + base64.b64encode(data)
        )
        content = {key: pack(value).decode() if isinstance(value, bytes) else value for key, value in fields.items()}
        answer = client.post("/inpaint", json=content, headers={"accept": accept})
      else:
        files = {
          key: (name, value) if isinstance(value, bytes) else (None, str(value)) for key, value in fields.items()
        }
        answer = client.post("/inpaint", files=files, headers={"accept": accept})
    kind = f"{one.picture.kind}, {one.mask.kind}, { ({k: v for k, v in fields.items() if not isinstance(v, bytes)}) }"
    if heard := noise(texts["err"], warnings=False):
      faults.append(Fault(number, "http", heard, f"{kind}\n{texts['err'][-1500:]}"))
    if answer.status_code != 200:
      body = answer.json()
      if answer.status_code in (500, 503, 504, 415) or list(body) != ["error"] or "\n" in body["error"]:
        faults.append(Fault(number, "http", f"status {answer.status_code}", f"{kind}\n{answer.text}\n{texts['err']}"))
      elif "no base64" in answer.text or "JSON" in answer.text or "base64" in answer.text:
        faults.append(Fault(number, "http", "base64 was refused", f"{kind}\n{answer.text}"))
      continue
    filled += 1
    plain = answer.headers["content-type"] == "image/png"
    for data in [answer.content] if plain else map(base64.b64decode, answer.json()["images"]):
      if wrong := judge(one, data, grown=False, own=own):
        faults.append(Fault(number, "http", kind_of(wrong), f"{kind}: {wrong}"))
  return faults, BATCH, filled
