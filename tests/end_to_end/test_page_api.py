"""The API of `audioldm2 ui`: many clients, and clients who mean no good."""

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2.ui.limits import Limits
from tests.support.page import serve, until
from tests.support.sizes import full_or

pytest.importorskip("gradio", reason="the page needs Gradio")
from gradio_client import handle_file

README = Path(__file__).resolve().parents[2] / "audioldm2" / "ui" / "README.md"
QUICK = {"audio_length_in_s": 0.2, "num_inference_steps": 2}
REQUESTS = full_or(50, 12)
LIMITS = Limits(seconds=5, steps=300, candidates=2, waiting=REQUESTS - 1, upload_mb=1)


@pytest.fixture(scope="module")
def served(tiny_model):
    with serve(tiny_model, LIMITS) as served:
        yield served


@pytest.fixture
def busy(served):
    """Something that runs on the device until it is released."""
    gate = threading.Event()
    served.server.worker.submit(lambda job: gate.wait(120))
    yield gate
    gate.set()


def samples(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def as_written(wave: torch.Tensor, folder: Path) -> np.ndarray:
    from audioldm2.audio import write_wav

    write_wav(folder / "alone.wav", wave, 16000)
    return samples(str(folder / "alone.wav"))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- what it makes


def test_requests_of_eight_clients_are_each_answered_as_if_alone(served, busy, tmp_path):
    clients = [served.client() for _ in range(8)]
    requests = [dict(prompt=f"sound number {seed}", seed=str(seed), **QUICK) for seed in range(REQUESTS)]
    memory: list[float] = []
    jobs = []
    for place, request in enumerate(requests):
        jobs.append(clients[place % 8].submit(**request, api_name="/generate"))
        jobs[-1].add_done_callback(lambda _: memory.append(resident_mb()))
    until(lambda: served.running == 1 and served.waiting == REQUESTS - 1)

    with pytest.raises(Exception, match="Queue is full"):
        clients[0].predict(**requests[0], api_name="/generate")

    busy.set()
    for request, job in zip(requests, jobs, strict=True):
        sound, picture, record = job.result(timeout=120)
        assert (record["prompt"], str(record["seed"])) == (request["prompt"], request["seed"])
        alone = served.model.generate(request["prompt"], seed=int(request["seed"]), **QUICK)
        assert np.array_equal(samples(sound), as_written(alone.audio[0, 0], tmp_path))
        assert Path(picture).stat().st_size > 1000
    assert len(memory) == REQUESTS
    fifth = REQUESTS // 5
    assert abs(np.mean(memory[:fifth]) - np.mean(memory[-fifth:])) < 50


def test_a_sound_of_ones_own_is_varied_continued_and_edited(served, tmp_path):
    t = torch.arange(8000) / 16000
    file = str(tmp_path / "tone.wav")
    soundfile.write(file, (0.3 * torch.sin(2 * torch.pi * 440 * t)).numpy(), 16000)
    client = served.client()
    own = {"prompt": "a bell", "audio": handle_file(file), "num_inference_steps": 2, "api_name": "/remake"}
    varied, _, record = client.predict(**own, strength=0.5)
    assert (len(samples(varied)), record["strength"], record["audio"]["seconds"]) == (8000, 0.5, 0.5)
    remade, _, record = client.predict(**own, mask_start_seconds="0.2", mask_end_seconds="0.3")
    assert np.abs(samples(remade)[:3000] - samples(file)[:3000].astype(int)).max() <= 1
    longer, _, record = client.predict(**own, extend_seconds=0.5)
    assert len(samples(longer)) == 16000 and record["extend_seconds"] == [0, 0.5]
    edited, _, record = client.predict(**own, source_prompt="a tone", skip=0.5)
    assert record["source_prompt"] == "a tone" and len(samples(edited)) == 8000


def test_a_sound_is_the_prompt_with_a_text_or_without(hearing, tmp_path):
    sound = str(tmp_path / "dog.wav")
    soundfile.write(sound, 0.1 * torch.randn(8000).numpy(), 16000)
    with serve(hearing, LIMITS) as served:
        client = served.client()
        asked = {"audio_prompt": handle_file(sound), "api_name": "/generate", **QUICK}
        for prompt, heard in (("rain", "3"), ("", "")):
            wave, _, record = client.predict(prompt=prompt, heard=heard, **asked)
            assert (record["audio_prompt"]["file"], record["heard"]) == ("dog.wav", int(heard or 8))
            alone = served.model.generate(prompt, audio_prompt=sound, heard=record["heard"], **QUICK)
            assert np.array_equal(samples(wave), as_written(alone.audio[0, 0], tmp_path))
        with pytest.raises(Exception, match=r"Heard is 9; it has to be a whole number from 0 to 8"):
            client.predict(prompt="rain", heard="9", **asked)


def test_the_clients_of_the_readme_run(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text().replace("http://127.0.0.1:7860", served.address.rstrip("/"))
    [python] = re.findall(r"<!-- client -->\n```python\n(.*?)```", text, re.S)
    assert len(python.strip().splitlines()) <= 6
    exec(compile(python.replace("2.5", "0.2"), "README.md", "exec"), {})
    assert len(samples("birds.wav")) == 3200
    [shell] = re.findall(r"<!-- curl -->\n```bash\n(.*?)```", text, re.S)
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", shell.replace("2.5", "0.2")], capture_output=True)
    assert run.returncode == 0, run.stderr
    assert len(samples("rain.wav")) == 3200


def test_a_cancelled_request_ends_within_a_step_and_leaves_no_file(served):
    before = set(served.server.folder.iterdir())
    steps: list[int] = []
    job = served.client().submit(
        prompt="a long one", audio_length_in_s=5, num_inference_steps=300, api_name="/generate"
    )
    latest = until(lambda: next(iter(served.server._jobs)))
    until(lambda: latest.latest and latest.latest.step >= 2)
    job.cancel()
    until(lambda: latest._cancelled)
    steps.append(latest.latest.step)
    until(latest.outcome.done)
    assert latest.latest.step - steps[0] <= 1 and latest.latest.step < 300
    assert set(served.server.folder.iterdir()) == before


# ---- what it refuses


def ask(served, endpoint: str, **values: object) -> tuple[int, str]:
    """The answer to a request by plain HTTP: its status and text."""
    import httpx

    url, body = f"{served.address}gradio_api/call/v2/{endpoint}", json.dumps(values)
    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60)
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"prompt": "x" * 1_000_000}, "Prompt has 1,000,000 characters; it has to have at most 2,000."),
        ({"prompt": " "}, "Prompt is empty; it has to describe a sound."),
        ({"prompt": "\ud800"}, "Prompt has half of a surrogate pair; it has to be Unicode text."),
        (
            {"audio_length_in_s": 1e9},
            "Duration is 1000000000; it has to be at most 5 seconds on this server.",
        ),
        ({"audio_length_in_s": "nan"}, "Duration is nan; it has to be a finite number."),
        ({"audio_length_in_s": None}, "Duration is 10.0; it has to be at most 5 seconds on this server."),
        ({"num_inference_steps": 301}, "Steps is 301; it has to be at most 300 on this server."),
        ({"num_inference_steps": {"a": 1}}, "Steps is {'a': 1}; it has to be a whole number of at least 1."),
        ({"num_waveforms_per_prompt": 3}, "Candidates is 3; it has to be at most 2 on this server."),
        ({"guidance_interval": "1 x"}, "Guidance interval is '1 x'; it has to be two numbers"),
        ({"seed": -1}, "Seed is -1; it has to be a whole number from 0"),
        ({"karras": "yes"}, "Karras is 'yes'; it has to be True or False."),
        ({"model": "/etc/passwd"}, "is not in the list of choices"),
    ],
)
def test_bad_values_get_a_sentence(served, values, sentence):
    status, text = ask(served, "generate", **{"prompt": "rain", "audio_length_in_s": 0.2} | values)
    assert status in (400, 422)
    assert sentence in text.replace('\\"', '"')
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/etc/passwd", "not uploaded by a user"),
        ("../../../../etc/passwd", "not uploaded by a user"),
        (str(README), "not uploaded by a user"),
        ("http://127.0.0.1:1/x.wav", "fetches no files from the web"),
        ("file:///etc/passwd", "fetches no files from the web"),
    ],
)
def test_paths_of_clients_are_not_opened(served, path, sentence):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    status, text = ask(served, "remake", prompt="rain", audio=file)
    assert status == 400 and sentence in text
    status, text = ask(served, "generate", prompt=file)  # in a field that takes no file
    assert status == 400 and sentence in text


