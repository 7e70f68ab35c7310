"""The exploratory report of a prepared dataset."""

import _environment  # noqa: F401 # isort: skip

from vbd.cli import main


def eda(*, data: str, output: str, picture: str | None = None) -> None:
    """Write what a prepared dataset holds as one HTML page that works offline.

    Args:
        data: Folder of a prepared dataset, a path or a URI.
        output: The page, an HTML file; a path or a URI such as s3://bucket/eda.html.
        picture: Also write a PNG of one image with its readers' boxes beside the fused ones.
    """
    from vbd.reports.eda import write_eda
    from vbd.reports.gallery import readme_picture

    write_eda(data, output)
    print(f"{output}: written; open it in any browser")
    if picture:
        image_id = readme_picture(data, picture)
        print(f"{picture}: image {image_id}")


if __name__ == "__main__":
    main(eda)
