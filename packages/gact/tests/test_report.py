"""The report: as numbers, as text, as a page, as plain data."""

import html.parser
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor
from gact.report import build_report, size_text


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleDict({"<b>&\"'": nn.Linear(64, 64)})
        self.second = nn.Linear(64, 8)

    def forward(self, x):
        return self.second(functional.relu(functional.gelu(self.first["<b>&\"'"](x)))).square().mean()


@pytest.fixture
def report():
    torch.manual_seed(0)
    model = Model()
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    x = torch.randn(128, 64)
    for _ in range(2):
        with comp:
            loss = model(x)
        loss.backward()
    return comp.report(notes=["mind the <gap>"])


def test_shares_add_up_and_each_byte_counts_once(report):
    shares = [r.share for r in report.rows if r.share is not None]
    assert sum(shares) == pytest.approx(1)
    assert report.predicted_variance == pytest.approx(sum(r.variance for r in report.rows if r.variance is not None))
    assert report.saved_bytes == sum(r.nbytes for r in report.rows)
    assert report.plain_bytes == sum(r.plain_bytes for r in report.rows)
    assert report.ratio == report.plain_bytes / report.saved_bytes
    first = {}
    for r in report.rows:
        first.setdefault(r.storage, r)
        assert r.plain_bytes == 0 or first[r.storage] is r
    assert next(r for r in report.rows if r.operation == "Relu").form == "sign"


def test_outside_bytes_are_those_of_parameters_and_inputs(report):
    outside = {r.storage: r for r in report.rows if r.reason in ("parameter", "constant")}
    assert report.outside_bytes == 4 * (64 * 8 + 128 * 64)
    assert len(outside) == 2


class _Cells(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_page_escapes_names_and_needs_nothing_from_outside(report):
    page = report.html()
    parser = _Cells()
    parser.feed(page)
    assert "b" not in parser.tags
    assert "gap" not in parser.tags
    assert parser.tags.count("tr") == 1 + len(report.rows)
    assert parser.tags.count("td") == 13 * len(report.rows)
    assert "first.<b>&\"'" in parser.text
    assert "mind the <gap>" in parser.text
    assert "http" not in page
    assert "<script" not in page
    assert report.summary() in parser.text


def test_text_has_every_row_or_those_that_matter(report):
    text = report.text()
    short = report.text(all_rows=False)
    assert len(short.splitlines()) < len(text.splitlines())
    for row in report.rows:
        assert row.operation in text
    assert "mind the <gap>" in text
    assert "x smaller; predicted variance" in text
    assert max(map(len, text.splitlines())) <= 220


def test_plain_data_survives_json(report):
    data = json.loads(json.dumps(report.to_json()))
    assert data["saved_bytes"] == report.saved_bytes
    assert data["plain_bytes"] == report.plain_bytes
    assert len(data["rows"]) == len(report.rows)


def test_guarantees_are_named_by_what_is_stored(report):
    by_operation = {(r.operation, r.saved): r.guarantee for r in report.rows}
    assert by_operation["Gelu", "self"] == "bias of second order in the noise"
    assert by_operation["Relu", "result"] == "exact"
    assert by_operation["Addmm", "mat1"] in ("unbiased", "exact")


def test_of_nothing():
    empty = build_report((), {})
    assert (empty.saved_bytes, empty.plain_bytes, empty.ratio, empty.predicted_variance) == (0, 0, 1.0, None)
    assert "0 B of activations kept in 0 B" in empty.text()
    assert empty.html().count("<tr>") == 1


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536 * 1024, "1.50 MiB"), (3 * 2**40, "3072.00 GiB")],
)
def test_sizes_in_words(nbytes, text):
    assert size_text(nbytes) == text
