"""A running cluster of containers: its handshake is valid, for a program, a command and a reader.

deploy/verify.sh runs it, with the address of the page and its token in the environment.
"""

from __future__ import annotations

import os
import subprocess
import urllib.error
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from services.cli.exit_codes import OK
from tests.browser.pages import shoot
from tests.support.command import PORTHOLE
from tests.support.dashboard import DashboardApi

if TYPE_CHECKING:
    from tests.browser.pages import Pages

SENDERS = {"devicehost", "guest-init", "owner", "porthole-cli", "simguest"}


@pytest.fixture(scope="module")
def cluster() -> DashboardApi:
    """The page of the cluster, on which one handshake is seen."""
    environ = os.environ
    return DashboardApi(environ["PORTHOLE_CLUSTER_PAGE"], environ["PORTHOLE_CLUSTER_TOKEN"])


@pytest.fixture(scope="module")
def vm_id(cluster: DashboardApi) -> str:
    """The VM of the handshake, which is valid."""
    answer = cluster.wait_for(lambda found: [vm["verdict"] for vm in found["vms"]] == ["valid"])
    [row] = answer["vms"]
    assert row["kind"] == "WSLC"
    return str(row["vm_id"])


def test_every_container_sends_its_part(cluster: DashboardApi, vm_id: str) -> None:
    # A valid handshake may lack spans that end later.
    cluster.wait_for(lambda found: {*found["vms"][0]["services"]} == SENDERS)
    # They are sent every 10 s, and those of a removed device for 20 s.
    cluster.wait_for(
        lambda found: "devicehost" in {each["service"] for each in found["series"]},
        f"/vms/{vm_id}/metrics",
    )


def test_the_command_judges_what_the_page_shows(cluster: DashboardApi, vm_id: str) -> None:
    command = [*PORTHOLE, "handshake", "verify", f"{cluster.page}/vm/{vm_id}"]
    environment = os.environ | {"PORTHOLE_TRACE_TOKEN": cluster.token}
    assert subprocess.run(command, env=environment, check=False).returncode == OK


def test_without_the_token_nothing_is_said(cluster: DashboardApi) -> None:
    for token in ("", "0123456789abcdef"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            DashboardApi(cluster.page, token).get("/vms")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_reader_sees_it(pages: Pages, cluster: DashboardApi, vm_id: str) -> None:
    page = await pages.open(f"{cluster.page}/?token={cluster.token}")
    await expect(page).to_have_url(f"{cluster.page}/")
    await page.locator(f'a[title="{vm_id}"]').click()
    await expect(page.locator(".banner")).to_contain_text("Valid")
    await shoot(page, "cluster")
