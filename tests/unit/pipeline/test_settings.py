import os
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.local import Stack
from cluster.local.processes import Process
from cluster.local.servers import Secrets
from cluster.local.stack import SERVICES
from cluster.local.stack import _write as write
from pipeline.settings import Settings, check_reachable, check_up, of_stack, resolve

FOREIGN = {
    "AWS_ACCESS_KEY_ID": "theirs",
    "AWS_SESSION_TOKEN": "theirs",
    "AWS_ENDPOINT_URL": "https://s3.example.com",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
    "RAY_API_SERVER_ADDRESS": "http://ray.example.com:8265",
    "RAY_AUTH_TOKEN_PATH": "/theirs",
    "PATCHLINE_ROOT": "s3://theirs/vit",
}


@pytest.fixture
def stack(tmp_path, monkeypatch) -> Stack:
    """A stack that is up, as far as its file tells: its three processes are this one."""
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path))
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    process = Process(pid=os.getpid(), started=started, log="")
    found = Stack(
        home=str(tmp_path),
        temporary=str(tmp_path),
        secrets=Secrets(access_key="ours", secret_key="secret", ray_token="token"),
        ports={"s3": 1, "mlflow": 2, "dashboard": 3},
        processes=dict.fromkeys(SERVICES, process),
    )
    write(tmp_path, found)
    return found


@pytest.fixture
def foreign(monkeypatch):
    """A shell that is set up for other clusters, buckets and trackers."""
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_the_local_stack_is_used_where_nothing_else_is_named(stack):
    settings = resolve()
    assert (settings.root, settings.mlflow, settings.jobs) == (stack.root, stack.mlflow_url, stack.jobs_address)
    assert settings.local
    assert settings.environment["AWS_SHARED_CREDENTIALS_FILE"] == stack.credentials_path


def test_the_users_own_addresses_come_first(stack, foreign):
    settings = resolve()
    assert settings.root == "s3://theirs/vit"
    assert settings.mlflow == "https://mlflow.example.com"
    assert settings.jobs == "http://ray.example.com:8265"
    assert not settings.local
    settings.enter()
    assert {name: os.environ[name] for name in FOREIGN} == FOREIGN


def test_the_demo_uses_the_local_stack_whatever_the_shell_says(stack, foreign):
    settings = of_stack(stack)
    assert (settings.root, settings.mlflow, settings.jobs) == (stack.root, stack.mlflow_url, stack.jobs_address)
    settings.enter()
    assert os.environ["AWS_SHARED_CREDENTIALS_FILE"] == stack.credentials_path
    assert os.environ["AWS_ACCESS_KEY_ID"] == os.environ["AWS_SESSION_TOKEN"] == ""
    assert os.environ["AWS_ENDPOINT_URL"] == stack.s3_endpoint
    assert settings.passed_on()["RAY_AUTH_TOKEN_PATH"] == stack.token_path
    assert settings.passed_on()["MLFLOW_TRACKING_URI"] == stack.mlflow_url


SECRETS = {
    name: f"value of {name}"
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN", "PATCHLINE_HTTP_TOKEN", "RAY_AUTH_TOKEN",
    )
}  # fmt: skip
OF_THE_SUBMITTER = {
    "RAY_AUTH_TOKEN_PATH": "/home/me/ray-token", "AWS_PROFILE": "lab", "AWS_DEFAULT_PROFILE": "lab",
    "AWS_SHARED_CREDENTIALS_FILE": "/home/me/.aws/lab", "AWS_CONFIG_FILE": "/home/me/.aws/config",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/mine",
    "AWS_ROLE_SESSION_NAME": "me", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials", "AWS_CA_BUNDLE": "/home/me/ca.pem",
    "AWS_EC2_METADATA_DISABLED": "true",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": "/home/me/ca.pem", "MLFLOW_TRACKING_CLIENT_CERT_PATH": "/home/me/me.pem",
    "PATCHLINE_HOME": "/home/me/patchline",
}  # fmt: skip
PLACES = {
    "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://s3:9000", "RAY_AUTH_MODE": "token",
    "MLFLOW_TRACKING_USERNAME": "me", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "PATCHLINE_LEASE_SECONDS": "20",
}  # fmt: skip


def test_secrets_stay_out_of_a_job_on_a_cluster_that_others_use(monkeypatch):
    stays = SECRETS | OF_THE_SUBMITTER
    for name, value in (stays | PLACES).items():
        monkeypatch.setenv(name, value)
    settings = resolve(root="s3://theirs/vit", mlflow="http://mlflow:5000", address="http://head:8265")
    sent = settings.passed_on()
    assert not any(value in sent.values() for value in SECRETS.values())
    assert not stays.keys() & sent.keys()
    assert {name: sent[name] for name in PLACES} == PLACES
    # Each submission to a cluster with a token would tell of that one's place.
    assert settings.withheld() == sorted(stays.keys() - {"RAY_AUTH_TOKEN_PATH", "PATCHLINE_HOME"})
    monkeypatch.setenv("AWS_PROFILE", "")
    assert "AWS_PROFILE" not in {*settings.passed_on(), *settings.withheld()}, "an empty one would hide a pod's own"
    monkeypatch.setenv("AWS_PROFILE", OF_THE_SUBMITTER["AWS_PROFILE"])
    monkeypatch.setenv("PATCHLINE_SEND_SECRETS", "1")
    assert settings.withheld() == []
    assert stays.items() <= settings.passed_on().items()
    assert "PATCHLINE_SEND_SECRETS" not in settings.passed_on()


