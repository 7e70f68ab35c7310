"""The exploratory report of a prepared dataset."""

import _environment  # noqa: F401 # isort: skip

from vbd.cli import Location, main
from vbd.storage import shown
from vbd.storage.outputs import check_outputs


def eda(*, data: Location, output: Location, picture: Location | None = None) -> None:
    """Write what a prepared dataset holds as one HTML page that works offline.

    Args:
        data: Folder of a prepared dataset, a path or a URI.
        output: The page, an HTML file; a path or a URI such as s3://bucket/eda.html.
        picture: Also write a PNG of one image with its readers' boxes beside the fused ones.
    """
    check_outputs({"--output": (output, "page"), "--picture": (picture, "picture")}, reads={"--data": data})
    from vbd.reports.eda.page import write_eda
    from vbd.reports.gallery import readme_picture

    if picture:  # first: it needs an image with a finding, and nothing is written where there is none
        image_id = readme_picture(data, picture)
        print(f"{shown(picture)}: image {image_id}")
    write_eda(data, output)
    print(f"{shown(output)}: written; open it in any browser")


if __name__ == "__main__":
    main(eda)
