"""What each key of the configuration is for, in its JSON schema. Imports no torch."""

from typing import Any

# By the table's class, then by key; "" is the table itself.
EXPLAINED: dict[str, dict[str, str]] = {
    "Settings": {
        "log_format": '"console" is for people, "json" for machines; "auto" is "console" on a terminal, else "json".',
        "lines": "The lines that this worker serves, a table each; SIGHUP has them read anew.",
    },
    "RedisSettings": {
        "": "Where Redis is, 6.2 or newer, and who this is there.",
        "url": "redis://HOST:PORT/DB, rediss:// with TLS, unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB "
        "or redis+cluster://HOST:PORT,HOST:PORT. A user and a password may stand before the host, as USER:PASSWORD@. "
        "Sentinels that want a login: ?sentinel_username=, and &sentinel_password= or &sentinel_password_file=.",
        "username": "The user, here or in url. deploy/redis/users.acl has users with the least rights.",
        "password_file": "A file with the password alone, as Docker and Kubernetes mount secrets.",
        "ca_file": "TLS: the CA that signed the server's certificate, in PEM, trusted beside the system's.",
        "cert_file": "TLS: this worker's own certificate, in PEM, where the server asks for one.",
        "key_file": "TLS: the key of cert_file, not encrypted.",
    },
    "ProcessSettings": {
        "": "The process.",
        "name": "The worker's name, stable across restarts and its own alone: pending entries stand under it. "
        "Left out: the host's name.",
        "device": 'Where it computes: "auto" is CUDA where there is one, else the CPU; or "cpu", "cuda", "cuda:1", ...',
        "fleet": "Whether it serves the lines that mhpc-worker lines add declares in Redis, too, with all workers that "
        "say so: each answers all of them, and keeps an even share.",
        "rank_seconds": "With run --distributed: a rank that is silent for so long is gone; torchrun starts all again.",
        "capacity": "Lines of the fleet that it keeps at most, however large its even share; 0: it answers alone.",
    },
    "ModelSettings": {
        "": "The backbone, one for all lines. What was learned with one is of no use with another.",
        "backbone": '"tiny" comes in the box; "resnet18", "wide_resnet50_2" and others are torchvision\'s; or '
        '"package.module:function", a function without arguments that returns a torch.nn.Module.',
        "weights": '"bundled" (tiny alone), "pretrained" (torchvision downloads them), the path of a safetensors file '
        '(mhpc-worker weights fetch), or "random:SEED". Left out: "bundled" for tiny, "pretrained" for torchvision\'s. '
        "A function brings its own: leave it out there.",
        "layers": "Submodules of the backbone whose maps are the features.",
        "input_shape": "Height and width that pictures are squashed to.",
        "bank_size": "Anchors that a line keeps. A quarter more while it learns (2,500 for 1,000 to 1,999); what "
        "people call normal adds up to half as many until the next relearn, and then counts among them. Where that is "
        "more than half of a bank_size that was lowered, a relearn keeps it and as many others, and no more may be "
        "called normal.",
        "pca_variance_ratio": "Share of the variance that the whitened space keeps.",
        "precision": 'What the backbone computes in; "auto" is the faster of the two, found by a trial at the start.',
        "max_batch": "Images in one forward pass; 0 is 8 on a CPU and 64 on a GPU.",
        "max_wait_ms": "Milliseconds that an image waits for others to fill its batch.",
    },
    "LearningSettings": {
        "": "Phase learning.",
        "images": "Images learned from before calibration begins, at most.",
        "min_images": "Images at least, before convergence may end learning.",
        "converge": "Whether convergence ends learning: nothing new comes, and the whitened space stands still.",
        "forgetting": "Share of the past's weight that is left after 1,000 images of a relearn; 1 forgets nothing.",
        "relearn_on_drift": "Whether the line relearns by itself when drift alarms.",
        "moments_share": "Share of the patches that mean and covariance take, after the first 16,384.",
    },
    "CalibrationSettings": {
        "": "Phase calibrating.",
        "images": "Images scored to find the threshold.",
        "false_positive_rate": "Share of good parts that may raise an alarm.",
    },
    "ScoringSettings": {
        "": "Phase scoring.",
        "top_k": "An image's score is the mean of so many largest patch scores. By another one than it was "
        "calibrated with, what a line has learned is refused, and nothing answered: restore that, or learn anew under "
        "another line name.",
        "heat_map": "Whether results carry the patch scores.",
        "track_threshold": "Whether the threshold follows a slow change of the normal scores.",
        "track_bound": "How far it may follow, as a share of the threshold that calibration found.",
    },
    "SnapshotSettings": {
        "": "Versions of what was learned, on disk or in an object store.",
        "directory": "The folder, or an object store as fsspec has it, such as s3://BUCKET/PREFIX (pip install s3fs) "
        "or gs://BUCKET/PREFIX (pip install gcsfs); each line has a folder of its own in it.",
        "every_images": "A snapshot is written after so many images (one that takes 0.2 s or more, a tenth of the time "
        "at most),",
        "every_seconds": "or after so many seconds, whichever comes first.",
        "keep": "Versions that stay; pinned ones, and the one that rollback goes back to, stay beside them.",
        "timeout_seconds": "Seconds that an object store, or a disk while answers go on, may take for a version; then "
        "it is tried again, and the version before goes on.",
        "cache": "With an object store: the folder of this machine where the one or two newest versions of each line "
        "stay.",
    },
    "StreamSettings": {
        "": "What is kept in Redis, and what is read from it.",
        "scores_max": "Results kept per line, about: Redis trims in blocks.",
        "dead_max": "Dead letters kept per line, about.",
        "review_max": "Anomalous and quarantined parts kept per line with their bytes, for people and feedback,",
        "review_bytes": "as long as their pictures take no more bytes than this; the oldest go first.",
        "payload_bytes": "Bytes of a dead letter's payload; what is longer is cut.",
        "prefetch_bytes": "Bytes read ahead, shared by the lines; each may have one entry in hand, however large.",
        "unique_ids": "Among so many last images of a line an id is answered and learned once; 0 is off.",
        "claim_seconds": "Unanswered for so many seconds, an entry is taken from its consumer by another.",
    },
    "LimitSettings": {
        "": "What exceeds these becomes a dead letter.",
        "entry_bytes": "Bytes of one entry of the stream.",
        "images_per_entry": "Pictures in an entry.",
        "image_side": "Height or width of a picture, in pixels.",
        "image_pixels": "Height times width.",
        "meta_bytes": "Bytes of an image's meta, packed.",
    },
    "HttpSettings": {
        "": "The worker's own pages: /metrics, /healthz and /readyz.",
        "host": 'The address that is listened on; "0.0.0.0" to be reached from elsewhere.',
        "port": "The port; 0 is any free one.",
    },
    "LineSettings": {
        "": "A line. What it leaves out is as the worker's tables say.",
        "name": "1 to 63 of a-z 0-9 _ -, the first a letter or a digit. Its keys in Redis are mhpc:{NAME}:images, ...",
        "weight": "Its share of the worker, where lines compete for it.",
        "bank_size": "Overrides model.bank_size.",
        "learning": "Overrides keys of [learning].",
        "calibration": "Overrides keys of [calibration].",
        "scoring": "Overrides keys of [scoring].",
    },
    "ConsoleSettings": {
        "": "The live page, mhpc-worker console: a process of its own.",
        "host": 'The address that is listened on; "0.0.0.0" to be reached from elsewhere, better by a reverse proxy '
        "with TLS.",
        "port": "The port; 0 is any free one.",
        "tokens": "Who may press buttons: names, each with a token of 16 characters or more. Without any, one is "
        "made at the start and printed.",
        "tokens_file": "The same as a file of lines NAME TOKEN, as Docker and Kubernetes mount secrets.",
        "user_header": 'The header by which a reverse proxy names its user, such as "X-Forwarded-User"; it must set it '
        "always.",
        "proxies": "Addresses that user_header is believed from.",
        "hosts": "Names that the page is opened by, beside localhost.",
    },
}


def explain(schema: dict[str, Any], model: type) -> None:
    """Put the explanations of a table into its JSON schema, as pydantic asks for it."""
    texts = dict(EXPLAINED.get(model.__name__, {}))
    if about := texts.pop("", ""):
        schema["description"] = about
    for key, text in texts.items():
        schema["properties"][key]["description"] = text