def test_to_the_stack_which_is_this_machine_paths_and_profiles_go_along(stack, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/home/me/.aws/config")
    settings = resolve(root="s3://theirs/vit")
    assert settings.local
    assert settings.withheld() == []
    sent = settings.passed_on()
    assert (sent["AWS_PROFILE"], sent["AWS_CONFIG_FILE"]) == ("lab", "/home/me/.aws/config")
    assert sent["RAY_AUTH_TOKEN_PATH"] == stack.token_path
    # The stack's own bucket has the stack's own key, whatever the shell says.
    assert resolve().passed_on()["AWS_SHARED_CREDENTIALS_FILE"] == stack.credentials_path


def test_what_a_program_says_of_the_environment_itself_goes_along(monkeypatch):
    """Settings that somebody makes in Python name what the cluster's machines have."""
    monkeypatch.setenv("AWS_PROFILE", "lab")
    there = {"AWS_SHARED_CREDENTIALS_FILE": "/etc/on-the-machines", "AWS_PROFILE": "theirs"}
    settings = Settings(root="s3://b/p", mlflow="http://mlflow:5000", jobs="http://head:8265", environment=there)
    assert settings.passed_on().items() >= there.items()


def test_no_password_stands_in_an_address():
    with pytest.raises(UserError, match=r"^--mlflow: got an address with a user's name") as refused:
        resolve(root="s3://theirs/vit", mlflow="http://me:hidden@mlflow:5000", address="http://head:8265")
    assert "hidden" not in str(refused.value)


def test_the_stacks_credentials_do_not_go_to_another_bucket(stack, monkeypatch):
    settings = resolve(root="s3://theirs/vit")
    assert settings.local
    assert not [name for name in settings.environment if name.startswith("AWS_")]
    assert "AWS_ACCESS_KEY_ID" in resolve(root=f"{stack.root}/below").environment
    assert "AWS_ACCESS_KEY_ID" not in resolve(root=f"{stack.root}-other").environment


def test_loopback_is_never_behind_a_proxy(stack, monkeypatch):
    monkeypatch.setenv("no_proxy", "example.com")
    assert resolve().environment["no_proxy"] == "example.com,127.0.0.1,localhost"
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert resolve().environment["NO_PROXY"] == "127.0.0.1,localhost"


@pytest.mark.parametrize("dead", [("mlflow",), ("s3", "ray"), SERVICES], ids=len)
def test_a_stack_that_is_not_wholly_up_does_not_give_way_to_another_root(stack, tmp_path, monkeypatch, dead):
    gone = replace(stack.processes["s3"], started="1")
    write(tmp_path, replace(stack, processes={**stack.processes, **dict.fromkeys(dead, gone)}))
    named = rf"the local stack is not up \({', '.join(dead)} do(es)? not run\): `patchline up` starts it"
    with pytest.raises(UserError, match=f"{named}; or name another root, such as --root file://{tmp_path}/results"):
        resolve()
    with pytest.raises(UserError, match=f"{named}$"):
        check_up()
    assert resolve(root="file:///tmp/results").root == "file:///tmp/results"
    monkeypatch.setenv("PATCHLINE_ROOT", "s3://theirs/vit")
    assert resolve().root == "s3://theirs/vit"


def test_another_cluster_is_not_sent_the_local_stacks_places(stack, monkeypatch):
    address = "http://ray.example.com:8265"
    with pytest.raises(UserError, match=f"{address} is not this machine's own stack: name --root .* and --mlflow"):
        resolve(address=address)
    with pytest.raises(UserError, match="name --mlflow http://HOST:PORT, which"):
        resolve(address=address, root="s3://theirs/vit")
    settings = resolve(address=address, root="s3://theirs/vit", mlflow="http://mlflow.example.com:5000")
    assert settings.environment == {}
    check_reachable(settings)
    # A stack of one's own is still found by its address.
    assert resolve(address=stack.jobs_address).local


@pytest.mark.parametrize(
    ("root", "mlflow", "endpoint", "expected"),
    [
        ("s3://b/p", "http://127.0.0.1:5000", None, "--mlflow http://127.0.0.1:5000: expected an address that the mac"),
        ("s3://b/p", "sqlite:///runs.db", None, "--mlflow sqlite:///runs.db: expected"),
        ("s3://b/p", "http://tracker", "http://localhost:9000", "AWS_ENDPOINT_URL http://localhost:9000: expected"),
        ("{home}/results", "http://tracker", None, "--root file://.*/results: expected"),
    ],
)
def test_addresses_that_are_good_here_alone_are_refused_for_another_cluster(
    stack, monkeypatch, root, mlflow, endpoint, expected
):
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    root = root.format(home=f"file://{stack.home}")
    with pytest.raises(UserError, match=expected):
        check_reachable(resolve(root=root, mlflow=mlflow, address="http://ray.example.com:8265"))
    # A folder that all machines share is one's own business, and so is a tunnel.
    check_reachable(resolve(root="file:///shared", mlflow="http://tracker", address="http://ray.example.com:8265"))
    check_reachable(resolve(root=root, mlflow=mlflow, address="http://127.0.0.1:9999"))