def test_files_of_the_computer_and_of_the_web_are_not_served(served):
    import httpx

    for path in (
        "/etc/passwd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        str(README),
        "http://127.0.0.1:1/",
        "https:%2f%2fx.org",
    ):
        answer = httpx.get(f"{served.address}gradio_api/file={path}", timeout=60)
        assert answer.status_code == 403, path
        assert "root:" not in answer.text


def test_uploads_are_limited(served, tmp_path):
    import httpx

    address = f"{served.address}gradio_api/upload"
    answer = httpx.post(address, files={"files": b"0" * 2_000_000}, timeout=60)
    assert (answer.status_code, answer.text) == (
        413, "The request has 2,000,183 bytes; it has to have at most 1,100,000.",
    )  # fmt: skip
    answer = httpx.post(address, content=(b"0" for _ in range(10)), timeout=60)
    assert answer.status_code == 411
    soundfile.write(tmp_path / "long.flac", np.zeros(16000 * 60, dtype="int16"), 16000)  # 60 s in 9 kB
    [path] = httpx.post(address, files={"files": (tmp_path / "long.flac").read_bytes()}, timeout=60).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    status, text = ask(served, "remake", prompt="rain", audio=file)
    assert status == 422 and "Your sound lasts 60.0 seconds; it has to last at most 5 on this server." in text
    [path] = httpx.post(address, files={"files": b"no sound"}, timeout=60).json()
    status, text = ask(served, "remake", prompt="rain", audio=file | {"path": path})
    assert "Your sound is not a sound file that can be read" in text and str(served.server.folder) not in text


def test_the_queue_cannot_be_passed_by(served):
    import httpx

    answer = httpx.post(
        f"{served.address}gradio_api/run/generate", json={"data": ["tiny", "rain"]}, timeout=60
    )
    assert answer.status_code == 404 and "join the queue" in answer.text


def test_what_a_killed_page_left_is_deleted_by_the_next(tmp_path, monkeypatch):
    from audioldm2.ui import server

    monkeypatch.setenv("AUDIOLDM2_CACHE", str(tmp_path))
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = tmp_path / "ui" / f".audioldm2-{killed.pid}-0a1b-page" / "sound"
    left.mkdir(parents=True)
    (left / "half.wav").write_bytes(b"RIFF")
    with server.files() as folder:
        assert [folder] == list((tmp_path / "ui").iterdir())
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
    assert list((tmp_path / "ui").iterdir()) == []
