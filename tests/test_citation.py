"""CITATION.cff: what CFF 1.2.0 asks for, and the papers as the README cites them."""

import re

import yaml

from tests.commands import ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_what_the_format_requires():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"] and CITATION["title"] and CITATION["authors"]
    assert CITATION["type"] == "software" and CITATION["license"] == "MIT"
    version = f'version = "{CITATION["version"]}"'
    assert version in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert reference["type"] == "conference-paper"


def test_the_papers_are_those_of_the_readme():
    assert len(CITATION["references"]) == 2
    for entry, paper in zip(
        re.findall(r"@inproceedings\{.*?^\}", README, re.M | re.S),
        CITATION["references"],
        strict=True,
    ):
        field = dict(re.findall(r"(\w+) += \{(.*)\},?$", entry, re.M))
        assert paper["title"] == re.sub("[{}]", "", field["title"])
        names = [
            f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
        ]
        assert " and ".join(names) == field["author"]
        assert paper["collection-title"] == field["booktitle"]
        assert str(paper["year"]) == field["year"]


def test_the_papers_have_the_addresses_of_the_readme():
    for paper in CITATION["references"]:
        number = paper["url"].removeprefix("https://arxiv.org/abs/")
        assert [one["value"] for one in paper["identifiers"]] == [f"10.48550/arXiv.{number}"]
        assert f"({paper['url']})" in README and f"({paper['repository-code']})" in README
