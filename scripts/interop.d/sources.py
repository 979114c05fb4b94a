"""Check that rows come from real servers as from the file: nginx, and moto's S3.

Both run on this machine, below a temporary folder. Started by `scripts/interop --sources`,
or by itself:

    python scripts/interop.d/sources.py --rows target/release/examples/rows

Prints one row for each check; exits with 1 when any of them fails.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import boto3
import pyarrow
import pyarrow.parquet

ROWS = 60_000
BUCKET = "rows"
KEYS = ["plain.parquet", "a folder/ümläut 1+2.parquet", "a folder/100%25&more.parquet"]
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/www;
        location /whole/ {{ alias {folder}/www/; max_ranges 0; }}
        location /moved/ {{ return 302 http://elsewhere.invalid/x?signature=secret; }}
        location /closed/ {{ return 403; }}
        location /busy/ {{ return 503; }}
    }}
}}
"""

failed = False


def check(name, fine, found):
    global failed
    failed |= not fine
    print(f"{'ok  ' if fine else 'FAIL'} {name}" + ("" if fine else f": {found}"), flush=True)


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def wait_for(port, process):
    for _ in range(150):
        if process.poll() is not None:
            sys.exit(f"sources: {process.args[0]} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"sources: {process.args[0]} does not listen")


def write_rows(path):
    numbers = range(ROWS)
    turns = [
        [{"role": "user", "content": f"question {n} " + "x" * (n % 300)},
         {"role": "assistant", "content": f"answer {n * n} " + os.urandom(100).hex()}]
        for n in numbers
    ]  # fmt: skip
    table = pyarrow.table({"record_id": [f"row-{n}" for n in numbers], "messages": turns})
    pyarrow.parquet.write_table(table, path, row_group_size=ROWS // 3)


class Reader:
    def __init__(self, program):
        self.program = program
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.clean = {k: v for k, v in clean.items() if not k.lower().endswith("_proxy")}

    def __call__(self, name, *options, **variables):
        ran = subprocess.run(
            [self.program, name, *map(str, options)],
            env=self.clean | variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if ran.returncode:
            sys.exit(f"sources: {ran.stderr}")
        return json.loads(ran.stdout) | {"stderr": ran.stderr}


def same(answer, local):
    return all(answer.get(key) == local[key] for key in ("rows", "sha256"))


def check_nginx(read, folder, file, local):
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        sys.exit("sources: no nginx; install it, as with `apt-get install nginx`")
    www = folder / "www"
    (www / "a folder").mkdir(parents=True)
    for key in KEYS:
        shutil.copy(file, www / key)
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    server = subprocess.Popen([nginx, "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"])
    try:
        wait_for(port, server)
        base = f"http://127.0.0.1:{port}"
        for key in KEYS:
            answer = read(f"{base}/{urllib.request.quote(key)}")
            check(f"nginx: {key}", same(answer, local), answer)
        check("nginx: pinned by its ETag", bool(answer.get("pin", {}).get("etag")), answer)
        late = read(f"{base}/{KEYS[0]}", "--from", ROWS - 5)
        check("nginx: the last rows", same(late, read(str(file), "--from", ROWS - 5)), late)
        for path, words in [
            ("absent.parquet", "no such object"),
            ("closed/x", "refuses it with status 403"),
            ("whole/" + KEYS[0], "whole files only"),
            ("moved/x", "`http://elsewhere.invalid/x`"),
            ("*.parquet", "lists no files"),
        ]:
            answer = read(f"{base}/{path}")
            fine = words in answer.get("error", "") and answer["hint"] and "secret" not in str(answer)
            check(f"nginx: /{path} is refused", fine, answer)
        busy = read(f"{base}/busy/x")
        fine = "8 times in a row" in busy["error"] and busy["stderr"].count("trying again") == 7
        check("nginx: 503 without end is given up, and said", fine, busy)
    finally:
        server.terminate()
        server.wait()


def check_moto(read, file, local):
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(port, server)
        endpoint = f"http://127.0.0.1:{port}"
        region = {"region_name": "us-east-1", "endpoint_url": endpoint}
        first = {"aws_access_key_id": "first", "aws_secret_access_key": "first"}
        s3 = boto3.client("s3", **region, **first)
        s3.create_bucket(Bucket=BUCKET)
        for key in KEYS:
            s3.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        iam = boto3.client("iam", **region, **first)
        iam.create_user(UserName="reader")
        statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        made = iam.create_access_key(UserName="reader")["AccessKey"]
        # From here on moto wants signatures of the user.
        asked = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(asked).read()
        place = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        keys = {
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        }
        reader = place | keys
        for key in KEYS:
            answer = read(f"s3://{BUCKET}/{key}", **reader)
            check(f"moto: {key}", same(answer, local), answer)
        check("moto: pinned by its ETag", bool(answer.get("pin", {}).get("etag")), answer)
        found = read(f"s3://{BUCKET}/a folder/*.parquet", **reader)
        names = sorted(f"s3://{BUCKET}/{key}" for key in KEYS[1:])
        check("moto: a pattern lists its folder", found.get("names") == names, found)
        everything = read(f"s3://{BUCKET}/**/*.parquet", **reader)
        check("moto: a pattern over folders", everything.get("rows") == 3 * ROWS, everything)
        for title, name, variables, words in [
            ("no such key", "absent.parquet", reader, "no such object"),
            ("a folder without objects", "nothing/*.parquet", reader, "no object matches"),
            ("a wrong secret", KEYS[0], reader | {"AWS_SECRET_ACCESS_KEY": "wrong"}, "status 403"),
            ("an unknown key", "*.parquet", reader | {"AWS_ACCESS_KEY_ID": "AKIA0"}, "InvalidAccessKeyId"),
            ("no credentials", KEYS[0], place, "nothing in the environment"),
            ("no signature", KEYS[0], place | {"AWS_SKIP_SIGNATURE": "true"}, "status 403"),
            ("no encryption", KEYS[0], reader | {"AWS_ALLOW_HTTP": ""}, "without encryption"),
        ]:
            answer = read(f"s3://{BUCKET}/{name}", **variables)
            fine = words in answer.get("error", "") and answer["hint"]
            fine = fine and made["SecretAccessKey"] not in str(answer)
            check(f"moto: {title} is refused", fine, answer)
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, help="the built example `rows`")
    read = Reader(parser.parse_args().rows)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # nginx's workers are another user's.
        folder.chmod(0o755)
        file = folder / "rows.parquet"
        write_rows(file)
        local = read(str(file))
        check("the file itself", local.get("rows") == ROWS, local)
        check_nginx(read, folder, file, local)
        check_moto(read, file, local)
    sys.exit(failed)


if __name__ == "__main__":
    main()
