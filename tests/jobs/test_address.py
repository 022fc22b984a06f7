"""Where the dashboard is taken to be, and what is sent along to prove who asks."""

from pathlib import Path

import pytest

from llmforge.errors import ClusterError
from llmforge.jobs.address import find_address


def test_the_option_goes_before_the_environment() -> None:
    environment = {"RAY_ADDRESS": "http://two:8265", "RAY_API_SERVER_ADDRESS": "https://one/ray/"}
    assert find_address("http://head:8265/", environment).url == "http://head:8265"
    assert find_address(None, environment).url == "https://one/ray"
    assert find_address(None, {"RAY_ADDRESS": "http://two:8265"}).url == "http://two:8265"


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, "--address: found none, nor one in RAY_API_SERVER_ADDRESS or RAY_ADDRESS; allowed is the address of"),
        ({"RAY_ADDRESS": "auto"}, "RAY_ADDRESS: found auto; allowed is the address of the cluster's dashboard"),
        ({"RAY_ADDRESS": "ray://head:10001"}, "RAY_ADDRESS: found ray://head:10001; allowed"),
        ({"RAY_ADDRESS": "head:6379"}, "RAY_ADDRESS: found head:6379; allowed"),
        ({"RAY_ADDRESS": "http://"}, "RAY_ADDRESS: found http://; allowed"),
    ],
)
def test_addresses_that_are_none(environment: dict[str, str], found: str) -> None:
    with pytest.raises(ClusterError) as error:
        find_address(None, environment)
    assert str(error.value).startswith(found)


@pytest.mark.parametrize("address", ["http://me:hunter2@head:8265", "me:hunter2@head"])
def test_a_login_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ClusterError) as error:
        find_address(address, {})
    assert "hunter2" not in str(error.value)


def test_the_token_of_a_cluster(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken\n")
    for environment in (
        {"RAY_AUTH_TOKEN": "t0ken", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
        {"RAY_AUTH_TOKEN_PATH": str(file)},
    ):
        address = find_address("http://head:8265", environment)
        assert address.headers == {"Authorization": "Bearer t0ken"}
        assert "t0ken" not in repr(address)
    (tmp_path / ".ray").mkdir()
    home = {"HOME": str(tmp_path)}
    assert find_address("http://head:8265", home).headers == {}
    file.rename(tmp_path / ".ray" / "auth_token")
    assert find_address("http://head:8265", home).headers == {"Authorization": "Bearer t0ken"}
    assert find_address("http://head:8265", home | {"RAY_AUTH_MODE": "disabled"}).headers == {}
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH: the token file .* cannot be read: No such file"):
        find_address("http://head:8265", {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})


def test_headers_of_a_proxy() -> None:
    environment = {"RAY_JOB_HEADERS": '{"Cookie": "a=b"}', "RAY_AUTH_TOKEN": "t"}
    assert find_address("http://head", environment).headers == {"Authorization": "Bearer t", "Cookie": "a=b"}
    for wrong in ("no json", "[]", '{"a": 1}'):
        with pytest.raises(ClusterError, match="RAY_JOB_HEADERS: allowed is a JSON object of texts"):
            find_address("http://head", {"RAY_JOB_HEADERS": wrong})
