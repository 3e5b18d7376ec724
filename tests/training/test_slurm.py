import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from omniaudio.cli.main import main
from omniaudio.errors import UserError
from omniaudio.training.slurm import Slurm, in_the_job
from tests.conftest import train_words

CONFIG = {"exp_dir": "exp/t", "stage": "text_lm", "tag": "t", "num_nodes": 2, "devices": 8}


SRUN = """while [ "${{1#--}}" != "$1" ]; do shift; done
export SLURM_NTASKS_PER_NODE=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' {job})
export SLURM_NTASKS=$SLURM_NTASKS_PER_NODE SLURM_NODEID=0 SLURM_NNODES=1 SLURM_JOB_NAME=t
export SLURM_JOB_NODELIST=localhost SLURM_NODELIST=localhost
for i in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & started="$started $!"
done
code=0
for process in $started; do wait "$process" || code=$?; done
exit $code"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """sbatch keeps the script, srun starts its processes as SLURM would, scontrol says what it was asked."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, text in {
        "sbatch": f'cp "$1" {tmp_path}/job.sh; echo "$PATH" > {tmp_path}/path; echo Submitted batch job 7',
        "srun": SRUN.format(job=tmp_path / "job.sh"),
        "scontrol": f'echo "$*" > {tmp_path}/scontrol',
    }.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def run(job: Path) -> subprocess.CompletedProcess[str]:
    path = (
        (job.parent / "path").read_text().strip() if (job.parent / "path").is_file() else os.environ["PATH"]
    )
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        ["bash", str(job)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_script_asks_for_one_process_a_device():
    words = ["experiment=x/text_lm", "trainer=slurm", "trainer.launcher.account=us", "data=my corpus"]
    script = Slurm(account="us", memory="500G", more=["--constraint=a100"]).script(
        words, CONFIG, Path("exp/t/launch")
    )
    head = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--account=us", "--mem=500G"} <= set(
        head
    )
    assert {
        "--signal=USR1@120",
        "--requeue",
        "--constraint=a100",
        "--output=exp/t/launch/slurm-%j.log",
    } <= set(head)
    assert not any("partition" in line for line in head)
    assert (
        "srun --cpus-per-task=8 --kill-on-bad-exit=0 --wait=600 omniaudio train experiment=x/text_lm "
        "trainer=gpu 'data=my corpus' ||" in script
    )
    assert in_the_job(["trainer=slurm"], gpus=False) == ["trainer=cpu"]
    assert in_the_job(words) == ["experiment=x/text_lm", "trainer=gpu", "data=my corpus"]
    assert "--gpus" not in Slurm(gpus=False).script(words, CONFIG, Path("x"))
    with pytest.raises(UserError, match="'rm -r' is no option of sbatch"):
        Slurm(more=["rm -r"])


@pytest.mark.parametrize("word", ["+hub_token=S3CRET", "+engine={headers: {X-Key: S3CRET}}"])
def test_no_secret_stands_in_the_script(cluster, word):
    with pytest.raises(UserError, match=r"=\*\*\*: a secret.* environment") as error:
        Slurm().submit(["a=b", word], {**CONFIG, "exp_dir": cluster})
    assert "S3CRET" not in str(error.value) and not list(cluster.rglob("job.sh"))
    with pytest.raises(UserError, match="--export=.*a secret"):
        Slurm(more=["--export=ALL,HF_TOKEN=S3CRET"]).script(["a=b"], CONFIG, cluster)
    assert "oc.env:HF_TOKEN" in Slurm().script(["+hub_token=${oc.env:HF_TOKEN}"], CONFIG, cluster)


@pytest.mark.parametrize("code", [0, 75, 1])
def test_a_stopped_job_goes_into_the_queue_again(cluster, code):
    (cluster / "bin" / "omniaudio").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (cluster / "bin" / "omniaudio").chmod(0o755)
    job = cluster / "job.sh"
    job.write_text(Slurm().script(["a=b"], {**CONFIG, "devices": 1}, cluster))
    done = run(job)
    assert (done.returncode, done.stdout.strip()) == (code, "train a=b")
    assert (cluster / "scontrol").exists() == (code == 75)
    assert code != 75 or (cluster / "scontrol").read_text().strip() == "requeue 7"


@pytest.mark.slow
def test_what_is_submitted_trains_in_two_processes(cluster, tiny_data, capsys, monkeypatch):
    exp_dir = cluster / "exp"
    words = [
        *train_words("text_lm", tiny_data, exp_dir), "trainer=slurm", "trainer.launcher.gpus=false",
        "strategy=ddp", "devices=2",
    ]  # fmt: skip
    with socket.socket() as found:
        found.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(found.getsockname()[1]))
    main(["train", *words])
    assert capsys.readouterr().out.strip() == "Submitted batch job 7"
    assert not (exp_dir / "text_lm" / "stamp.json").exists()
    done = run(cluster / "job.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((exp_dir / "text_lm" / "stamp.json").read_text())["key"]
    lines = map(json.loads, (exp_dir / "text_lm" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2], (
        "the first process alone writes"
    )
    assert done.stdout.count("final/backbone") == 1


def test_what_cannot_be_submitted_is_one_line(cluster, tmp_path, monkeypatch):
    config = {**CONFIG, "exp_dir": str(tmp_path / "exp")}
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"sbatch refuses .*job\.sh: invalid partition"):
        Slurm().submit(["a=b"], config)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"there is no sbatch here; .*job\.sh is written"):
        Slurm().submit(["a=b"], config)
    assert (tmp_path / "exp" / "launch" / "text_lm" / "job.sh").is_file()
