"""How each command of the docs is tried. One that stands in none of these lists fails a test.

Of this project's own commands only those in blocks are listed; within the text their own parsers try them all.
"""

from typing import NamedTuple


class Run(NamedTuple):
    """A command that is run in the plant, as it stands.

    Attributes:
        says: what it prints.
        goes_on: whether it ends by an interruption alone, which comes when it has printed that.
        given: what stands for a word in capitals.
        needs: a program without which it is skipped; CI has it, a reader may not.
    """

    says: str
    goes_on: bool = False
    given: tuple[str, ...] = ()
    needs: str = ""


EVERYWHERE = {"cp", "install", "mhpc-worker", "printf", "tar"}  # programs of the basic system, and this project's own

RUN = {
    "cp config.example.toml config.toml": Run(""),
    "mhpc-worker plan --lines 10000 --rate 50 --image-kb 80": Run("S = N / least of these"),
    "mhpc-worker check --config config.toml": Run("ok"),
    "mhpc-worker produce FOLDER --line press-3 --rate 5": Run("8 pictures sent to line press-3"),
    "mhpc-worker status --config config.toml --watch": Run("scoring", goes_on=True),
    "mhpc-worker tail --config config.toml": Run("fed-", goes_on=True),
    "mhpc-worker control press-3 normal ENTRY ID": Run("anchors pinned", given=("ENTRY", "ID")),
    "mhpc-worker review list --line press-3": Run("anomalous"),
    "mhpc-worker dead list --line press-3": Run("truncated"),
    "mhpc-worker snapshots list --config config.toml": Run("000000"),
    "mhpc-worker console --config config.toml": Run("http://127.0.0.1:", goes_on=True),
    "curl -s 127.0.0.1:9108/metrics": Run("mhpc_images_total{", needs="curl"),
    "curl 127.0.0.1:9108/readyz": Run("ok", needs="curl"),
    "openssl rand -hex 32": Run("", needs="openssl"),
    r"printf '\x82\xa1v\x01\xa6images\x91\x84\xa2id\xa9part-0001\xa6format\xa3raw\xa4data\xc4\x04\x00\x40\x80\xff"
    r"\xa5shape\x93\x02\x02\x01' | redis-cli -x XADD 'mhpc:{press-3}:images' '*' batch": Run("-", needs="redis-cli"),
    "install -D -m 0644 config.example.toml /etc/mhpc/station-1.toml": Run(""),
    "install -D -m 0644 config.example.toml /etc/mhpc/console.toml": Run(""),
    "install -D -m 0644 deploy/systemd/gpu.conf /etc/systemd/system/mhpc-worker@station-1.service.d/gpu.conf": Run(""),
    "install -m 0600 /dev/stdin /etc/mhpc/redis-password": Run(""),
    "install -m 0600 /dev/stdin /etc/mhpc/redis-password-console": Run(""),
    "install -m 0600 /dev/stdin /etc/mhpc/console-tokens": Run(""),
    "install -m 0644 -t /etc/systemd/system deploy/systemd/*.service": Run(""),
    "tar -C /var/lib/mhpc -czf snapshots.tar.gz snapshots": Run(""),
    "promtool check rules deploy/prometheus/alerts.yml": Run("SUCCESS", needs="promtool"),
    "promtool test rules deploy/prometheus/alerts_test.yml": Run("SUCCESS", needs="promtool"),
    "kubectl kustomize deploy/kubernetes": Run("kind: StatefulSet", needs="kubectl"),
}

ENGINE = "no container engine in CI; tests/deploy/test_compose.py and test_dockerfile.py check what can be without one"
CLUSTER = "no Kubernetes in CI; tests/deploy/test_kubernetes.py holds the manifests against schemas and the worker"
RANKS = "it goes on for ever; tests/worker/faults/test_ranks.py starts ranks by it, and kills one"
SYSTEMD = "CI's first process is not systemd; tests/deploy/test_systemd.py verifies the units"

