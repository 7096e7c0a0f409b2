"""mindlab.common.files: archives that would leave their folder or fill the disk."""

import zipfile

import pytest

from mindlab.common.errors import UserError
from mindlab.common.files import ZIP_SMALL
from mindlab.data.mind import read_mind


def make_zip(path, name, data=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../news.tsv", "train/../../news.tsv", "/etc/news.tsv", "C:/news.tsv", "..\\news.tsv"]
)
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"x.zip: holds .*expected names within its folder"):
        read_mind(make_zip(tmp_path / "x.zip", name))


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(UserError, match=r"would grow from [\d,]+ to 10,000,001 bytes"):
        read_mind(make_zip(tmp_path / "x.zip", "train/news.tsv", bytes(ZIP_SMALL + 1)))
