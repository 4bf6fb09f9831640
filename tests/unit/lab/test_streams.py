"""Which streams suit a scenario."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vrha.config.desired import load
from vrha.lab.scenario import load_scenario
from vrha.lab.streams import ends
from vrha.model.spec import Desired


def desired_of(name: str, folder: Path) -> Desired:
    file = folder / "zone.yaml"
    file.write_text(yaml.safe_dump(dict(load_scenario(name).zone)))
    return load(file)


def test_the_first_machine_with_an_address_of_its_own(tmp_path: Path) -> None:
    desired = desired_of("seed-10x10", tmp_path)
    machines = [host.name for network in desired.networks for host in network.hosts]
    assert ends(["outside", *machines], desired) == ("vm1", "203.0.113.11", "203.0.113.1")


@pytest.mark.parametrize("machines", [[], ["outside"], ["vm1"]])
def test_without_both_ends_there_is_nothing_to_measure(machines: list[str], tmp_path: Path) -> None:
    assert ends(machines, desired_of("seed-10x10", tmp_path)) is None