# Commands that are not run here, and why not. Those of this project are still taken apart by their own parsers.
NOT_RUN = {
    "make demo ARGS=--serve": "tests/worker/demo/test_serve.py runs its serving part; the whole takes minutes",
    "make test": "it runs these tests",
    "python3 -m venv venv && . venv/bin/activate": "make does so for this run, and installs the packages",
    "pip install s3fs": "it comes with extra dev",
    "pip install -c constraints.txt .": "tests/deploy/test_wheel.py builds and installs; torch is a few GB",
    "docker run -d -p 127.0.0.1:6379:6379 redis:8": "no container engine in CI; the plant's Redis is another",
    "mhpc-worker run --config config.toml": "the plant's worker is started by it, before all others",
    "mhpc-worker bench [--backbone resnet18 --weights random:0] [--lines 1,8,64] [--json FILE]": "it takes minutes; "
    "tests/worker/bench/test_run.py runs it with small pictures",
    "mhpc-worker bench --lines 1,8 --json bench.json": "likewise",
    "mhpc-worker plan --lines 200 --rate 2 --costs bench.json": "tests/worker/cli/test_plan.py runs it on such a file",
    "torchrun --nproc-per-node 4 --max-restarts 1000 -m worker run --distributed --config config.toml": RANKS,
    "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --max-restarts 1000 -m "
    "worker run --distributed --config config.toml": RANKS,
    "kubectl apply -f deploy/kubernetes/namespace.yaml": CLUSTER,
    "kubectl -n mhpc create secret generic mhpc-redis --from-file=password=redis-password": CLUSTER,
    "kubectl apply -k deploy/kubernetes": CLUSTER,
    "kubectl apply -k deploy/kubernetes/monitoring": CLUSTER,
    "kubectl -n mhpc rollout status statefulset/mhpc-keepers": CLUSTER,
    "deploy/secrets.sh": "it writes into deploy/; tests/deploy runs a copy",
    "docker compose -f deploy/compose.yaml up --build --wait": ENGINE,
    "docker compose -f deploy/compose.yaml --profile gpu up --build --wait": ENGINE,
    "docker compose -f deploy/compose.yaml kill -s HUP worker": ENGINE,
    "docker compose -f deploy/compose.yaml --profile gpu kill -s HUP worker-gpu": ENGINE,
    "docker compose -f deploy/compose.yaml ps": ENGINE,
    "docker compose -f deploy/compose.yaml exec grafana sh -c 'grafana cli admin reset-admin-password "
    """"$(cat /run/secrets/grafana_admin)"'""": ENGINE,
    "docker compose -f deploy/compose.yaml cp worker:/var/lib/mhpc/snapshots snapshots": ENGINE,
    "docker compose -f deploy/compose.yaml --profile gpu cp worker-gpu:/var/lib/mhpc/snapshots snapshots": ENGINE,
    "docker compose -f deploy/compose.yaml exec worker mhpc-worker status --config /etc/mhpc/worker.toml": ENGINE,
    "kubectl -n mhpc exec mhpc-keepers-0 -- mhpc-worker control LINE pause --config /etc/mhpc/config.toml": CLUSTER,
    "/opt/mhpc/bin/mhpc-worker status --config FILE": "it is installed there by none of CI's",
    "redis-cli INFO memory": "it asks for an administrator of the plant's own Redis",
    "docker compose config": "tests/deploy/test_compose.py runs it on both profiles",
    "kubectl kustomize": "the one with its folder is run",
    "/opt/mhpc/bin/pip install -c constraints.txt .": "as the one above, for an update",
    "python3 -m venv /opt/mhpc && /opt/mhpc/bin/pip install -c constraints.txt .": "as the one above",
    "systemctl daemon-reload": SYSTEMD,
    "systemctl restart mhpc-worker@station-1": SYSTEMD,
    "systemctl status": SYSTEMD,
    "systemctl stop": SYSTEMD,
    "systemd-analyze verify": "tests/deploy/test_systemd.py runs it on each unit",
    "systemd-analyze security --offline=yes": "likewise",
    "systemctl enable --now mhpc-worker@station-1 mhpc-console": SYSTEMD,
    "systemctl reload mhpc-worker@station-1": SYSTEMD,
    "journalctl -u mhpc-worker@station-1 -o cat -f": SYSTEMD,
    "npm install redis @msgpack/msgpack": "docs/examples/node/package.json names the same; CI installs it",
    "pytest tests/worker": "it is a part of make test",
    "FUZZ_EXAMPLES=100000 pytest --timeout 6000 tests/worker/test_message_fuzz.py": "make test runs fewer of them",
    "python -m worker.demo.render discs": "tests/worker/demo/test_render.py writes such a folder, of fewer parts",
    "python -m worker.demo.render discs && mhpc coverage discs --output pictures --images 100 --top-k 20 "
    "--pca-variance-ratio 0.9": "it takes minutes; both parts are tried by the tests of each",
    "mhpc evaluate FOLDER": "tests/mhpc/evaluation runs it; so the others of mhpc",
    "mhpc evaluate FOLDER --sampler approx_greedy_coreset -p 0.1": "likewise",
    "mhpc ablate FOLDER": "likewise",
    "mhpc coverage FOLDER --output pictures": "likewise",
    "mhpc ablate mtd --threads 1 --images 100 --backbone mobilenet_v1:mobilenet_v1 --layers block5,block11 "
    "--top-k 20 --bank-size 3000 --pca-variance-ratio 0.9": "pictures and backbone are not part of the project",
}
